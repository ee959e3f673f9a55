"""From fields to an ImageRequest: every sentence, and every range."""

import unicodedata
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from fewstep.editing import calls_for
from fewstep.noise import random_labels
from server.scheduler.refusal import Refusal
from server.scheduler.validate import (
    DRAWN_SEED_LIMIT,
    SEED_LIMIT,
    check_request,
    choose_model,
    image_request,
    nearest_class,
)
from tests.server.fakes import CLASSES, LEVELS, manifest

MODEL = manifest()
CLOTHES = replace(manifest(), class_names=("Élan", "Straße", "ὈΔΥΣΣΕΎΣ"))
MANY = replace(manifest("many"), classes=1_000, class_names=tuple(f"Größe {index}\n" for index in range(1_000)))


def refusal(*, model: Any = MODEL, **fields: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        image_request(model, **fields)
    return caught.value


def test_absent_fields_have_defaults_and_a_drawn_seed_fits_javascript():
    request = image_request(MODEL)
    assert (request.model, request.steps, request.sigmas, request.images) == ("tiny", 4, LEVELS[4], 1)
    assert 0 <= request.seeds[0] < DRAWN_SEED_LIMIT
    assert image_request(MODEL).seeds != request.seeds


def test_absent_labels_are_drawn_from_the_seed_of_each_image():
    request = image_request(MODEL, seed=5, images=20)
    assert request.seeds == tuple(range(5, 25))
    assert list(request.labels) == random_labels(range(5, 25), CLASSES).tolist()
    assert set(request.labels) == set(range(CLASSES))


def test_the_last_seed_of_a_request_can_be_asked_for():
    assert image_request(MODEL, seed=SEED_LIMIT - 1).seeds == (SEED_LIMIT - 1,)
    assert image_request(MODEL, seed=SEED_LIMIT - 2, images=2).seeds[-1] == SEED_LIMIT - 1
    error = refusal(seed=SEED_LIMIT - 1, images=2)
    assert (error.code, error.param) == ("out_of_range", "seed") and f"at most {SEED_LIMIT - 2} " in error.message


@pytest.mark.parametrize("label", ["Ankle boot", "ankle BOOT", " ankle boot\n", 1])
def test_a_label_is_an_index_or_a_name_in_any_case(label: int | str):
    assert image_request(MODEL, label=label, images=2).labels == (1, 1)


@pytest.mark.parametrize(
    ("label", "index"), [("E\u0301lan", 0), ("élan", 0), ("STRASSE", 1), ("ὀδυσσεύς", 2), ("ὀδυσσεύσ", 2)]
)
def test_a_name_is_found_in_any_normal_form(label: str, index: int):
    assert image_request(CLOTHES, label=label).labels == (index,)


def test_of_two_classes_of_one_name_the_first_is_found():
    assert image_request(replace(MODEL, class_names=("Bag", "BAG", "Coat")), label="bag").labels == (0,)


def test_a_text_that_is_longer_than_every_class_name_is_not_normalized(monkeypatch: pytest.MonkeyPatch):
    """Unicode's canonical order takes quadratic time: a text of 60 kB took 1.3 s."""
    normalize, lengths = unicodedata.normalize, []

    def watched(form: Any, text: str) -> str:
        lengths.append(len(text))
        return normalize(form, text)

    assert image_request(CLOTHES, label=" STRASSE ").labels == (1,)
    monkeypatch.setattr(unicodedata, "normalize", watched)
    assert refusal(model=CLOTHES, label="a" + "\u0301\u0316" * 1_000).code == "unknown_label"
    assert max(lengths, default=0) < 100


def test_a_model_without_classes_has_no_labels():
    plain = manifest("plain", classes=0)
    assert image_request(plain, images=2).labels == (-1, -1)
    assert "plain has no classes" in refusal(model=plain, label=0).message


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
def test_strength_leaves_the_last_levels(strength: float):
    request = image_request(MODEL, steps=4, strength=strength)
    assert request.sigmas == LEVELS[4][-calls_for(strength, 4) :] and request.steps == 4


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"steps": 0}, "steps", "from 1 to 8, not 0"),
        ({"steps": 9}, "steps", "from 1 to 8, not 9"),
        ({"seed": -1}, "seed", f"from 0 to {SEED_LIMIT - 1}, not -1"),
        ({"seed": SEED_LIMIT}, "seed", f"not {SEED_LIMIT}"),
        ({"images": 0}, "n", "at least 1, not 0"),
        ({"label": CLASSES}, "label", "from 0 to 2 or one of Bag, Ankle boot, Coat"),
        ({"label": -1}, "label", "no class -1"),
        ({"label": ""}, "label", 'no class ""'),
        ({"label": "\ud800"}, "label", r"\ud800"),
        ({"label": "x" * 9_000}, "label", "..."),
        ({"model": MANY, "label": "x"}, "label", r"Gr\u00f6\u00dfe 0\n"),
        ({"strength": 0.0}, "strength", "above 0 and at most 1, not 0.0"),
        ({"strength": float("nan")}, "strength", "not NaN"),
        ({"model": replace(MODEL, levels={1: LEVELS[1], 2: LEVELS[2]}), "steps": 4}, "steps", "it serves 1, 2"),
    ],
)
def test_what_is_wrong_is_named_in_a_sentence(fields: dict[str, Any], param: str, words: str):
    error = refusal(**fields)
    assert (error.kind, error.param) == ("invalid", param)
    assert words in error.message and error.message.isascii() and error.message.isprintable()
    assert len(error.message) < 600


def test_steps_default_to_the_most_that_a_model_has_where_it_has_no_four():
    assert image_request(replace(MODEL, levels={1: LEVELS[1], 2: LEVELS[2]})).steps == 2


def test_a_model_is_chosen_by_name_and_the_first_by_default():
    models = {name: manifest(name) for name in ["tiny", *(f"other-{index}" for index in range(500))]}
    assert choose_model(None, models).name == "tiny" and choose_model("other-3", models).name == "other-3"
    with pytest.raises(Refusal, match="this server has tiny, other-0") as caught:
        choose_model("Tiny\n", models)
    assert (caught.value.kind, caught.value.param) == ("not_found", "model") and len(caught.value.message) < 600


@given(
    st.none() | st.integers(-1, 10),
    st.none() | st.integers(-2, 2) | st.integers(SEED_LIMIT - 4, SEED_LIMIT),
    st.integers(-1, 4),
    st.none() | st.integers(-2, 4) | st.text(),
    st.none() | st.floats(),
)
def test_a_request_keeps_its_ranges_or_is_refused(steps: Any, seed: Any, images: int, label: Any, strength: Any):
    try:
        request = image_request(MODEL, steps=steps, seed=seed, images=images, label=label, strength=strength)
    except Refusal as error:
        assert error.param in ("steps", "seed", "n", "label", "strength")
        assert error.message.isascii() and error.message.isprintable() and len(error.message) < 600
        return
    assert all(0 <= each < SEED_LIMIT for each in request.seeds) and request.images == images
    assert all(0 <= each < CLASSES for each in request.labels) and len(request.labels) == images
    assert request.sigmas == LEVELS[request.steps][-request.calls :]


def test_a_request_with_schedules_has_one_for_each_image():
    request = image_request(MODEL, steps=[4, 1])
    check_request(request, {"tiny": MODEL})
    wrong = (
        structs.replace(request, schedules=request.schedules[:1]),
        structs.replace(request, sigmas=LEVELS[1]),
        structs.replace(request, schedules=(LEVELS[4], ())),
        structs.replace(request, schedules=(LEVELS[4], (0.0,))),
    )
    for each in wrong:
        with pytest.raises(Refusal, match=r"schedules|levels above 0"):
            check_request(each, {"tiny": MODEL})


def test_the_nearest_class_is_named_or_none_is_near():
    for text, nearest in (("boots", "Ankle boot"), ("COATS", "Coat"), ("zzz", None), ("", None)):
        assert nearest_class(text, MODEL) == nearest
