"""Precision, recall and nearest neighbours on sets whose answer is known."""

import numpy as np
import pytest

from fewstep.metrics.memorisation import closest_pairs, memorisation
from fewstep.metrics.nearest import nearest, neighbour_radii, squared_distances
from fewstep.metrics.precision_recall import precision_recall


def cloud(count: int, centre: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(centre, 1, size=(count, 6)).astype(np.float32)


def test_a_set_covers_itself():
    assert precision_recall(cloud(300), cloud(300)) == (1, 1)


def test_distant_sets_cover_nothing_of_each_other():
    assert precision_recall(cloud(200), cloud(200, centre=1000)) == (0, 0)


def test_two_draws_of_one_distribution_cover_most_of_each_other():
    precision, recall = precision_recall(cloud(1000), cloud(1000, seed=1))
    assert 0.75 < precision < 1 and 0.75 < recall < 1


def test_a_missing_half_is_lost_recall_and_an_invented_half_is_lost_precision():
    both = np.concatenate([cloud(200), cloud(200, centre=1000)])
    assert precision_recall(real=both, generated=both[:200]) == (1, 0.5)
    assert precision_recall(real=both[:200], generated=both) == (0.5, 1)


def test_a_collapsed_generator_has_precision_and_no_recall():
    real = cloud(400)
    precision, recall = precision_recall(real, np.repeat(real[:1], 400, axis=0))
    assert precision == 1 and recall == 1 / 400  # only the image it repeats


def test_a_point_on_the_edge_of_a_ball_is_inside():
    line = np.arange(5.0)[:, None]  # k = 1: every radius is 1
    for position, inside in ((5.0, 1.0), (5.01, 0.0)):
        assert precision_recall(line, np.full((5, 1), position), k=1).precision == inside


def test_radii_are_those_of_a_sorted_distance_matrix_whatever_the_block():
    points = cloud(50).astype(np.float64)
    matrix = np.linalg.norm(points[:, None] - points[None], axis=2)
    expected = np.sort(matrix, axis=1)[:, 3] ** 2
    for block in (7, 1000):
        np.testing.assert_allclose(neighbour_radii(points, 3, block), expected, rtol=1e-9)
    with pytest.raises(ValueError, match="take more images"):
        neighbour_radii(points[:3], 3)


def test_squared_distances_are_never_negative():
    points = 1e4 + cloud(64)
    assert squared_distances(points, points).min() >= 0


def test_nearest_finds_what_a_full_search_finds_whatever_the_block():
    queries, references = cloud(40, seed=2), cloud(101)
    matrix = np.linalg.norm(queries[:, None] - references[None], axis=2)
    for block in (10, 4096):
        found = nearest(queries, references, block)
        np.testing.assert_array_equal(found.row, matrix.argmin(axis=1))
        np.testing.assert_allclose(found.distance, matrix.min(axis=1), rtol=1e-5)


def test_a_copy_is_at_distance_zero_even_where_float32_would_round():
    features = 1000 + cloud(50)
    assert nearest(features[:5], features).distance.tolist() == [0] * 5


def test_planted_copies_are_found_at_distance_zero():
    train = np.random.default_rng(0).integers(0, 256, size=(500, 64), dtype=np.uint8)
    fresh = np.random.default_rng(1).integers(0, 256, size=(100, 64), dtype=np.uint8)
    generated, copied = fresh.copy(), [3, 50, 77]
    generated[copied] = train[[400, 7, 499]]
    found = nearest(generated, train)
    assert closest_pairs(found, 3) == [(3, 400), (50, 7), (77, 499)]
    assert np.flatnonzero(found.distance == 0).tolist() == copied


def test_share_of_close_images_is_one_percent_for_real_ones_and_counts_copies():
    train, held_out, generated = cloud(1000), cloud(1000, seed=1), cloud(1000, seed=2)
    real = nearest(held_out, train)
    assert memorisation(real, real).share_close == pytest.approx(0.01)
    honest = memorisation(nearest(generated, train), real)
    assert honest.share_close < 0.04
    generated[:300] = train[:300]
    copying = memorisation(nearest(generated, train), real)
    assert copying.share_close == pytest.approx(0.3, abs=0.04) and copying.quantiles[0.25] == 0
    assert copying.held_out_quantiles[0.01] > 0 and copying.images == copying.held_out_images == 1000
