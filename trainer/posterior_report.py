"""What a posterior's run leaves for people: sample sheets and OUT/report.html."""

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from fewstep.card import write_atomically
from fewstep.pixels import Pixels, encode, grid
from trainer.curves import curves, svg
from trainer.methods.rtb import BEHAVIOURS
from trainer.report import FILE, STYLE, section, sheets, table
from trainer.run.sheet import add_titles

MONITORS = {
    "log_reward": "E[log r] of the posterior's images",
    "prior_log_reward": "E[log r] of the prior's images",
    "elbo": "ELBO: at most log Z",
    "log_z": "log Z, by importance weights of the posterior's trajectories",
    "log_z_prior": "log Z, as the mean of r over the prior's images",
    "eubo": "EUBO: at least log Z, up to the error of weighting",
    "ess": "effective sample size of the posterior's trajectories, as a share",
    "prior_ess": "the same of the prior's images under weights r",
}


@dataclass(frozen=True)
class Sheet:
    rows: list[Pixels]  # each [columns, H, W, C]
    names: list[str]  # of the rows
    columns: list[str]  # names, or none


def write_sheet(folder: Path, drawn: Sheet, images: int) -> None:
    """samples/IMAGES.png: the same seeds in every row."""
    pixels = np.concatenate(drawn.rows)
    picture = grid(pixels, len(drawn.rows[0]))
    title = f"the same seeds, {images:,} trajectories trained on"
    page = add_titles(picture, pixels.shape[1], title, drawn.columns, drawn.names)
    write_atomically(folder / "samples" / f"{images:09d}.png", encode(page, "png"))


def write_report(out: Path, command: str, reward: str, monitors: dict[str, float]) -> None:
    """The page, and the monitors as JSON in OUT/monitors.json."""
    write_atomically(out / "monitors.json", (json.dumps(monitors, indent=2) + "\n").encode())
    logged = curves(out)
    shares = [(name, f"{logged[f'share_{name}'][-1][1]:.2f}") for name in BEHAVIOURS if f"share_{name}" in logged]
    drawn = "".join(
        f"<figure>{svg(points)}<figcaption>{escape(name)}</figcaption></figure>" for name, points in logged.items()
    )
    gap = monitors["eubo"] - monitors["elbo"]
    parts = [
        f"<h1>Posterior: {escape(reward)}</h1>",
        section("Images", sheets(out.parent, [out.name], last=True)),
        section(
            "Monitors",
            table(("", "nats, or a share"), [(words, f"{monitors[name]:.3f}") for name, words in MONITORS.items()])
            + f"<p>log Z lies between ELBO and EUBO; they are {gap:.2f} nats apart. A small gap and a large effective "
            "sample size say that the samples are the posterior's. A high E[log r] alone does not.</p>",
        ),
        section("Behaviours", table(("trajectories of", "share of the updates"), shares)),
        section("Curves", f'<div class="row">{drawn or "too short for a curve"}</div>'),
        section("Sheets over time", sheets(out.parent, [out.name])),
        section("Command", f"<pre>{escape(command)}</pre>"),
    ]
    head = '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>fewstep posterior</title>'
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    page = f"{head}{viewport}<style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    write_atomically(out / FILE, page.encode())
