"""What a card says about where a student comes from."""

from dataclasses import replace

from fewstep.card import Card, Dataset, distilled_from

RUN = Card("teacher", {}, 0.5, "run", Dataset("digits", "0", "CC0-1.0", 1))


def test_a_student_knows_its_teacher_before_and_after_publication():
    published = replace(RUN, weights="half", training={"published_from": "run"})
    for parent, expected in (("run", True), ("half", True), ("other", False), (None, False)):
        assert distilled_from(replace(RUN, role="student", parent=parent), published) is expected


def test_no_parent_is_not_the_parent_of_a_teacher_that_was_never_published():
    assert not distilled_from(RUN, RUN)
