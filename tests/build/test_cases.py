"""Cases: how a folder is understood, which are the same, and truths that do not fit."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.build.test_pipeline import RECIPE, scan
from tests.conftest import ball_volume
from wetread.build.cases import case_shelf, check_held_out, find_cases, load_case
from wetread.errors import GateError, InputError, StudyNotFoundError
from wetread.nifti import write_mask
from wetread.recipe import load_recipe
from wetread.volume import Grid

RULES = load_recipe(RECIPE)


def test_entries_of_a_folder_are_cases(cases: Path, ball_study: Path, tmp_path: Path) -> None:
    root = tmp_path / "cases"
    shutil.copytree(ball_study, root / "b-dicom")
    shutil.copytree(cases / "gate" / "with-truth", root / "a-nifti")
    shutil.copy(cases / "gate" / "without" / "ct.nii.gz", root / "c.nii.gz")
    with zipfile.ZipFile(root / "d.zip", "w") as archive:
        for file in ball_study.iterdir():
            archive.write(file, file.name)
    (root / ".hidden").mkdir()
    (root / "notes.txt").write_text("no case")
    found = find_cases(root)
    assert [case.name for case in found] == ["a-nifti", "b-dicom", "c.nii.gz", "d.zip"]
    assert [case.truth is not None for case in found] == [True, False, False, False]
    digests = [load_case(case, RULES).digest for case in found]
    assert digests[1] == digests[3] and len(set(digests)) == 3  # the same series, packed


def test_a_path_that_is_one_case(cases: Path, ball_study: Path, tmp_path: Path) -> None:
    assert find_cases(cases / "gate" / "with-truth")[0].truth is not None
    assert len(find_cases(cases / "gate" / "without" / "ct.nii.gz")) == 1
    assert [case.study for case in find_cases(ball_study)] == [ball_study]
    with pytest.raises(StudyNotFoundError, match="no such"):
        find_cases(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StudyNotFoundError, match="empty"):
        find_cases(tmp_path / "empty")


def test_truth_beside_dicom_lies_on_its_voxels(ball_study: Path, tmp_path: Path) -> None:
    shutil.copytree(ball_study, tmp_path / "case" / "dicom")
    volume = ball_volume()
    true = (volume.voxels > 0).astype(np.uint8)
    write_mask(tmp_path / "case" / "truth.nii.gz", true, volume.grid, slices_first=True)
    (case,) = find_cases(tmp_path / "case")
    loaded = load_case(case, RULES)
    assert loaded.truth is not None
    np.testing.assert_array_equal(loaded.truth, true)


def test_truths_that_do_not_fit_are_refused(cases: Path, tmp_path: Path) -> None:
    folder = tmp_path / "case"
    shutil.copytree(cases / "gate" / "with-truth", folder)
    (case,) = find_cases(folder)
    mask = load_case(case, RULES).truth
    assert mask is not None
    grid = Grid(mask.shape, np.diag([2.0, 2.0, 2.0, 1.0]))
    write_mask(folder / "truth.nii.gz", mask * np.uint8(7), grid, slices_first=False)
    with pytest.raises(InputError, match=r"holds \[7\]") as caught:
        load_case(case, RULES)
    assert "truth.nii.gz" in caught.value.where
    moved = Grid(mask.shape, np.array([[2, 0, 0, 9], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]]))
    write_mask(folder / "truth.nii.gz", mask, moved, slices_first=False)
    with pytest.raises(InputError, match="the true mask has shape"):
        load_case(case, RULES)


def test_true_classes(cases: Path, tmp_path: Path) -> None:
    folder = scan(tmp_path / "case", 3)
    for content, names in (
        ({"labels": ["ball"]}, {"ball"}),
        ({"label": "ball"}, {"ball"}),
        ({"labels": []}, set()),
    ):
        (folder / "truth.json").write_text(json.dumps(content))
        assert load_case(find_cases(folder)[0], RULES).classes == names
    for text, message in (('{"labels": ["cube"]}', "no labels of the recipe"), ("{", "cannot be read")):
        (folder / "truth.json").write_text(text)
        with pytest.raises(InputError, match=message):
            load_case(find_cases(folder)[0], RULES)


def test_a_case_counts_once_and_never_for_both() -> None:
    check_held_out({"a": "1", "b": "2"}, {"c": "3"})
    with pytest.raises(GateError, match="b has the same voxels as c"):
        check_held_out({"a": "1", "b": "3"}, {"c": "3"})
    with pytest.raises(GateError, match="have the same voxels"):
        check_held_out({"a": "1", "b": "1"}, {})


def test_a_shelf_loads_once_as_long_as_there_is_room(cases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wetread.build import cases as module

    loads: list[str] = []
    honest = module.load_case
    monkeypatch.setattr(
        module, "load_case", lambda case, *rest: loads.append(case.name) or honest(case, *rest)
    )
    shelf = case_shelf(cases / "gate", RULES)
    for _ in range(2):
        for case in shelf.cases:
            shelf.load(case)
    shelf.digests()
    assert loads == ["with-truth", "without"]
    small = module.CaseShelf(shelf.cases, RULES, budget_bytes=0)
    for _ in range(2):
        small.load(small.cases[0])
    assert len(loads) == 4
