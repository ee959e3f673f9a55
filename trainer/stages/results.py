"""What a run leaves for its user: the exported student, the report, and the commands that go with them."""

import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fewstep.card import file_sha256, read_card, write_atomically
from fewstep.checkpoint import load_checkpoint, save_checkpoint
from trainer import model_card, report
from trainer.journal import Done, settings_hash
from trainer.options import Order
from trainer.plan import Plan, images_seen, too_few
from trainer.run.progress import format_seconds
from trainer.stages.run import DATA, EXPORT, REPORT, STUDENT, Run

Export = Callable[[Path, Path], dict[str, Any]]  # (checkpoint folder, engine folder) -> measurements


def export_student(run: Run, export: Export) -> None:
    """Save the last stage's weights in half precision with a card that lists all stages, and export them."""
    began, out, last = time.monotonic(), run.order.out, run.recipe.stages[-1].name
    print("exporting the student, and comparing its engine with PyTorch", file=sys.stderr, flush=True)
    weights, card = load_checkpoint(out / last)
    stages = {name: asdict(done) for name, done in run.journal.stages.items() if name not in (EXPORT, REPORT)}
    totals = [done for name, done in run.journal.stages.items() if name not in (DATA, EXPORT, REPORT, "teacher")]
    training = {
        **card.training, "published_from": card.weights, "stages": stages,
        "images": sum(done.images for done in totals), "seconds": round(sum(done.seconds for done in totals), 1),
    }  # fmt: skip
    half = {name: tensor.half() for name, tensor in weights.items()}
    saved = save_checkpoint(out / STUDENT, half, replace(card, training=training))
    facts = export(out / STUDENT, out / STUDENT / "engine")
    parents = {last: run.journal.stages[last].result}
    seconds = round(time.monotonic() - began, 2)
    run.journal.stages[EXPORT] = Done(settings_hash(last), parents, saved.weights, seconds, facts=facts)
    run.journal.write()


def write_report(run: Run, planned: Plan) -> None:
    """Write OUT/report.html, and the student's README.md from its measurements."""
    began = time.monotonic()
    print("writing the report", file=sys.stderr, flush=True)
    out = run.order.out
    contents = report.Contents(
        out, run.data, planned, run.recipe, run.journal, command(run.order), serve_command(out), run.order.where
    )
    facts = report.write(contents)
    text = model_card.model_card(read_card(out / STUDENT), out.resolve().name, facts)
    write_atomically(out / STUDENT / model_card.FILE, text.encode())
    parents = {EXPORT: run.journal.stages[EXPORT].result}
    settings, seconds = settings_hash(planned.report_images), round(time.monotonic() - began, 2)
    run.journal.stages[REPORT] = Done(settings, parents, file_sha256(out / report.FILE), seconds, facts=facts)
    run.journal.write()


def command(order: Order) -> str:
    """The command that starts or continues this run."""
    options = {
        "half": order.half, "size": order.size, "network": order.network, "device": order.device,
        "seed": order.seed or None, "processes": order.processes,
    }  # fmt: skip
    given = [f"--{name} {value}" for name, value in options.items() if value is not None]
    paths = f"{shlex.quote(order.photos)} --out {shlex.quote(str(order.out))}"
    return " ".join([f"fewstep train {paths} --budget {order.budget_s:.0f}s", *given])


def serve_command(out: Path) -> str:
    return f"fewstep serve --engine {shlex.quote(str(out / STUDENT / 'engine'))}"


def ending(run: Run, planned: Plan) -> str:
    """The closing lines. A student that is not usable is not called ready."""
    seconds, out = sum(done.seconds for done in run.journal.stages.values()), run.order.out
    sentence = too_few(run.data.images.shape[1], images_seen(planned.images, run.recipe.stages))
    head = f"{out} is ready" if sentence is None else f"{out} is complete, but {sentence}"
    measuring = planned.measuring_s
    took = f"took {format_seconds(seconds + measuring)}, {format_seconds(measuring)} of it for the plan"
    return f"{head}\n{took}; the report is {out / 'report.html'}\nserve it with: {serve_command(out)}"
