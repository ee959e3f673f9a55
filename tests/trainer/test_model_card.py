"""README.md of a model: the template's sections in order, from a student's card, a teacher's, and a report."""

import json
import shlex
import subprocess
from dataclasses import replace

from fewstep.card import Card, Dataset
from trainer.model_card import model_card
from trainer.publish import publish

DATA = Dataset("earth", "ab" * 32, "public domain (NASA Blue Marble)", 36_000, 0.5)
STAGES = {
    "data": {"images": 0, "seconds": 5.0, "facts": {}},
    "teacher": {"images": 184_640, "seconds": 3480.0, "facts": {"method": "teacher"}},
    "dpdm": {"images": 38_656, "seconds": 1920.0, "facts": {"method": "dpdm"}},
}
STUDENT = Card(
    "student",
    {"resolution": 64, "channels": 3, "classes": 2, "width": 32, "mult": (1, 2, 3), "blocks": 1, "patch": 2},
    0.5, "cd" * 32, DATA, ("king's land", "sea"), {1: (2.5,), 2: (2.5, 0.25)}, parent="ef" * 32,
    training={
        "images": 38_656, "seconds": 1920.0, "precision": "bf16", "device": "cpu", "environment": {"torch": "2"},
        "stages": STAGES,
    },
)  # fmt: skip
REPORT = {"distance": {"1": 0.25, "2": 0.125, "real": 0.01}, "images": 700, "nearest": 0.101, "nearest_real": 0.099}
SECTIONS = [
    "# Model Card for earth", "## Model Details", "### Model Description", "## Uses", "### Direct Use",
    "### Out-of-Scope Use", "## Bias, Risks, and Limitations", "### Recommendations",
    "## How to Get Started with the Model", "## Training Details", "### Training Data", "### Training Procedure",
    "#### Training Hyperparameters", "#### Speeds, Sizes, Times", "## Evaluation",
    "### Testing Data, Factors & Metrics", "#### Metrics", "### Results", "## Technical Specifications",
    "### Model Architecture and Objective", "### Compute Infrastructure",
]  # fmt: skip


def headings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#")]


def test_a_students_card_has_the_sections_of_the_template_and_its_facts():
    text = model_card(STUDENT, "earth", REPORT)
    assert headings(text) == SECTIONS
    _, front, _ = text.split("---\n", 2)
    facts = dict(line.split(": ", 1) for line in front.splitlines())
    assert facts["library_name"] == "fewstep" and json.loads(facts["tags"]) == ["diffusion", "few-step", "student"]
    for fact in (
        "1 to 2 network calls an image: 64x64 RGB images", "36,000 images, public domain (NASA Blue Marble)",
        "| dpdm | dpdm | 38,656 | 32 min |", "| 2 | 2.5, 0.25 |", "| 1 | 0.25 |", "| real | 0.01 |", "700 images",
        "is 0.101 of the range", "it is 0.099", "patch 2", "`" + "ef" * 32 + "`",
    ):  # fmt: skip
        assert fact in text, fact
    assert "| data |" not in text and "None" not in text


def test_a_model_that_enlarges_is_asked_with_a_picture(tmp_path):
    low = {"name": "low", "shape": [3, 16, 16], "low": -1.0, "high": 1.0}
    card = replace(STUDENT, network={**STUDENT.network, "classes": 0, "conditions": [low]}, class_names=())
    text = model_card(card, "earth-x4")
    assert "64x64 RGB images, each enlarged from 16x16." in text and "pipeline_tag: image-to-image" in text
    [line] = [line for line in text.splitlines() if line.startswith("curl ")]
    (tmp_path / "small.png").write_bytes(b"PNG")
    said = subprocess.run(["sh", "-c", line.replace("curl -d", "printf %s").partition(" http")[0]], cwd=tmp_path,
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert json.loads(said.stdout) == {"steps": 2, "seed": 7, "upscale": "UE5H"}


def test_the_command_that_asks_for_an_image_survives_quotes_in_a_class_name():
    [line] = [line for line in model_card(STUDENT, "earth").splitlines() if line.startswith("curl ")]
    asked = json.loads(shlex.split(line)[2])
    assert asked == {"steps": 2, "seed": 7, "label": "king's land"}


def test_a_card_without_a_report_says_that_nothing_was_measured():
    text = model_card(STUDENT, "earth")
    assert headings(text) == SECTIONS
    assert "was not measured here" in text and "None were measured with this card." in text


def test_publishing_writes_the_card_of_a_teacher(tiny_teacher, tmp_path):
    publish(tiny_teacher, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith("---\nlicense: other\n") and "# Model Card for out" in text
    assert "A diffusion model (EDM) of" in text and "noise levels" not in text
