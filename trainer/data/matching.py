"""Checks that a data set can be learned, and that a model and a data set belong together."""

from pathlib import Path

from fewstep.card import Card, CheckpointError
from trainer.data.format import DataError, ImageSet


def check_learnable(data: ImageSet) -> None:
    """Raise DataError for images that no model can learn: a single one, or pixels of one value."""
    if len(data.images) < 2:
        raise DataError(f"{data.name} holds {len(data.images)} image; a model learns from several, 2,000 or more")
    if data.sigma_data() == 0:
        raise DataError(f"all pixels of {data.name} have the same value: there is nothing to learn")


def check_match(parent: Card, data: ImageSet, folder: Path) -> None:
    """Raise CheckpointError or DataError unless this teacher can teach these images."""
    check_teacher(parent, folder)
    check_images(parent, data, "the teacher")


def check_teacher(parent: Card, folder: Path) -> None:
    """Raise CheckpointError for a model that is not a teacher."""
    if parent.role != "teacher":
        raise CheckpointError(f"{folder} is a {parent.role}; a student is distilled from a teacher")
    if parent.network.get("extra"):
        raise CheckpointError(
            f"{folder} takes a latent beside the image, so its outputs are draws; a teacher's outputs have to be means"
        )


def check_images(card: Card, data: ImageSet, who: str) -> None:
    """Raise DataError for images of another shape, other classes or another contrast than those of `card`."""
    check_shape(card, data, who)
    trained, measured = _deviation_of_training_images(card), data.sigma_data()
    if trained is not None and abs(measured / trained - 1) > 0.1:
        raise DataError(
            f"{data.name} has a pixel deviation of {measured:.3f}, the images {who} was trained on had {trained:.3f}: "
            "these are other images, or the same ones at another contrast. Give --data what it was trained on, or "
            "continue the teacher on these images first: fewstep trainer teacher --init TEACHER --data ..."
        )


def _deviation_of_training_images(card: Card) -> float | None:
    """None for an imported teacher: its sigma_data is a constant of its method, not measured on its images."""
    if card.dataset.sigma_data is not None or "imported" in card.training:
        return card.dataset.sigma_data
    return card.sigma_data  # the card is of an earlier version, which measured sigma_data on the images


def check_shape(card: Card, data: ImageSet, who: str) -> None:
    """Raise DataError for images of another shape or other classes."""
    channels, resolution, _ = card.image_shape
    _, height, _, data_channels = data.images.shape
    if (channels, resolution) != (data_channels, height):
        raise DataError(
            f"{who} makes {resolution}x{resolution} images with {channels} channels, "
            f"{data.name} has {height}x{height} with {data_channels}"
        )
    if card.network["classes"] not in (0, len(data.class_names)):
        raise DataError(f"{who} knows {card.network['classes']} classes, {data.name} has {len(data.class_names)}")
