"""Which series is chosen, and why the others are not."""

from __future__ import annotations

import pytest

from tests.conftest import ball_recipe
from wetread.errors import SelectionError
from wetread.reading.select import Candidate, choose
from wetread.recipe import load_recipe


def recipe(**select: object):
    return load_recipe(ball_recipe(channels=[{"name": "ct", "select": {"modality": "CT", **select}}]))


def ct(key: str, **values: object) -> Candidate:
    base = {"modality": "CT", "slices": 100, "slice_spacing_mm": 1.0, "image_type": ("ORIGINAL", "PRIMARY")}
    return Candidate(key, **(base | values))


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (ct("a"), ct("b", image_type=("DERIVED", "SECONDARY"), slice_spacing_mm=0.5)),
        (ct("a", slice_spacing_mm=0.7), ct("b", slices=400)),
        (ct("a", slices=120), ct("b")),
        (ct("b", number=2), ct("a", number=3)),
    ],
)
def test_rank(better, worse):
    for order in ([better, worse], [worse, better]):
        choices, notices = choose(recipe(), order)
        assert order[choices[0].index].key == better.key
        assert [n.code for n in notices] == ["SERIES_CHOSEN"] and worse.key in notices[0].text


@pytest.mark.parametrize(
    ("select", "candidate", "reason"),
    [
        ({}, ct("x", modality="MR"), "modality is MR"),
        ({"description": "lung"}, ct("x", description="Abdomen"), "'lung'"),
        ({"not_description": "bone"}, ct("x", description="BONE"), "excluded"),
        ({"min_slices": 101}, ct("x"), "100 slices"),
        ({"max_slice_spacing_mm": 0.9}, ct("x"), "1.00 mm apart"),
        ({"image_type": ["AXIAL"]}, ct("x"), "lacks AXIAL"),
        ({"sequence": "flair"}, ct("x", sequence="t2"), "'flair'"),
        ({"body_part": "chest"}, ct("x", body_part="HEAD"), "'HEAD'"),
        ({"file_suffix": "_0000"}, ct("x", description="a_0001", from_file=True), "'_0000'"),
        ({}, ct("x", problem="SLICE_GAP: a slice is missing"), "a slice is missing"),
    ],
)
def test_reasons(select, candidate, reason):
    other = ct("other", modality="PT")
    with pytest.raises(SelectionError) as caught:
        choose(recipe(**select), [candidate, other])
    assert reason in str(caught.value) and "modality is PT" in str(caught.value)


def test_one_series_for_two_channels_is_refused():
    two = load_recipe(ball_recipe(channels=[{"name": "a"}, {"name": "b"}]))
    with pytest.raises(SelectionError, match="two channels"):
        choose(two, [ct("x")])


def test_one_file_is_taken_whatever_it_is_called():
    choices, _ = choose(
        recipe(file_suffix="_0000"), [ct("x", description="scan", from_file=True, modality="")]
    )
    assert choices[0].index == 0
