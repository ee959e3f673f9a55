"""Whether a model belongs to a data set."""

from pathlib import Path

from fewstep.card import Card, CheckpointError
from trainer.data.format import DataError, ImageSet


def check_match(parent: Card, data: ImageSet, folder: Path) -> None:
    """Refuse a teacher that was made for other images, before the first step."""
    if parent.role != "teacher":
        raise CheckpointError(f"{folder} is a {parent.role}; a student is distilled from a teacher")
    if parent.network.get("extra"):
        raise CheckpointError(f"{folder} takes a latent beside the image: it draws, and a teacher has to give means")
    check_images(parent, data, "the teacher")


def check_images(card: Card, data: ImageSet, who: str) -> None:
    """Refuse images of another shape, of other classes or on another scale than the network of `card` makes."""
    channels, resolution, _ = card.image_shape
    _, height, _, data_channels = data.images.shape
    if (channels, resolution) != (data_channels, height):
        raise DataError(
            f"{who} makes {resolution}x{resolution} images with {channels} channels, "
            f"{data.name} has {height}x{height} with {data_channels}"
        )
    if card.network["classes"] not in (0, len(data.class_names)):
        raise DataError(f"{who} knows {card.network['classes']} classes, {data.name} has {len(data.class_names)}")
    measured = data.sigma_data()
    if abs(measured / card.sigma_data - 1) > 0.1:
        raise DataError(
            f"{data.name} has sigma_data {measured:.3f}, {who} was trained at {card.sigma_data:.3f}: "
            "it was made for other images"
        )
