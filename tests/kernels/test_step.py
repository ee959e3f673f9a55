"""The fused step: kernel against reference, reference against the numpy twin, and what neither may touch."""

from functools import partial

import numpy as np
import pytest
import torch

from fewstep.pixels import to_pixels
from fewstep.schedule import student_levels
from fewstep.step import advance, latent, network_input
from kernels.rows import CLAMP, KNOWN, Tile, rgb_fits
from kernels.step import launch_step, step, step_reference
from tests.kernels.cases import DEVICE, SIGMA_DATA, assert_same, launch, rows_of

MIXED = {"steps": [4, 1, 2, 8], "calls": [1, 1, 2, 3]}  # rows 1 and 2 are on their last step
MOVING = {"slot": [4, 0, 2, 1], "source": [3, 1, 0, 4], "target": [1, 0, 2, 0]}  # of inputs, or of pixels
SHAPES = [(3, 8, 8), (1, 5, 7), (2, 3, 3), (4, 2, 6)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("extra", [0, 2])
def test_the_kernel_equals_the_reference_in_ragged_shapes_and_with_a_latent(shape: tuple[int, int, int], extra: int):
    case = launch(rows_of(**MIXED, **MOVING), shape, extra=extra)
    assert_same(case.through(launch_step), case.through(step_reference))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("x", "output", "network"),
    [
        ("channels_first", "channels_first", "channels_first"),
        ("channels_last", "channels_last", "channels_last"),
        ("channels_first", "channels_last", "channels_last"),
        ("channels_last", "channels_first", "channels_last"),
    ],
)
def test_the_kernel_equals_the_reference_in_every_dtype_and_layout(dtype: torch.dtype, x, output, network):
    case = launch(rows_of(**MIXED, **MOVING), (3, 4, 6), extra=1, dtype=dtype, x=x, output=output, network=network)
    assert_same(case.through(launch_step), case.through(step_reference), dtype)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_clamped_rows_and_known_pixels_are_those_flagged(layout):
    rows = rows_of(**MIXED, flags=[CLAMP, CLAMP | KNOWN, KNOWN, 0])
    case = launch(rows, (3, 4, 5), x=layout, network=layout, inpainting=True)
    result = case.through(launch_step)
    assert_same(result, case.through(step_reference))
    known = case.options["inpainting"]
    wanted = torch.from_numpy(to_pixels(known.image.cpu().numpy())).to(DEVICE)
    mask = known.mask.permute(0, 2, 3, 1)
    for row in (1, 2):
        assert torch.equal(result.pixels[row][mask[row]], wanted[row][mask[row]])
    plain = launch(rows_of(**MIXED), (3, 4, 5), x=layout, network=layout).through(launch_step)
    assert torch.equal(result.x[3], plain.x[3]) and not torch.equal(result.x[0], plain.x[0])


TILES = [Tile(1, 8, 1), Tile(1, 64, 1), Tile(2, 16, 1), Tile(4, 4, 1), Tile(1, 2, 1, parts=4), Tile(4, 8, 1, parts=4)]


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_any_tile_gives_the_same(tile: Tile):
    case = launch(rows_of([4, 1], [1, 1]), (3, 4, 4), extra=1)
    expected = case.through(launch_step, tile=Tile(4, 16, 1))
    for name, values in case.through(launch_step, tile=tile).written().items():
        assert torch.equal(values, expected.written()[name]), name


launch_last = partial(launch, x="channels_last", output="channels_last", network="channels_last")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 2, 2), (3, 8, 16), (3, 20, 20)], ids=str)
def test_three_channels_side_by_side_are_stepped_as_they_lie(shape, dtype: torch.dtype):
    assert Tile.choose(3, 0, shape[1] * shape[2], "channels_last").rgb
    rows = rows_of(**MIXED, **MOVING, flags=[CLAMP, CLAMP | KNOWN, KNOWN, 0])
    case = launch_last(rows, shape, dtype=dtype, inpainting=True)
    assert_same(case.through(launch_step), case.through(step_reference), dtype)


RGB_TILES = [Tile(4, 128, 1, rgb=True), Tile(4, 128, 2, parts=2, rgb=True), Tile(4, 512, 2, rgb=True)]


@pytest.mark.parametrize("tile", RGB_TILES, ids=str)
def test_rgb_tiles_give_what_others_give(tile: Tile):
    case = launch_last(rows_of(**MIXED), (3, 14, 26))
    expected = case.through(launch_step, tile=Tile(4, 64, 1))
    for name, values in case.through(launch_step, tile=tile).written().items():
        assert torch.equal(values, expected.written()[name]), name


def test_an_rgb_tile_finds_what_is_not_finite():
    case = launch_last(rows_of(**MIXED), (3, 10, 16))
    case.output[1, 0, 3, 3] = float("nan")
    case.output[3, 2, 9, 15] = float("inf")
    assert case.through(launch_step).broken.tolist() == [3, 7, 3, 7, 3]


def test_rgb_is_for_three_channels_side_by_side_everywhere():
    assert rgb_fits(3, 0, 24, "channels_last", "channels_last")
    assert not rgb_fits(4, 0, 24, "channels_last") and not rgb_fits(3, 1, 24, "channels_last")
    assert not rgb_fits(3, 0, 25, "channels_last") and not rgb_fits(3, 0, 24, "channels_last", "channels_first")
    for case in (launch(rows_of([2], [1]), (3, 4, 4)), launch_last(rows_of([2], [1]), (3, 3, 3))):
        with pytest.raises(ValueError, match="is for three channels, all channels_last"):
            case.through(launch_step, tile=RGB_TILES[0])
    with pytest.raises(ValueError, match="128 positions"):
        launch_last(rows_of([2], [1]), (3, 4, 4)).through(launch_step, tile=Tile(4, 64, 1, rgb=True))


@pytest.mark.parametrize("step_of", [launch_step, step_reference])
def test_nothing_else_is_written(step_of):
    case = launch(rows_of(**MIXED, **MOVING), (2, 3, 4))
    result = case.through(step_of)
    assert torch.equal(result.x[[3, 0, 2]], case.x[[3, 0, 2]]), "no image, or its last step"
    assert (result.network_input.x[2:] == 9).all() and (result.network_input.c_noise[2:] == 9).all()
    assert (result.network_input.onehot[2:] == 9).all()
    assert (result.pixels[[1, 3, 4]] == 99).all()
    assert (result.broken == 3).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("step_of", [launch_step, step_reference])
def test_a_row_that_is_not_finite_is_stamped_and_no_other(bad: float, step_of):
    case = launch(rows_of(**MIXED, source=[3, 1, 0, 4]), (3, 5, 5), capacity=5)
    case.output[0, 2, 4, 4] = bad  # the source of row 2
    case.output[2] = bad  # nobody's
    result = case.through(step_of)
    assert result.broken.tolist() == [3, 3, 7, 3, 3]
    sound = launch(rows_of(**MIXED, source=[3, 1, 0, 4]), (3, 5, 5)).through(step_of)
    for row in (0, 3):
        assert torch.equal(result.x[row], sound.x[row])


@pytest.mark.parametrize("step_of", [launch_step, step_reference, step])
def test_an_empty_batch_changes_nothing(step_of):
    case = launch(rows_of([], []), (3, 4, 4))
    result = case.through(step_of)
    assert all(torch.equal(values, case.written()[name]) for name, values in result.written().items())


def test_an_unconditional_network_and_one_of_many_classes_get_their_onehot():
    for classes, label in ((0, -1), (1, 0), (1200, 1100)):
        case = launch(rows_of([2], [1], label=[label]), (1, 2, 2), classes=classes, capacity=1)
        result = case.through(launch_step)
        assert result.network_input.onehot.nonzero().tolist() == ([[0, label]] if classes else [])
    silent = launch(rows_of([2], [1], label=[-1]), (1, 2, 2), capacity=1).through(launch_step)
    assert not silent.network_input.onehot.any()


@pytest.mark.parametrize("extra", [0, 1])
def test_the_reference_equals_the_numpy_twin(extra: int):
    rows = rows_of(**MIXED, flags=[CLAMP, 0, CLAMP, 0])
    case = launch(rows, (3, 5, 6), extra=extra, capacity=4)
    result = case.through(step_reference)
    sigma = np.array([student_levels(k)[call - 1] for k, call in zip(*MIXED.values(), strict=True)], np.float32)
    seeds, calls = rows.seed.cpu().numpy().view(np.uint64), rows.call.cpu().numpy().astype(np.int64)
    sigma_next = rows.sigma_next.cpu().numpy()
    x = advance(
        case.x.cpu().numpy(), case.output.cpu().numpy(), sigma, sigma_next, seeds, calls - 1,
        SIGMA_DATA, clamp=np.array([True, False, True, False]),
    )  # fmt: skip
    more = np.flatnonzero(sigma_next)
    np.testing.assert_allclose(result.x.cpu().numpy()[more], x[more], rtol=1e-6, atol=8e-5)
    last = np.flatnonzero(sigma_next == 0)
    np.testing.assert_array_equal(result.pixels.cpu().numpy()[last], to_pixels(x[last]))
    z = latent(seeds[more], calls[more], (extra, 5, 6)) if extra else None
    scaled, c_noise = network_input(x[more], sigma_next[more], SIGMA_DATA, z)
    np.testing.assert_allclose(result.network_input.x.cpu().numpy()[more], scaled, rtol=1e-6, atol=4e-6)
    np.testing.assert_allclose(result.network_input.c_noise.cpu().numpy()[more], c_noise, rtol=1e-6)


def test_a_row_does_not_depend_on_its_company_or_its_place():
    case = launch(rows_of(**MIXED), (3, 4, 4))
    crowd = case.through(launch_step)
    for row in range(4):
        alone = launch(rows_of(**MIXED)[row : row + 1], (3, 4, 4)).through(launch_step)
        for name in ("x", "input", "c_noise", "pixels"):
            assert torch.equal(alone.written()[name][row], crowd.written()[name][row]), name


def test_buffers_that_do_not_fit_are_refused_in_a_sentence():
    case = launch(rows_of([2], [1]), (3, 4, 4))
    for step_of in (launch_step, step_reference):
        with pytest.raises(ValueError, match="must be float32"):
            step_of(case.x.double(), *_rest(case), stamp=1)
        with pytest.raises(ValueError, match="does not hold images"):
            step_of(case.x[:, :, :2], *_rest(case), stamp=1)
    with pytest.raises(ValueError, match="neither contiguous nor channels_last"):
        launch_step(case.x.transpose(2, 3), *_rest(case), stamp=1)


def _rest(case):
    return case.output, case.rows, case.network_input, case.pixels, case.broken
