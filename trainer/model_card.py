"""A model's README.md, by Hugging Face's model card template, from its card and the measurements of its report."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from fewstep.card import Card
from fewstep.conditions import LOW, find
from trainer.run.progress import format_seconds

FILE = "README.md"
SHOWN = ("family", "width", "mult", "blocks", "patch", "style", "precond")  # of a network's configuration


PICTURE = "small.png"  # in a command, where the shell fills in its content


def model_card(card: Card, name: str, report: Mapping[str, Any] | None = None) -> str:
    """The text. report: what `trainer.report.write` returned, if the model has a report."""
    sections = [
        f"{_metadata(card)}\n# Model Card for {name}\n\n{_summary(card)}",
        "## Model Details\n\n### Model Description",
        _description(card),
        "## Uses\n\n### Direct Use",
        _use(card),
        "### Out-of-Scope Use",
        _out_of_scope(card),
        "## Bias, Risks, and Limitations",
        _limitations(card, report),
        "## How to Get Started with the Model",
        _get_started(card),
        "## Training Details\n\n### Training Data",
        _data(card),
        "### Training Procedure\n\n#### Training Hyperparameters",
        _procedure(card),
        "#### Speeds, Sizes, Times",
        _times(card),
        "## Evaluation\n\n### Testing Data, Factors & Metrics\n\n#### Metrics",
        _metrics(report),
        "### Results",
        _results(card, report),
        "## Technical Specifications\n\n### Model Architecture and Objective",
        _architecture(card),
        "### Compute Infrastructure",
        _machine(card),
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(card: Card) -> str:
    """YAML; a JSON string is a YAML string."""
    lines = [
        "license: other",
        "license_name: that-of-the-training-images",
        "library_name: fewstep",
        f"pipeline_tag: {'image-to-image' if _given(card) else 'unconditional-image-generation'}",
        f"tags: {json.dumps(['diffusion', 'few-step', card.role])}",
    ]
    return "\n".join(["---", *lines, "---", ""])


def _image(card: Card) -> str:
    channels, side, _ = card.image_shape
    given = f", each enlarged from {_given(card)}" if _given(card) else ""
    return f"{side}x{side} {'gray' if channels == 1 else 'RGB'} images{given}"


def _given(card: Card) -> str:
    """The size of the image that the model enlarges; "": it enlarges none."""
    low = find(card.conditions, LOW)
    return f"{low.shape[2]}x{low.shape[1]}" if low else ""


def _use(card: Card) -> str:
    if _given(card):
        return (
            f"Pictures like those of {card.dataset.name}, enlarged. The means of squares of the result are the given "
            "picture; each seed fills in other detail."
        )
    return f"Images like those of {card.dataset.name}: more of their kind, each one given by a seed."


def _summary(card: Card) -> str:
    if card.role == "teacher":
        return f"A diffusion model (EDM) of {_image(card)}, for solvers and for distillation into a student."
    return f"A student for {_calls(card)} network calls an image: {_image(card)}."


def _calls(card: Card) -> str:
    counts = sorted(card.levels)
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _description(card: Card) -> str:
    names = f"{len(card.class_names)}: {', '.join(card.class_names)}" if card.class_names else "none"
    lines = [
        f"- **Model type:** {card.role}, a U-Net inside EDM's preconditioning",
        f"- **Classes:** {names}",
        f"- **License:** not stated for the weights; the training images: {card.dataset.licence}",
    ]
    if card.parent:
        lines.append(f"- **Finetuned from model:** distilled from the teacher with the SHA-256 `{card.parent}`")
    return "\n".join(lines)


def _out_of_scope(card: Card) -> str:
    side = card.image_shape[1]
    return f"Images from a text, images of another size than {side}x{side}, and evidence of anything: no image is real."


def _limitations(card: Card, report: Mapping[str, Any] | None) -> str:
    lines = [f"It knows nothing but {card.dataset.images:,} images of {card.dataset.name}, with their gaps and biases."]
    if report and "nearest" in report:
        near, real = report["nearest"], report["nearest_real"]
        searched = report.get("searched", card.dataset.images)  # reports of earlier versions do not say it
        among = f" of {searched:,} that were looked at" if searched < card.dataset.images else ""
        lines.append(
            f"The median distance from an image of four calls to the nearest training image{among} is {near:.3f} of "
            f"the range from black to white; from a training image to another one it is {real:.3f}. Much smaller would "
            "be memorisation."
        )
    else:
        lines.append("Whether it has memorised training images was not measured here.")
    lines.append(
        "### Recommendations\n\nLook at its images beside their nearest training images before you publish them."
    )
    return "\n\n".join(lines)


def _get_started(card: Card) -> str:
    if card.role == "teacher":
        return _shell("fewstep trainer student --recipe NAME --teacher THIS-FOLDER --out STUDENT")
    wanted: dict[str, Any] = {"steps": min(4, max(card.levels)), "seed": 7}
    if card.class_names:
        wanted["label"] = card.class_names[0]
    if _given(card):
        wanted["upscale"] = PICTURE
    asked = shlex.quote(json.dumps(wanted)).replace(PICTURE, "'\"$(base64 -w 0 small.png)\"'")
    return _shell(
        "fewstep export --model THIS-FOLDER --out THIS-FOLDER/engine    # where there is none",
        "fewstep serve --engine THIS-FOLDER/engine",
        f"curl -d {asked} http://127.0.0.1:8000/v1/generate > image.png",
    )


def _shell(*lines: str) -> str:
    return "\n".join(["```sh", *lines, "```"])


def _data(card: Card) -> str:
    data = card.dataset
    return f"{data.name}: {data.images:,} images, {data.licence}. SHA-256 of pixels and labels: `{data.sha256}`."


def _procedure(card: Card) -> str:
    stages = card.training.get("stages", {})
    trained = {name: done for name, done in stages.items() if done["images"]}
    if not trained:
        method = card.training.get("method", "EDM" if card.role == "teacher" else "unknown")
        return f"Method {method}, {card.training.get('precision', 'fp32')}; all settings are in `card.json`."
    rows = [
        f"| {name} | {done['facts'].get('method', '')} | {done['images']:,} | {format_seconds(done['seconds'])} |"
        for name, done in trained.items()
    ]
    table = "\n".join(["| stage | method | images | time |", "|---|---|--:|--:|", *rows])
    return f"{table}\n\nPrecision {card.training.get('precision', 'fp32')}; all settings are in `card.json`."


def _times(card: Card) -> str:
    training = card.training
    if "images" not in training or "seconds" not in training:
        return "Not recorded."
    what = "All stages but the teacher's: " if "stages" in training else ""
    return f"{what}{training['images']:,} training images in {format_seconds(training['seconds'])}."


def _metrics(report: Mapping[str, Any] | None) -> str:
    if not report or not report.get("distance"):
        return "None were measured with this card."
    return (
        f"Fréchet distance of {report['images']:,} images in the features of this run's teacher, to one half of the "
        "training images; `real` is the other half. It compares step counts of this run, nothing else."
    )


def _results(card: Card, report: Mapping[str, Any] | None) -> str:
    if report and report.get("distance"):
        found = report["distance"]
        rows = [f"| {calls} | {value:.4g} |" for calls, value in found.items()]
        return "\n".join(["| calls | distance |", "|---|--:|", *rows])
    if card.metrics:
        return f"```json\n{json.dumps(card.metrics, indent=2)}\n```"
    return "None."


def _architecture(card: Card) -> str:
    network = {name: value for name, value in card.network.items() if name in SHOWN}
    facts = ", ".join(f"{name} {value}" for name, value in network.items())
    lists = "".join(
        f"\n| {calls} | {', '.join(f'{sigma:.4g}' for sigma in card.levels[calls])} |" for calls in sorted(card.levels)
    )
    levels = f"\n\n| calls | noise levels |\n|--:|---|{lists}" if lists else ""
    return f"{facts}; sigma_data {card.sigma_data:.4f}.{levels}"


def _machine(card: Card) -> str:
    training = card.training
    software = ", ".join(f"{name} {version}" for name, version in training.get("environment", {}).items())
    return f"Device {training.get('device', 'not recorded')}. Software: {software or 'not recorded'}."
