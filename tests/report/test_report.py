import csv
import html.parser
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wetread.errors import Notice, OutputError
from wetread.findings import LabelInfo, Provenance, Reading, extract_findings
from wetread.report import write_csv, write_report
from wetread.report.page import page
from wetread.report.planes import planes_of
from wetread.report.preview import preview_picture
from wetread.report.table import CSV_HEADER
from wetread.report.tiles import LUNG, SOFT_TISSUE, View, close_view, grey, tile, whole_view, window_for
from wetread.volume import Grid, SliceRef, Volume

CODE = ("52988006", "SCT", "Lesion")
LABEL = LabelInfo(1, "nodule", (220, 60, 40), CODE, CODE)
MADE = Provenance("lung-nodule", "1.2.3", "sha256:77", "null", "fp32", "cpu", "0", "now", "Research only.")
SPL = np.array([[0, 0, 0.8, -40], [0, 0.8, 0, -50], [2.0, 0, 0, -30], [0, 0, 0, 1.0]])


def case(voxels, mask, affine=SPL, modality="CT", **fields):
    grid = Grid(mask.shape, affine, "1.2", tuple(SliceRef(f"1.{i}") for i in range(mask.shape[0])))
    findings, mask, components = extract_findings(mask, None, voxels, grid, (LABEL,))
    reading = Reading(
        mask, grid, findings, (LABEL,), MADE, components=components, modality=modality, **fields
    )
    return reading, Volume(voxels, grid, modality)


def chest(lesions=1):
    voxels = np.full((40, 90, 100), -850, np.int16)
    voxels[:, :, :10] = 40
    mask = np.zeros(voxels.shape, np.uint8)
    for i in range(lesions):
        mask[8 + 5 * i : 11 + 5 * i, 30 : 38 - i, 60:70] = 1
    voxels[mask > 0] = 30
    return case(voxels, mask, timings_s={"load": 1.0, "infer": 3.0})


@pytest.mark.parametrize("codes", ["SPL", "IAR", "RAS", "PSR", "LIA", "AIL"])
def test_pictures_hang_the_same_for_every_axis_order(codes):
    world = {"L": (1, 0, 0), "P": (0, 1, 0), "S": (0, 0, 1)}
    opposite = {"R": "L", "A": "P", "I": "S"}
    affine = np.eye(4)
    for axis, code in enumerate(codes):
        direction = np.array(world[opposite.get(code, code)], float)
        affine[:3, axis] = direction * (-1 if code in opposite else 1)
    shape = (7, 8, 9)
    grid = Grid(shape, affine)
    assert grid.axis_codes == codes
    place = grid.world(np.moveaxis(np.indices(shape), 0, -1))
    for plane in planes_of(grid):
        left, top = (np.diff(plane.cut(place[..., k], 0), axis=a).mean() for k, a in ((0, 1), (1, 0)))
        if plane.name == "axial":
            assert (left, top) == (1, 1)
            assert plane.letters == ("R", "L", "A", "P")
        if plane.name == "coronal":
            assert left == 1
            assert np.diff(plane.cut(place[..., 2], 0), axis=0).mean() == -1
            assert plane.letters == ("R", "L", "S", "I")
        if plane.name == "sagittal":
            assert np.diff(plane.cut(place[..., 1], 0), axis=1).mean() == 1
            assert np.diff(plane.cut(place[..., 2], 0), axis=0).mean() == -1
            assert plane.letters == ("A", "P", "S", "I")
        index = np.array([2.0, 3.0, 4.0])
        row, column = plane.place(index)
        cut = plane.cut(place[..., 0] + 10 * place[..., 1] + 100 * place[..., 2], int(index[plane.axes[0]]))
        expected = grid.world(index) @ (1, 10, 100)
        assert cut[int(row), int(column)] == expected


def test_grey_levels():
    picture = np.asarray(grey(np.array([[-2000, -1350, -600, 150, 3000]], np.int16), LUNG))
    np.testing.assert_array_equal(picture, [[0, 0, 127, 255, 255]])


def test_window_follows_modality_and_surroundings():
    reading, volume = chest()
    assert window_for(reading, volume.voxels) == LUNG
    empty = replace(reading, findings=())
    assert window_for(empty, volume.voxels) == LUNG
    liver = np.where(volume.voxels == -850, 60, volume.voxels)
    assert window_for(reading, liver) == SOFT_TISSUE
    assert window_for(empty, liver) == SOFT_TISSUE
    magnetic = np.zeros(volume.voxels.shape, np.float32)
    magnetic[10:30, 10:80, 10:90] = np.linspace(100, 300, 20)[:, None, None]
    lower, upper = window_for(replace(reading, modality="MR"), magnetic)
    assert 100 <= lower < 110
    assert 295 < upper <= 300
    flat = np.full((9, 9, 9), 7.0)
    assert window_for(replace(reading, modality="MR"), flat) == (7.0, 8.0)


def test_outline_lies_on_the_edge_of_the_finding():
    reading, volume = chest()
    finding = reading.findings[0]
    axial = planes_of(volume.grid)[0]
    view = View(axial, finding.bounding_box[0][0], (33.5, 64.5), 32.0, 320)  # 10 picture pixels a mm
    plain = np.asarray(
        tile(
            replace(volume), replace(reading, findings=(), components=None, mask=reading.mask * 0), view, LUNG
        )
    )
    drawn = np.asarray(tile(volume, reading, view, LUNG, emphasis=1))
    rows, columns = np.nonzero(np.abs(drawn.astype(int) - plain).max(axis=2) > 120)
    # 8 × 10 voxels of 0.8 mm around the middle: the level 0.5 lies half a voxel outside the centres.
    assert (160 - 32 - 2 <= rows.min() <= 160 - 32 + 2) and (160 + 32 - 3 <= rows.max() <= 160 + 32 + 2)
    assert (160 - 40 - 2 <= columns.min() <= 160 - 40 + 2) and (160 + 40 - 3 <= columns.max() <= 160 + 40 + 2)
    inside = (np.abs(rows - 160) < 26) & (np.abs(columns - 160) < 34)
    assert not inside.any()


def test_pictures_keep_the_aspect_of_the_patient():
    reading, volume = chest()
    coronal = planes_of(volume.grid)[1]
    picture = np.asarray(tile(volume, replace(reading, findings=()), whole_view(coronal, 34, 200), LUNG))
    lit = np.flatnonzero(picture.max(axis=(1, 2)) > 60)
    assert coronal.extent_mm == (80.0, 80.0)
    assert (lit[0], lit[-1]) == (0, 199)
    wide, volume = case(np.full((10, 90, 100), 0, np.int16), np.zeros((10, 90, 100), np.uint8))
    coronal = planes_of(volume.grid)[1]
    picture = np.asarray(tile(volume, wide, whole_view(coronal, 34, 200), SOFT_TISSUE))
    body = picture[:, 20, 0] > 60
    assert body.sum() == pytest.approx(20 / 80 * 200, abs=2)


def test_close_view_shows_the_largest_slice_and_stays_inside():
    mask = np.zeros((40, 90, 100), np.uint8)
    mask[5, 2:4, 2:4] = mask[6, 2:8, 2:8] = mask[7, 2:3, 2:4] = 1
    reading, volume = case(np.zeros(mask.shape, np.int16), mask)
    axial = planes_of(volume.grid)[0]
    view = close_view(volume, reading, reading.findings[0], axial, 100)
    assert view.index == 6
    assert view.side_mm == 80.0
    assert view.centre == (44.5, 49.5)  # rows are 72 mm in all, columns 80


def test_csv_reads_back(tmp_path):
    reading, _ = chest(3)
    odd = replace(reading.findings[0], label='=cmd,"x"\n', mean=float("nan"))
    write_csv(replace(reading, findings=(odd, *reading.findings[1:])), tmp_path / "f.csv")
    with (tmp_path / "f.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == CSV_HEADER
    assert rows[0]["label"] == '\'=cmd,"x"\n'
    assert rows[0]["mean_intensity"] == ""
    for row, finding in zip(rows[1:], reading.findings[1:], strict=True):
        assert int(row["number"]) == finding.number
        assert float(row["volume_ml"]) == pytest.approx(finding.volume_ml, abs=1e-4)
        assert float(row["long_axis_mm"]) == pytest.approx(finding.long_axis_mm, abs=1e-3)
        assert float(row["centroid_s_mm"]) == pytest.approx(finding.centroid_lps_mm[2], abs=1e-3)
        assert (row["first_slice_uid"], row["tracking_uid"]) == (finding.slice_uids[0], finding.tracking_uid)
        assert row["intensity_unit"] == "HU"
    write_csv(replace(reading, findings=()), tmp_path / "none.csv")
    assert (tmp_path / "none.csv").read_text().split(",")[0] == "number"
    assert len((tmp_path / "none.csv").read_text().splitlines()) == 1


class Checker(html.parser.HTMLParser):
    """Collects tags, sources and text; fails on tags that do not nest."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links, self.words = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def checked(text):
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert "script" not in checker.seen and "link" not in checker.seen
    assert all(link.startswith("data:image/jpeg;base64,") for link in checker.links)
    assert not re.search(r"url\(|@import", text)
    return checker, " ".join(" ".join(checker.words).split())


def test_page_is_complete_and_needs_nothing_else():
    reading, volume = chest(3)
    reading = replace(reading, notices=(Notice("ODD", "slices were reversed", "1.2.3"),))
    checker, text = checked(page(reading, volume))
    assert len(checker.links) == 12
    finding = reading.findings[0]
    for words in (
        "3 findings: nodule",
        "Not for clinical use",
        "ODD slices were reversed 1.2.3",
        "sha256:77",
        "infer",
        "3.00 s",
        f"{finding.volume_ml:.3f}",
        f"{finding.long_axis_mm:.1f}",
        "lung-nodule 1.2.3",
        "Axial, whole slice",
        "Coronal,",
        "Sagittal,",
    ):
        assert words in text, words


def test_page_without_findings_or_provisional():
    reading, volume = chest(0)
    checker, text = checked(page(replace(reading, status="provisional"), volume))
    assert "No nodule found" in text
    assert "provisional: the scan was not complete" in text
    assert len(checker.links) == 3
    assert "table" in checker.seen  # timings


def test_page_escapes_everything_from_outside():
    evil = "<script>alert(1)</script><img src=x onerror=y>&\"'"
    reading, volume = chest(1)
    reading = replace(
        reading,
        findings=tuple(replace(f, label=evil) for f in reading.findings),
        notices=(Notice(evil, evil, evil),),
        provenance=replace(MADE, package=evil, engine=evil, intended_use=evil, sources=(evil,)),
        timings_s={evil: 1.0},
        study_instance_uid=evil,
        series_instance_uid=evil,
        modality=evil,
        status=evil,
    )
    checker, text = checked(page(reading, volume))
    assert len(checker.links) == 4
    assert text.count("<script>alert(1)</script>") >= 10


def test_many_findings_stay_small():
    mask = np.zeros((60, 90, 100), np.uint8)
    mask[1:-1:6, 5:85:8, 5:28:9] = 1
    reading, volume = case(np.zeros(mask.shape, np.int16), mask)
    assert len(reading.findings) == 300
    text = page(reading, volume)
    assert len(text) < 3_000_000
    assert "280 smaller findings" in text


def test_preview_shows_up_to_three_findings_in_colour():
    for count, rows in ((0, 1), (1, 1), (2, 2), (3, 3), (5, 3)):
        reading, volume = chest(count)
        picture = preview_picture(reading, volume)
        assert picture.size[0] == 1220
        assert picture.size[1] == 84 + rows * 434 + 24
        colours = np.asarray(picture).reshape(-1, 3).astype(int)
        red = ((colours[:, 0] > 180) & (colours[:, 1] < 90) & (colours[:, 2] < 80)).sum()
        assert (red > 300) == (count > 0)


def test_files_and_channels(tmp_path):
    reading, volume = chest(2)
    both = Volume(np.stack([volume.voxels, volume.voxels * 0]), volume.grid, "CT")
    paths = write_report(reading, volume, tmp_path / "a")
    again = write_report(reading, both, tmp_path / "b")
    assert [p.name for p in paths] == ["findings.csv", "report.html", "preview.png"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "findings.csv",
        "preview.png",
        "report.html",
    ]
    for one, two in zip(paths, again, strict=True):
        assert one.read_bytes() == two.read_bytes()
    picture = Image.open(io.BytesIO(paths[2].read_bytes()))
    assert (picture.format, picture.mode) == ("PNG", "RGB")


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    reading, volume = chest(1)

    def full(self, data):
        with self.open("wb") as stream:
            stream.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"findings.csv could not be written: No space left"):
        write_report(reading, volume, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_oblique_and_sagittal_volumes():
    angle = np.deg2rad(20)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[4.0, 0, 0], [0, 1, 0], [0, 0, -1]])[:, [0, 1, 2]]
    mask = np.zeros((20, 60, 70), np.uint8)
    mask[9:11, 20:25, 30:40] = 1
    reading, volume = case(np.zeros(mask.shape, np.float32), mask, affine, "MR")
    checker, text = checked(page(reading, volume))
    assert len(checker.links) == 4
    assert volume.grid.axis_codes == "LPI"
    assert "voxels of 4 × 1 × 1 mm" in text
