"""What the benchmarks' commands are given in tests."""

from dataclasses import replace

import pytest

from trainer.data.format import ImageSet, write_image_set


@pytest.fixture(scope="session")
def zips(fashion_2000: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name two halves of the fixture as training and held-out images, and one thread."""
    folder = tmp_path_factory.mktemp("zips")
    for name, part in (("train", slice(0, None, 2)), ("held-out", slice(1, None, 2))):
        half = replace(fashion_2000, images=fashion_2000.images[part], labels=fashion_2000.labels[part])
        write_image_set(folder / f"{name}.zip", half)
    return ["--data", str(folder / "train.zip"), "--held-out", str(folder / "held-out.zip"), "--threads", "1"]
