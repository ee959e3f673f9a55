"""The panel: which metrics judge a release, on how many images and which seeds, announced before the runs they judge.

Nothing is chosen by these metrics: no level, checkpoint, margin, weight or end of a run. Choices use the teacher's own
features and half a of the training images (`trainer.data.sources.selection.halved`). The networks behind the metrics
were trained on half b, on other images, or not at all, and every distance is to the test images. Numbers compare only
at equal N, so the same figure for real images of half a, with the labels of the generated ones, stands beside each:
the floor. A gain counts when no metric of the panel gets worse beyond noise (`compare`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fewstep.metrics.extractors.by_name import EFFL0, FASHION128_B, PIXELS, RANDOM, FeatureNet
from fewstep.metrics.frechet import Moments, frechet_distance
from fewstep.metrics.kid import mean_between, mean_within
from fewstep.metrics.memorisation import memorisation
from fewstep.metrics.nearest import Nearest, nearest
from fewstep.metrics.pca import Axes
from fewstep.metrics.precision_recall import precision_recall
from fewstep.metrics.spectrum import spectrum_deviation

Pixels = NDArray[np.uint8]  # [N, H, W, C]
Labels = NDArray[np.integer]  # [N]
Features = NDArray[np.float32]  # [N, d]

# Announced on 2026-11-29, before any run that was trained on half a alone.
ANNOUNCED = 1  # the version of what follows; a change of any of it makes another panel
IMAGES = 10_000  # N of every metric, per range of seeds
RANGES = 3
FIRST_SEED = 2**35  # of the first range; nothing is trained on or searched with seeds from here to 2^36
SPACES = (FASHION128_B, EFFL0, RANDOM, PIXELS)
MANIFOLD_OF = 2_000  # images a side behind precision and recall: the first of each range
CLOSE_OF = 1_000  # images a side whose nearest training images are looked up: likewise
ALPHA = 0.05  # of a comparison, over all its metrics (Holm 1979)

MANIFOLD = f"{FASHION128_B} or, for images of another shape, {EFFL0}"  # behind precision, recall and copies

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Metric:
    """One row of the panel."""

    name: str
    better: Better | None  # None: reported, and in no comparison
    says: str


METRICS = (
    *(Metric(f"frechet {space}", "lower", f"Fréchet distance, {space}") for space in SPACES),
    *(Metric(f"kid {space}", "lower", f"1000 x unbiased kernel distance, {space}") for space in SPACES),
    Metric("auc cnn 8 bits", "lower", "AUC of a small CNN that tells generated from real images"),
    Metric("auc cnn 16 levels", "lower", "the same, both sides cut to 16 gray levels"),
    Metric("auc ridge 8 bits", "lower", "AUC of ridge regression on random-convolution features"),
    Metric("auc ridge 16 levels", "lower", "the same, both sides cut to 16 gray levels"),
    Metric("spectrum", "lower", "largest relative deviation of the power spectrum, radius 1 to side / 2 - 1"),
    Metric("precision", "higher", f"share of images inside the real manifold, {MANIFOLD}"),
    Metric("recall", "higher", f"share of real images inside the generated manifold, {MANIFOLD}"),
    # Real images are at 0.01 by definition; fewer is no merit, and many are copies.
    Metric("close features", None, f"share nearer to an image of half a than 99 % of test images, {MANIFOLD}"),
    Metric("close pixels", None, "the same in pixels"),
)  # fmt: skip


def seed_ranges(images: int = IMAGES, ranges: int = RANGES) -> list[range]:
    """The seeds that are judged. A run of fewer images takes the first of each range of the whole panel."""
    starts = [FIRST_SEED + index * IMAGES for index in range(ranges)]
    return [range(start, start + images) for start in starts]


@dataclass(frozen=True)
class Space:
    """The features of one network, on principal axes where they are many, and the test images in them."""

    net: FeatureNet
    axes: Axes | None
    reference: Features
    moments: Moments
    scale: float  # root mean square of a coordinate of the reference: kernel distances are taken in units of it
    within: float  # the kernel's mean within the reference

    @staticmethod
    def of(net: FeatureNet, real: Pixels) -> "Space":
        """Axes, moments and kernel of real images uint8 [N, H, W, C]."""
        raw = features(net, real)
        axes = Axes.of(raw, min(net.axes, *raw.shape)) if net.axes else None
        reference = axes.project(raw) if axes else raw
        scale = float(np.sqrt(np.square(reference, dtype=np.float64).mean()))
        return Space(net, axes, reference, Moments.of(reference), scale, mean_within(reference / scale))

    def features(self, pixels: Pixels) -> Features:
        """uint8 [N, H, W, C] -> [N, d]."""
        found = features(self.net, pixels)
        return self.axes.project(found) if self.axes else found

    def frechet(self, found: Features) -> float:
        return frechet_distance(Moments.of(found), self.moments)

    def kid(self, found: Features) -> float:
        """Squared, times 1000, as KIDs are usually given."""
        scaled, real = found / self.scale, self.reference / self.scale
        return 1000 * (mean_within(scaled) + self.within - 2 * mean_between(scaled, real))


def features(net: FeatureNet, pixels: Pixels, batch: int = 250) -> Features:
    """What a network sees of uint8 [N, H, W, C], in batches: [N, d]."""
    return np.concatenate([net(part)[0] for part in np.array_split(pixels, -(-len(pixels) // batch))])


@dataclass(frozen=True)
class Copies:
    """Images of half a as vectors, in pixels or in features, and how near test images are to them."""

    train: NDArray  # [N, d]
    held_out: Nearest

    @staticmethod
    def of(train: NDArray, held_out: NDArray) -> "Copies":
        return Copies(train, nearest(held_out, train))

    def share_close(self, generated: NDArray) -> float:
        return memorisation(nearest(generated, self.train), self.held_out).share_close


@dataclass(frozen=True)
class Panel:
    """The networks of the panel, the test images that everything is compared with, and half a."""

    spaces: Mapping[str, Space]  # by name; one whose weights are missing is left out, and its rows are empty
    real: Pixels
    real_labels: Labels
    in_pixels: Copies
    in_features: Copies | None

    @staticmethod
    def of(
        nets: Sequence[FeatureNet], real: Pixels, real_labels: Labels, half_a: Pixels, unseen: Pixels | None = None
    ) -> "Panel":
        """real, half_a, unseen: uint8 [N, H, W, C].

        unseen: images that have nothing in common with those of half a, where `real` are other cuts of the same
        pictures. How near they are to half a decides what counts as a copy. None: `real` themselves.
        """
        spaces = {net.name: Space.of(net, real) for net in nets}
        others = real if unseen is None else unseen
        few = others[np.random.default_rng(0).permutation(len(others))[:CLOSE_OF]]
        space = manifold(spaces)
        in_features = Copies.of(space.features(half_a), space.features(few)) if space else None
        return Panel(spaces, real, real_labels, Copies.of(flat(half_a), flat(few)), in_features)


def manifold(spaces: Mapping[str, Space]) -> Space | None:
    """The space of precision, recall and copies."""
    return spaces.get(FASHION128_B) or spaces.get(EFFL0)


def flat(pixels: Pixels) -> NDArray[np.uint8]:
    return pixels.reshape(len(pixels), -1)


def matched(wanted: Labels, labels: Labels, seed: int = 0, part: int = 0) -> NDArray[np.int64]:
    """Rows of a set with labels [N] that have the labels `wanted` [n], one for one, without repetition.

    seed: of their order. part: another one, other rows; parts of one seed for the same labels do not overlap. Raises
    ValueError when a class has too few images.
    """
    rows = np.empty(len(wanted), np.int64)
    for label in np.unique(wanted):
        places = np.flatnonzero(wanted == label)
        members = np.random.default_rng([seed, int(label) + 1]).permutation(np.flatnonzero(labels == label))
        first = part * len(places)
        if first + len(places) > len(members):
            raise ValueError(
                f"class {label} has {len(members)} real images, and {first + len(places)} are wanted; "
                "judge fewer images: --images"
            )
        rows[places] = members[first : first + len(places)]
    return rows


def judge(panel: Panel, pixels: Pixels, labels: Labels, number: int, real: bool = False) -> dict[str, float | None]:
    """Every metric of one range of images uint8 [N, H, W, C] that were made for labels [N]; None where it is not known.

    number: of the range, from 0; it seeds the two-sample tests and the choice of as many test images, so that several
    ranges are several seeds of them. real: the images are of half a itself, so they are not searched for copies of it.
    """
    from fewstep.metrics.two_sample import cnn_auc, in_16_levels, ridge_auc  # needs torch

    chosen = matched(labels, panel.real_labels, seed=number)
    beside = panel.real[chosen]
    found: dict[str, float | None] = dict.fromkeys(metric.name for metric in METRICS)
    seen = {name: space.features(pixels) for name, space in panel.spaces.items()}
    for name, space in panel.spaces.items():
        found[f"frechet {name}"], found[f"kid {name}"] = space.frechet(seen[name]), space.kid(seen[name])
    for name, sides in {"8 bits": (beside, pixels), "16 levels": (in_16_levels(beside), in_16_levels(pixels))}.items():
        found[f"auc cnn {name}"] = cnn_auc(*sides, seed=number)
        if space := panel.spaces.get(RANDOM):
            found[f"auc ridge {name}"] = ridge_auc(*(features(space.net, side) for side in sides), seed=number)
    found["spectrum"] = spectrum_deviation(pixels, panel.real)
    if space := manifold(panel.spaces):
        truth, ours = space.reference[chosen], seen[space.net.name]
        found["precision"], found["recall"] = precision_recall(truth[:MANIFOLD_OF], ours[:MANIFOLD_OF])
        if panel.in_features and not real:
            found["close features"] = panel.in_features.share_close(ours[:CLOSE_OF])
    if not real:
        found["close pixels"] = panel.in_pixels.share_close(flat(pixels[:CLOSE_OF]))
    return found


def rows(judged: Sequence[Mapping[str, float | None]]) -> list[dict[str, Any]]:
    """One row per metric over the ranges: its name, which way is better, the values, their mean and deviation."""
    result = []
    for metric in METRICS:
        values = [one[metric.name] for one in judged]
        known = [value for value in values if value is not None]
        result.append({
            "metric": metric.name, "better": metric.better, "values": values if known else None,
            "mean": float(np.mean(known)) if known else None,
            "std": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        })  # fmt: skip
    return result


@dataclass(frozen=True)
class Comparison:
    """One metric of two samplers, paired over the ranges."""

    metric: str
    ratio: float | None  # of the means; None where the second is 0
    difference: float  # mean of first - second
    p: float | None  # two-sided, of a paired t-test; None of a single range
    p_holm: float | None  # corrected for all metrics of the comparison
    outcome: Literal["better", "worse", "no difference"]  # of the first


def compare(
    first: Sequence[Mapping[str, float | None]], second: Sequence[Mapping[str, float | None]]
) -> list[Comparison]:
    """What `judge` said of two samplers on the same ranges, metric by metric; what neither knows is left out.

    An outcome other than "no difference" has a Holm-corrected p below ALPHA. Three ranges leave two degrees of freedom:
    a difference has to be large beside its spread over the ranges to count.
    """
    known: list[tuple[Metric, NDArray[np.float64], NDArray[np.float64]]] = []
    for metric in METRICS:
        pair = [[one[metric.name] for one in side] for side in (first, second)]
        if metric.better and None not in (*pair[0], *pair[1]):
            known.append((metric, np.array(pair[0], float), np.array(pair[1], float)))
    raw = [paired_p(ours, theirs) for _, ours, theirs in known]
    corrected = holm([p for p in raw if p is not None])
    adjusted = iter(corrected)
    result = []
    for (metric, ours, theirs), p in zip(known, raw, strict=True):
        p_holm = None if p is None else next(adjusted)
        difference = float((ours - theirs).mean())
        ratio = float(ours.mean() / theirs.mean()) if theirs.mean() else None
        outcome: Literal["better", "worse", "no difference"] = "no difference"
        if p_holm is not None and p_holm < ALPHA:
            outcome = "better" if (difference < 0) == (metric.better == "lower") else "worse"
        result.append(Comparison(metric.name, ratio, difference, p, p_holm, outcome))
    return result


def paired_p(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Two-sided p of a paired t-test over ranges [r]; None of one range, 1 of equal values."""
    if len(first) < 2:
        return None
    if np.array_equal(first, second):
        return 1.0
    differences = first - second
    if np.ptp(differences) == 0:  # the t-test would divide by a spread of zero
        return 0.0
    from scipy import stats  # slow to load

    return float(stats.ttest_rel(first, second).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Step-down correction of p-values for their number (Holm 1979); the order stays."""
    order = np.argsort(p, kind="stable")
    corrected, largest = [0.0] * len(p), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - place) * p[index]))
        corrected[index] = largest
    return corrected
