"""The gate's verdict from scores that are known, and readings whose differences are."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.build.test_pipeline import RECIPE
from wetread.build.cases import LoadedCase
from wetread.build.gate import Answer, score_case, true_lesions
from wetread.build.verdict import CaseScore, ClassScore, GateLimits, GateResult, LabelScore
from wetread.engines.base import EngineInfo
from wetread.findings import Provenance, Reading
from wetread.reading.flow import Inputs
from wetread.recipe import Recipe, load_recipe
from wetread.volume import Grid

RULES = load_recipe(RECIPE)
GRID = Grid((24, 40, 40), np.diag([1.0, 1.0, 1.0, 1.0]))
INFO = EngineInfo("openvino", "int8", "CPU (X, 2 threads)", "1")
BIG, SMALL = np.s_[2:12, 2:12, 2:12], np.s_[18:21, 30:33, 30:33]


def mask(*boxes: object) -> np.ndarray:
    found = np.zeros(GRID.shape, np.uint8)
    for box in boxes:
        found[box] = 1
    return found


def answer(found: np.ndarray) -> Answer:
    lesions = true_lesions(found, GRID, RULES)
    provenance = Provenance(*["x"] * 9)
    return Answer.of(Reading(found, GRID, lesions.findings, (), provenance, components=lesions.components))


def score(before: np.ndarray, after: np.ndarray, truth: np.ndarray | None = None) -> CaseScore:
    case = LoadedCase("case", "0" * 64, Inputs(()), truth)
    return score_case(case, answer(before), answer(after), RULES)


def result(*cases: CaseScore, **limits: float) -> GateResult:
    return GateResult("0" * 64, INFO, GateLimits(**limits), cases)


def test_packed_masks_come_back() -> None:
    found = mask(BIG, SMALL)
    kept = answer(found)
    np.testing.assert_array_equal(kept.mask(), found)
    assert sorted(np.unique(kept.lesions().components)) == [0, 1, 2]


def test_nothing_lost() -> None:
    same = score(mask(BIG, SMALL), mask(BIG, SMALL))
    found = result(same)
    assert found.passed and found.figures["mean_dice_drop"] == 0 and found.figures["agreement"] == 1
    assert found.record().status == "passed" and found.record().cases == 1


def test_a_lost_lesion_fails_whatever_the_dice() -> None:
    lost = score(mask(BIG, SMALL), mask(SMALL))
    found = result(lost, max_dice_drop=1.0)
    assert not found.passed and "is lost" in found.failures[0] and "case" in found.failures[0]
    assert found.figures["lesions_lost"] == 1
    assert found.record().status == "failed"
    small = result(score(mask(BIG, SMALL), mask(BIG)), max_dice_drop=1.0)
    assert small.passed  # of 3 voxels: under 6 mm
    assert small.figures["sensitivity_under_6_mm"] == 0


def test_against_a_truth_the_drop_is_what_the_truth_says() -> None:
    worse = score(mask(BIG), mask(BIG, SMALL), truth=mask(BIG))
    assert worse.labels[0].reference == 1.0
    assert worse.labels[0].drop == pytest.approx(1 - 2 * 1000 / (1000 + 1027))
    assert worse.candidate is not None and worse.candidate.false_positives == 1
    better = score(mask(BIG, SMALL), mask(BIG), truth=mask(BIG))
    assert better.labels[0].drop < 0
    assert result(better).passed


def test_a_lesion_that_neither_finds_is_not_lost() -> None:
    neither = score(mask(), mask(), truth=mask(BIG))
    assert not neither.lost and neither.labels[0].drop == 0
    assert result(neither).figures["sensitivity_over_10_mm"] == 0


def test_empty_everywhere_does_not_dilute_the_mean() -> None:
    empty, bad = score(mask(), mask()), score(mask(BIG), mask(np.s_[2:12, 2:12, 2:9]))
    assert empty.labels[0].candidate == 1.0 and empty.labels[0].empty
    alone, diluted = result(bad), result(bad, *[empty] * 50)
    assert diluted.figures["mean_dice_drop"] == alone.figures["mean_dice_drop"] > 0.005
    assert not diluted.passed
    assert result(empty).passed


def test_a_mask_out_of_nothing_is_a_drop_of_one() -> None:
    assert score(mask(), mask(SMALL)).labels[0].drop == 1.0


def test_no_case_no_pass() -> None:
    assert not result().passed


def test_a_candidate_that_gives_no_reading_fails() -> None:
    found = result(CaseScore("case", False, failure="7 of 9 values are NaN"))
    assert not found.passed and "NaN" in found.failures[0]


def classes(truth: tuple[str, ...], before: float, after: float) -> CaseScore:
    def top(p: float) -> str:
        return "bleeding" if p >= 0.5 else ""

    return CaseScore(
        "c",
        True,
        classes=ClassScore(truth, {"bleeding": before}, {"bleeding": after}, top(before), top(after)),
    )


def test_classifiers() -> None:
    kept = result(classes(("bleeding",), 0.9, 0.8), classes((), 0.2, 0.3))
    assert kept.passed and kept.figures["auc"] == 1 and kept.figures["top1"] == 1
    wrong = result(classes(("bleeding",), 0.9, 0.4), classes((), 0.2, 0.45))
    assert not wrong.passed
    assert wrong.figures["top1_drop"] == 0.5 and wrong.figures["auc_drop"] == 1
    assert len(wrong.failures) == 2


def test_classification_task_scores_readings() -> None:
    data = RULES.model_dump(mode="json") | {"task": "classification"}
    data["labels"][0]["lesion"] = False
    recipe = Recipe.model_validate_json(json.dumps(data))
    made = [
        replace(
            answer(mask()),
            scores={"ball": p},
            top="ball" if p > 0.5 else "",
            classes=("ball",) if p > 0.5 else (),
        )
        for p in (0.9, 0.2)
    ]
    case = LoadedCase("case", "0" * 64, Inputs(()), classes=frozenset({"ball"}))
    scored = score_case(case, made[0], made[1], recipe)
    assert scored.classes is not None and scored.classes.truth == ("ball",)
    assert result(scored).figures["top1_drop"] == 1


def test_table() -> None:
    text = result(score(mask(BIG), mask(BIG), truth=mask(BIG)), score(mask(SMALL), mask(SMALL))).markdown()
    assert "passed on 2 held-out cases (1 with a truth, none of which calibrated it)" in text
    assert "| mean Dice drop |  | 0.0000 | ≤ 0.005 |" in text
    assert "| case | Dice ball |" in text


def test_label_score_without_truth() -> None:
    assert LabelScore("x", None, 0.9).drop == pytest.approx(0.1)
