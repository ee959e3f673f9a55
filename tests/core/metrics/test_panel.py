"""The panel: what was announced, whose images are compared with which, and what counts as a difference."""

from dataclasses import replace

import numpy as np
import pytest

from fewstep.metrics import panel as announced
from fewstep.metrics.extractors.by_name import FASHION128_B, PIXELS, RANDOM, load_feature_net
from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.metrics.kid import kid
from fewstep.metrics.panel import METRICS, Panel, Space, compare, holm, judge, matched, paired_p, rows, seed_ranges


def test_what_was_announced_stays():
    """A change of any of these makes another panel: it wants another number, and a line in docs/quality.md."""
    assert (announced.ANNOUNCED, announced.IMAGES, announced.RANGES, announced.FIRST_SEED) == (1, 10_000, 3, 2**35)
    assert (announced.ALPHA, announced.MANIFOLD_OF, announced.CLOSE_OF) == (0.05, 2000, 1000)
    assert announced.SPACES == ("fashion128-b", "effl0-pca64", "random-pca64", "pixels-pca64")
    assert [metric.name for metric in METRICS if metric.better == "higher"] == ["precision", "recall"]
    assert [metric.name for metric in METRICS if metric.better is None] == ["close features", "close pixels"]
    assert len(METRICS) == len({metric.name for metric in METRICS}) == 17


def test_fewer_images_are_the_first_of_each_range():
    whole, some = seed_ranges(), seed_ranges(100, 2)
    assert [len(seeds) for seeds in whole] == [10_000] * 3 and not set(whole[0]) & set(whole[1])
    assert [seeds.start for seeds in some] == [seeds.start for seeds in whole[:2]]


def test_matched_images_have_the_labels_that_were_made_and_are_not_used_twice():
    labels = np.random.default_rng(0).integers(0, 3, 90)
    wanted = np.arange(30) % 3
    parts = [matched(wanted, labels, seed=0, part=part) for part in range(2)]
    for part in parts:
        np.testing.assert_array_equal(labels[part], wanted)
    assert len({*parts[0], *parts[1]}) == 60
    np.testing.assert_array_equal(matched(wanted, labels), parts[0])
    assert list(matched(wanted, labels, seed=1)) != list(parts[0])
    with pytest.raises(ValueError, match=r"real images, and 100 are wanted; judge fewer images"):
        matched(np.zeros(100, int), labels)


@pytest.fixture(scope="module")
def small(fashion_2000) -> tuple[Panel, np.ndarray, np.ndarray]:
    """A panel of 400 images, and 80 others with their labels."""
    nets = [load_feature_net(name, threads=1) for name in (FASHION128_B, RANDOM, PIXELS)]
    images, labels = fashion_2000.images[::4], fashion_2000.labels[::4]  # 500, 50 a class
    rest = np.arange(500) % 5 == 4
    real, half_a = images[~rest], fashion_2000.images[1::8]
    order = np.argsort(labels[rest] + 10 * (np.arange(100) % 10), kind="stable")  # classes in turn
    return Panel.of(nets, real, labels[~rest], half_a), images[rest][order][:80], labels[rest][order][:80]


def test_every_metric_but_that_of_missing_weights_judges_and_prefers_real_images(small):
    panel, images, labels = small
    darker = (images // 2).astype(np.uint8)
    truth, found = judge(panel, images, labels, 0, real=True), judge(panel, darker, labels, 0)
    absent = {"frechet effl0-pca64", "kid effl0-pca64"}
    assert {name for name, value in found.items() if value is None} == absent
    assert {name for name, value in truth.items() if value is None} == absent | {"close features", "close pixels"}
    for name in (
        "frechet fashion128-b",
        "frechet random-pca64",
        "frechet pixels-pca64",
        "kid pixels-pca64",
        "spectrum",
    ):
        ours, theirs = found[name], truth[name]
        assert ours is not None and theirs is not None and theirs < ours, name
    assert found["spectrum"] == pytest.approx(0.75, abs=0.06)  # half the contrast is a quarter of the power
    assert found == judge(panel, darker, labels, 0)


def test_copies_of_half_a_are_seen(small, fashion_2000):
    panel, _, labels = small
    copies, classes = fashion_2000.images[1::8], fashion_2000.labels[1::8]
    found = judge(panel, copies[matched(labels, classes)], labels, 1)
    assert found["close features"] == found["close pixels"] == 1


def test_other_crops_of_the_same_pictures_do_not_decide_what_a_copy_is(small, fashion_2000):
    panel, _, _ = small
    own = fashion_2000.images[1::8]
    nearly = own.copy()
    nearly[:, 16, 16] ^= 1  # as other crops of the same pictures would be: nearer than any other image
    nets = [panel.spaces[name].net for name in (FASHION128_B, PIXELS)]
    known = fashion_2000.labels[1::8]
    found = [
        judge(Panel.of(nets, nearly, known, own, unseen), nearly[:40], known[:40], 0) for unseen in (None, panel.real)
    ]
    assert found[0]["close pixels"] == 0 and found[1]["close pixels"] == 1
    assert found[1]["close features"] == 1


def test_a_space_measures_on_the_axes_of_the_test_images_and_in_units_of_their_spread(fashion_2000):
    net = replace(load_feature_net(PIXELS), axes=5)
    real, made = fashion_2000.images[::2], fashion_2000.images[1::2]
    space = Space.of(net, real)
    ours, theirs = space.features(made), space.reference
    assert theirs.shape == (1000, 5) and np.abs(theirs.mean(axis=0)).max() < 1e-4
    assert space.frechet(ours) == pytest.approx(frechet_distance(Moments.of(ours), Moments.of(theirs)))
    unit = np.sqrt(np.square(theirs).mean())
    assert space.kid(ours) == pytest.approx(1000 * kid(ours / unit, theirs / unit), abs=1e-3)


def test_holm_multiplies_by_the_hypotheses_that_are_left_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_ranges_are_paired_before_they_are_tested():
    ours = np.array([1.0, 2.0, 3.0])
    assert paired_p(ours, ours + np.array([0.10, 0.11, 0.09])) == pytest.approx(0.0033, abs=2e-4)  # t = 17.3, df = 2
    assert paired_p(ours, ours) == 1 and paired_p(ours, ours + 1) == 0 and paired_p(ours[:1], ours[:1] + 1) is None


def judged(offset: float, wobble: float = 0.0, **other: float | None) -> list[dict[str, float | None]]:
    noise = (0.0, wobble, -wobble)
    return [{**{metric.name: 1.0 + i + offset + noise[i] for metric in METRICS}, **other} for i in range(3)]


def test_a_comparison_says_better_worse_or_nothing_and_leaves_out_what_is_not_known():
    absent: dict[str, None] = {"kid effl0-pca64": None, "frechet effl0-pca64": None}
    found = {one.metric: one for one in compare(judged(-0.5, 1e-4, **absent), judged(0))}
    assert set(found) == {metric.name for metric in METRICS if metric.better} - set(absent)
    assert found["spectrum"].outcome == "better" and found["recall"].outcome == "worse"
    assert found["spectrum"].difference == pytest.approx(-0.5) and found["spectrum"].ratio == pytest.approx(1.5 / 2)
    p = found["spectrum"].p
    assert p is not None and found["spectrum"].p_holm == pytest.approx(13 * p)
    assert {one.outcome for one in compare(judged(-0.01, 0.5), judged(0))} == {"no difference"}
    assert {one.outcome for one in compare(judged(-1)[:1], judged(0)[:1])} == {"no difference"}


def test_rows_have_means_over_ranges_and_nothing_for_what_is_missing():
    found = {row["metric"]: row for row in rows(judged(0, 0.0, **{"kid effl0-pca64": None}))}
    assert found["recall"]["mean"] == 2 and found["recall"]["std"] == 1 and found["recall"]["better"] == "higher"
    assert found["kid effl0-pca64"]["mean"] is found["kid effl0-pca64"]["values"] is None
