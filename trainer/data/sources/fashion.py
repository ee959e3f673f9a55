"""Recipe `fashion`: Fashion-MNIST, 60,000 + 10,000 gray images of clothes, padded from 28x28 to 32x32."""

from pathlib import Path

from trainer.data.format import DataError, ImageSet
from trainer.data.sources.idx import read_idx
from trainer.settings import Split

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
ADVICE = (
    "Fashion-MNIST comes with Debian's package: run `apt-get install dataset-fashion-mnist`, "
    "or name a folder with its four IDX files: --source DIR"
)
LICENCE = "MIT (Zalando SE, Fashion-MNIST)"
CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}


def read_fashion(source: Path | None = None, split: Split = "train") -> ImageSet:
    """Gray [N, 32, 32, 1] from `source` or Debian's folder. Raises DataError that says what to install."""
    folder = source or DEBIAN_FOLDER
    images = _find(folder, f"{_PREFIX[split]}-images-idx3-ubyte")
    labels = _find(folder, f"{_PREFIX[split]}-labels-idx1-ubyte")
    return read_idx(
        images, labels, name="fashion", licence=LICENCE, source=f"Fashion-MNIST, {split} split", pad=True,
        class_names=CLASS_NAMES,
    )  # fmt: skip


def _find(folder: Path, stem: str) -> Path:
    for path in (folder / f"{stem}.gz", folder / stem):
        if path.is_file():
            return path
    raise DataError(f"{folder} has no {stem}[.gz]. {ADVICE}")
