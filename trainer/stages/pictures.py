"""The stage `data`: pictures are read once and kept as OUT/data.zip; an index of shards stays where it is."""

import sys
import time
from pathlib import Path

from fewstep.card import CheckpointError
from trainer.data.command import describe_unread
from trainer.data.format import DataError, ImageSet, read_image_set, write_image_set
from trainer.data.matching import check_learnable
from trainer.data.named import READERS, read_recipe
from trainer.data.shards import ShardedImages, read_index
from trainer.data.sources.given import read_given
from trainer.journal import Done, Journal, settings_hash
from trainer.options import Order
from trainer.stages.run import DATA, DATA_FILE, INDEX


def pictures(order: Order) -> ImageSet:
    """The images that an order names, from where they lie. Raises DataError."""
    images = _read(order)
    check_learnable(images)
    return images


def _read(order: Order) -> ImageSet:
    if not order.names_recipe:
        if order.half:
            raise DataError(f"--half {order.half} is of a recipe's pictures, and {order.photos} is none; leave it out")
        return read_given(Path(order.photos), order.size)
    if order.photos not in READERS:
        raise DataError(f"the recipe {order.photos} has no pictures of its own; name a folder of pictures")
    if order.size:
        raise DataError(f"the pictures of {order.photos} have a size of their own; leave --size out")
    return read_recipe(order.photos, None, half=order.half)


def prepare(order: Order, journal: Journal) -> None:
    began = time.monotonic()
    print(f"reading {order.photos}", file=sys.stderr, flush=True)
    images = pictures(order)
    for line in describe_unread(images):
        print(line, file=sys.stderr, flush=True)
    journal.order = order.facts()
    journal.write()  # before any result: results without a journal are not this command's
    if isinstance(images.images, ShardedImages):  # they are too many for a copy
        facts = {INDEX: Path(order.photos).name}  # where it lies is the order's: models are published with these facts
    else:
        write_image_set(order.out / DATA_FILE, images)
        facts = {"file": DATA_FILE}
    settings = settings_hash({"photos": order.photos, "size": order.size})
    seconds = round(time.monotonic() - began, 2)
    journal.stages[DATA] = Done(settings, {}, images.sha256(), seconds, facts=facts)
    journal.write()


def read_data(journal: Journal) -> ImageSet:
    """The images of a run, as its stage `data` left them.

    Raises DataError for shards that are gone or have changed, CheckpointError for an index of other images.
    """
    done = journal.stages[DATA]
    if INDEX not in done.facts:
        return read_image_set(journal.folder / done.facts["file"])
    index = Path(journal.order["photos"])
    images = read_index(index)
    if images.sha256() != done.result:
        raise CheckpointError(
            f"{index} lists other images than those {journal.folder} was begun with; choose another --out, or begin "
            f"anew with --from {DATA}"
        )
    return images
