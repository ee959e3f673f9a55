"""Files of earlier versions are read under today's names; a plan of other stages is refused."""

from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from fewstep.card import CheckpointError, read_card
from fewstep.outputs import CLASSIFIER_FILE, STATE_FILE
from tests.trainer.tiny import equal
from trainer.critics.classifier import ClassifierConfig, NoisyClassifier, load_classifier, save_classifier
from trainer.journal import Journal
from trainer.plan import Plan
from trainer.run.ema import FOLDER, Averages, stored_before
from trainer.run.older import SETTINGS, current_settings
from trainer.run.state import Parts, load_state, settle_state, stage_state
from trainer.settings import AdversarialConfig, ProgressiveConfig
from trainer.stages.folder import check_planned_stages

ROOT = Path(__file__).parents[3]
CONFIG = ClassifierConfig(16, 1, 10, 0.5, width=8, features=16)


def with_earlier_names(path: Path) -> None:
    """Write a safetensors file again with its layers `level_embedding` called `told`."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name.replace("level_embedding", "told"): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert any("told" in name for name in tensors)
    save_file(tensors, path, metadata)


def classifier(seed: int) -> NoisyClassifier:
    torch.manual_seed(seed)
    network = NoisyClassifier(CONFIG)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network


@pytest.mark.parametrize(("method", "config"), [("adversarial", AdversarialConfig), ("progressive", ProgressiveConfig)])
def test_every_earlier_name_of_a_setting_becomes_a_field(method, config):
    names = {field.name for field in fields(config)}
    assert set(SETTINGS[method].values()) <= names and not names & set(SETTINGS[method])
    stored = {"method": method, **dict.fromkeys(SETTINGS[method], 0.25), "lists": []}
    expected = {"method": method, **dict.fromkeys(SETTINGS[method].values(), 0.25), "lists": []}
    assert current_settings(stored) == expected


def test_settings_of_the_shipped_student_are_read():
    stored = read_card(ROOT / "models" / "fashion").training
    settings = current_settings(stored)
    assert (settings["trained_steps"], settings["imitation_share"]) == (stored["play"], stored["keep"]) == ("rest", 0.5)


def test_the_objective_and_other_methods_settings():
    stored = {"method": "dpdm", "objective": "posterior", "weight": "l1"}
    assert current_settings(stored) == stored | {"objective": "ncvsd"}
    assert current_settings({"recipe": "digits"}) == {"recipe": "digits"}


def test_an_earlier_classifier_is_read(tmp_path):
    network = classifier(1)
    save_classifier(tmp_path, network, {})
    with_earlier_names(tmp_path / CLASSIFIER_FILE)
    assert equal(load_classifier(tmp_path), network.state_dict())


def test_an_earlier_state_and_earlier_averages_are_read(tmp_path):
    network, other = classifier(1), classifier(2)
    (tmp_path / CLASSIFIER_FILE).write_bytes(b"before")
    stage_state(tmp_path, Parts({"classifier": network}, {}, torch.Generator()), {"identity": {}})
    (tmp_path / CLASSIFIER_FILE).write_bytes(b"after")
    settle_state(tmp_path)
    with_earlier_names(tmp_path / STATE_FILE)
    load_state(tmp_path, Parts({"classifier": other}, {}, torch.Generator()))
    assert equal(other, network.state_dict())

    Averages(network).store(tmp_path, 10)
    (path,) = (tmp_path / FOLDER).glob("*.safetensors")
    with_earlier_names(path)
    for _, tensors in stored_before(tmp_path, 20):
        assert tensors.keys() == dict(network.named_parameters()).keys()


def test_a_run_that_was_planned_by_another_version_is_refused(tmp_path):
    stages = {"teacher": 64, "dpdm": 64}
    seconds = dict.fromkeys(stages, 10.0)
    plan = Plan(
        60.0, "photos", "small", "cpu", "fp32", False, 100, stages, stages, seconds, seconds, seconds, 5.0, 32, 1, 1
    )
    journal = Journal(tmp_path, plan=asdict(plan))
    journal.write()
    check_planned_stages(journal := Journal.read(tmp_path))
    journal.plan["images"]["mended"] = 64
    with pytest.raises(CheckpointError, match="with the recipe photos and the stages teacher, dpdm, mended; choose"):
        check_planned_stages(journal)
    for changed, said in (
        ({"recipe": "pictures"}, "with the recipe pictures and the stages teacher"),
        ({"rehearsed": True}, "planned by another version .*'rehearsed'"),
        ({"budget_s": "2h"}, "planned by another version .*Expected `float`"),
    ):
        with pytest.raises(CheckpointError, match=said):
            check_planned_stages(Journal(tmp_path, plan={**asdict(plan), **changed}))
