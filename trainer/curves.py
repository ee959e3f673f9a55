"""What a training run logged, read back and drawn as SVG."""

import math
from collections.abc import Sequence
from pathlib import Path

Points = list[tuple[float, float]]  # images seen, value

WIDTH, HEIGHT, LEFT, BELOW = 360, 160, 52, 18
DRAWN = 300  # points of a curve, at most


def curves(folder: Path) -> dict[str, Points]:
    """All scalars logged in `folder`/events, by name. Of values that a resumed run logged again, the later count."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not (folder / "events").is_dir():
        return {}
    log = EventAccumulator(str(folder / "events"), size_guidance={"scalars": 0}).Reload()
    found: dict[str, Points] = {}
    for tag in log.Tags()["scalars"]:
        points = sorted({event.step: event.value for event in log.Scalars(tag)}.items())
        if len(points) > 1:
            found[tag] = [(float(step), value) for step, value in points]
    return found


def svg(points: Sequence[tuple[float, float]]) -> str:
    """A curve over images seen, labelled with its range; logarithmic if values span more than a factor of ten."""
    every = math.ceil(len(points) / DRAWN)
    shown = [point for point in points[::every] if math.isfinite(point[1])]
    if len(shown) < 2:
        return ""
    values = [value for _, value in shown]
    logarithmic = min(values) > 0 and max(values) > 10 * min(values)
    scale = math.log if logarithmic else float
    low, high = scale(min(values)), scale(max(values))
    first, last = shown[0][0], shown[-1][0]
    across = lambda x: LEFT + (x - first) / max(last - first, 1e-12) * (WIDTH - LEFT - 6)  # noqa: E731
    up = lambda y: 8 + (1 - (scale(y) - low) / max(high - low, 1e-12)) * (HEIGHT - BELOW - 12)  # noqa: E731
    path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in shown)
    text = lambda x, y, words, end: f'<text x="{x}" y="{y}" text-anchor="{end}">{words}</text>'  # noqa: E731
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f'<polyline fill="none" stroke="var(--mark)" stroke-width="1.5" points="{path}"/>'
        + text(LEFT - 4, 14, f"{max(values):.3g}", "end")
        + text(LEFT - 4, HEIGHT - BELOW, f"{min(values):.3g}", "end")
        + text(LEFT, HEIGHT - 3, f"{first:,.0f}", "start")
        + text(WIDTH - 6, HEIGHT - 3, f"{last:,.0f} images", "end")
        + "</svg>"
    )
