"""Whether a model belongs to a data set."""

from pathlib import Path

from fewstep.card import Card, CheckpointError
from trainer.data.format import DataError, ImageSet


def check_match(parent: Card, data: ImageSet, folder: Path) -> None:
    """Refuse a teacher that was made for other images, before the first step."""
    check_teacher(parent, folder)
    check_images(parent, data, "the teacher")


def check_teacher(parent: Card, folder: Path) -> None:
    """Refuse what cannot teach."""
    if parent.role != "teacher":
        raise CheckpointError(f"{folder} is a {parent.role}; a student is distilled from a teacher")
    if parent.network.get("extra"):
        raise CheckpointError(f"{folder} takes a latent beside the image: it draws, and a teacher has to give means")


def check_images(card: Card, data: ImageSet, who: str) -> None:
    """Refuse images of another shape, of other classes or of another contrast than the network of `card` makes."""
    check_shape(card, data, who)
    trained, measured = _deviation_of_training_images(card), data.sigma_data()
    if trained is not None and abs(measured / trained - 1) > 0.1:
        raise DataError(
            f"{data.name} has a pixel deviation of {measured:.3f}, the images {who} was trained on had {trained:.3f}: "
            "these are other images, or the same ones at another contrast. Give --data what it was trained on, or "
            "continue the teacher on these images first: python -m trainer teacher --init TEACHER --data ..."
        )


def _deviation_of_training_images(card: Card) -> float | None:
    """None for an imported teacher: its sigma_data is a constant of its training, whatever its images were."""
    if card.dataset.sigma_data is not None or "imported" in card.training:
        return card.dataset.sigma_data
    return card.sigma_data  # of a card that does not store it: home-made, and measured on its images


def check_shape(card: Card, data: ImageSet, who: str) -> None:
    """Refuse images of another shape or of other classes."""
    channels, resolution, _ = card.image_shape
    _, height, _, data_channels = data.images.shape
    if (channels, resolution) != (data_channels, height):
        raise DataError(
            f"{who} makes {resolution}x{resolution} images with {channels} channels, "
            f"{data.name} has {height}x{height} with {data_channels}"
        )
    if card.network["classes"] not in (0, len(data.class_names)):
        raise DataError(f"{who} knows {card.network['classes']} classes, {data.name} has {len(data.class_names)}")
