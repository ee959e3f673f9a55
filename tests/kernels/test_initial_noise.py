"""The initial noise: kernel against reference, reference against the numpy twin."""

import numpy as np
import pytest
import torch

from fewstep.step import begin, latent, network_input
from kernels.initial_noise import initial_noise, initial_noise_reference, launch_initial_noise
from kernels.rows import STARTED, Inpainting, RowsUpload, Tile
from tests.kernels.cases import DEVICE, SIGMA_DATA, Launch, assert_same, launch, rows_of

NEW = {"steps": [4, 1, 8], "calls": [0, 0, 0], "slot": [4, 0, 2], "target": [1, 3, 0]}


def begun(case: Launch, run, **more) -> Launch:
    """Start the rows of a case on a copy of its buffers."""

    def start(x, output, rows, network_input, pixels, broken, *, stamp: int, **options) -> None:
        run(x, rows, network_input, **options, **more)

    return case.through(start)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 7), (2, 3, 3)], ids=str)
@pytest.mark.parametrize("extra", [0, 2])
def test_the_kernel_equals_the_reference_in_ragged_shapes_and_with_a_latent(shape: tuple[int, int, int], extra: int):
    case = launch(rows_of(**NEW), shape, extra=extra)
    assert_same(begun(case, launch_initial_noise), begun(case, initial_noise_reference))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("x", ["channels_first", "channels_last"])
@pytest.mark.parametrize("network", ["channels_first", "channels_last"])
def test_the_kernel_equals_the_reference_in_every_dtype_and_layout(dtype: torch.dtype, x, network):
    case = launch(rows_of(**NEW), (3, 4, 6), extra=1, dtype=dtype, x=x, network=network)
    assert_same(begun(case, launch_initial_noise), begun(case, initial_noise_reference), dtype)


@pytest.mark.parametrize("x", ["channels_first", "channels_last"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 7)], ids=str)
def test_only_flagged_rows_begin_at_their_image(x, shape: tuple[int, int, int]):
    """The image lies in the row of the slot, not of the target or of the launch."""
    rows = rows_of(**NEW, flags=[STARTED, 0, STARTED])
    case = launch(rows, shape, extra=1, x=x, network=x, inpainting=True)
    actual, expected = begun(case, launch_initial_noise), begun(case, initial_noise_reference)
    assert_same(actual, expected)
    case.options.clear()
    plain = begun(case, initial_noise_reference)
    image = launch(rows, shape, x=x, inpainting=True).options["inpainting"].image
    torch.testing.assert_close(expected.x[[4, 2]], plain.x[[4, 2]] + image[[4, 2]])
    assert torch.equal(expected.x[0], plain.x[0])
    fed, before = expected.network_input.x[[1, 0], : shape[0]], plain.network_input.x[[1, 0], : shape[0]]
    torch.testing.assert_close(fed, before + rows.c_in[[0, 2], None, None, None] * image[[4, 2]])


def test_images_that_lie_otherwise_in_memory_are_refused():
    case = launch(rows_of(**NEW), (3, 4, 4), x="channels_last", network="channels_last")
    other = torch.zeros(5, 3, 4, 4, device=DEVICE)
    with pytest.raises(ValueError, match="in memory as x"):
        begun(case, launch_initial_noise, inpainting=Inpainting(other.bool(), other))


@pytest.mark.parametrize("tile", [Tile(1, 8, 1), Tile(4, 4, 1), Tile(1, 2, 1, parts=4)], ids=str)
def test_any_tile_gives_the_same(tile: Tile):
    case = launch(rows_of([4], [0]), (3, 4, 4), extra=1)
    expected, actual = (
        begun(case, launch_initial_noise, tile=Tile(1, 16, 1)),
        begun(case, launch_initial_noise, tile=tile),
    )
    for name, values in actual.written().items():
        assert torch.equal(values, expected.written()[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tile", [None, Tile(4, 128, 1, rgb=True), Tile(4, 128, 1, parts=2, rgb=True)], ids=str)
def test_three_channels_side_by_side_are_begun_as_they_lie(tile: Tile | None, dtype: torch.dtype):
    assert Tile.choose(3, 0, 14 * 20, "channels_last").rgb
    rows = rows_of(**NEW, flags=[STARTED, 0, STARTED])
    case = launch(rows, (3, 14, 20), dtype=dtype, x="channels_last", network="channels_last", inpainting=True)
    actual = begun(case, launch_initial_noise, tile=tile)
    assert_same(actual, begun(case, initial_noise_reference), dtype)
    apart = begun(case, launch_initial_noise, tile=Tile(4, 64, 1))
    assert all(torch.equal(values, apart.written()[name]) for name, values in actual.written().items())


@pytest.mark.parametrize("run", [launch_initial_noise, initial_noise_reference])
def test_nothing_else_is_written(run):
    case = launch(rows_of(**NEW), (2, 3, 4))
    result = begun(case, run)
    assert torch.equal(result.x[[1, 3]], case.x[[1, 3]])
    assert (result.network_input.x[[2, 4]] == 9).all() and (result.network_input.c_noise[[2, 4]] == 9).all()
    assert torch.equal(result.pixels, case.pixels) and torch.equal(result.broken, case.broken)


@pytest.mark.parametrize("run", [launch_initial_noise, initial_noise_reference, initial_noise])
def test_an_empty_batch_changes_nothing(run):
    case = launch(rows_of([], []), (3, 4, 4))
    assert all(torch.equal(values, case.written()[name]) for name, values in begun(case, run).written().items())


def test_the_reference_equals_the_numpy_twin():
    rows = rows_of([4, 1, 8], [0, 0, 0], flags=[0, STARTED, STARTED])
    case = launch(rows, (3, 5, 6), extra=2, capacity=3, inpainting=True)
    result = begun(case, initial_noise_reference)
    seeds, sigma = rows.seed.cpu().numpy().view(np.uint64), rows.sigma_next.cpu().numpy()
    image = case.options["inpainting"].image.cpu().numpy().copy()
    image[0] = 0
    x = begin(seeds, sigma, (3, 5, 6), image=image)
    scaled, c_noise = network_input(x, sigma, SIGMA_DATA, latent(seeds, np.zeros(3, np.int64), (2, 5, 6)))
    np.testing.assert_allclose(result.x.cpu().numpy(), x, rtol=1e-6, atol=8e-5)
    np.testing.assert_allclose(result.network_input.x.cpu().numpy(), scaled, rtol=1e-6, atol=4e-6)
    np.testing.assert_allclose(result.network_input.c_noise.cpu().numpy(), c_noise, rtol=1e-6)
    assert result.network_input.onehot.argmax(dim=1).tolist() == [0, 1, 2]


def test_rows_arrive_on_the_device_as_they_were_written():
    upload = RowsUpload(5, torch.device(DEVICE))
    rows = upload.send(3, seed=np.array([-1, 2**62, 5]), c_skip=np.array([80.0, 0.5, 0.1]), target=np.array([2, 0, 1]))
    assert len(rows) == 3
    assert rows.seed.tolist() == [-1, 2**62, 5] and rows.target.tolist() == [2, 0, 1]
    assert rows.c_skip.tolist() == pytest.approx([80.0, 0.5, 0.1]) and rows.flags.tolist() == [0, 0, 0]
    again = upload.send(1, label=np.array([7]))
    assert (again.label.tolist(), again.seed.tolist(), again.c_skip.tolist()) == ([7], [0], [0.0])
