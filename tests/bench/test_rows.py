"""Rows, tables and baselines: plain data, no worker."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from wetread.bench.baseline import check_comparable, drift, load_baseline, regressions
from wetread.bench.rows import Bench, Row, machine, timing_figures
from wetread.bench.table import markdown, svg, write_bench
from wetread.errors import OutputError


def row(
    engine: str = "wetread", precision: str = "int8", ms: float = 100.0, spread: float = 2.0, **more: float
) -> Row:
    """A row whose quartiles lie `spread` ms around the median."""
    figures = {
        "latency_ms_p50": ms, "latency_ms_p95": ms + 3 * spread, "latency_ms_p25": ms - spread,
        "latency_ms_p75": ms + spread, "windows_per_s": 1000 / ms, "windows_timed": 20,
        "peak_memory_mib": 300.0, "size_mib": 30.0, "dice": 0.99, "agreement": 0.9999, "output_difference": 0.01,
    }  # fmt: skip
    return Row(engine, precision, figures | more)


def bench(*rows: Row) -> Bench:
    return Bench(
        rows,
        {"name": "net", "version": "1.0.0"},
        {"name": "phantom", "accuracy_over": "the whole case"},
        "ONNX Runtime float32",
        machine(2),
        {"openvino": "1"},
        {"window": [16, 32, 32], "windows": 4, "turns": 5, "windows_per_turn": 2},
    )


def test_percentiles_are_numpys():
    seconds = np.random.default_rng(0).gamma(4, 0.02, 101)
    found = timing_figures(seconds.tolist())
    for key, q in (("p50", 50), ("p95", 95), ("p25", 25), ("p75", 75)):
        assert found[f"latency_ms_{key}"] == pytest.approx(1000 * np.percentile(seconds, q), abs=1e-3)
    assert found["windows_per_s"] == pytest.approx(101 / seconds.sum(), rel=1e-3)


def test_json_and_back(tmp_path):
    before = bench(row(), Row("wetread cuda", "int8", problem="no GPU"))
    paths = write_bench(before, tmp_path)
    data = json.loads(paths[0].read_text())
    assert {"engine", "precision", "latency_ms_p50", "windows_per_s", "peak_memory_mib", "dice"} <= set(
        data["rows"][0]
    )
    assert data["rows"][1]["problem"] == "no GPU"
    assert load_baseline(paths[0]) == before


def test_table_and_picture():
    data = bench(
        row("PyTorch <eager>", "float32", 400), row(), Row("wetread cuda", "int8", problem="no GPU here")
    )
    text = markdown(data)
    assert "| wetread int8 | 100.0 |" in text and "4.00×" in text
    assert "- wetread cuda int8: no GPU here" in text and "| wetread cuda" not in text
    picture = ElementTree.fromstring(svg(data))
    bars = list(picture.iter("{http://www.w3.org/2000/svg}rect"))[1:]
    assert float(bars[0].get("width")) == pytest.approx(4 * float(bars[1].get("width")), rel=0.01)


@pytest.mark.parametrize(
    ("change", "worse"),
    [
        ({"ms": 104.0, "spread": 0.1}, ""),  # under 5 %, however sure
        ({"ms": 107.0, "spread": 6.0}, ""),  # within the spread
        ({"ms": 107.0, "spread": 2.0}, "latency_ms_p50 100 → 107 (+7 %)"),
        ({"ms": 60.0}, ""),
        ({"peak_memory_mib": 312.0}, ""),
        ({"peak_memory_mib": 320.0}, "peak_memory_mib 300 → 320"),
        ({"size_mib": 60.0}, "size_mib 30 → 60"),
        ({"dice": 0.9895}, ""),
        ({"dice": 0.988}, "dice 0.9900 → 0.9880"),
        ({"agreement": 0.9}, "agreement"),
        ({"dice": None}, ""),
    ],
)
def test_regressions_beyond_noise(change, worse):
    found = regressions(bench(row(**change)), bench(row()))
    assert len(found) == bool(worse)
    assert not worse or worse in found[0].text


def test_peers_tell_how_the_machine_has_changed():
    peers = [row(name, "float32", 100) for name in ("PyTorch eager", "ONNX Runtime", "OpenVINO")]
    slow = [row(name, "float32", 130) for name in ("PyTorch eager", "ONNX Runtime", "OpenVINO")]
    before = bench(*peers, row())
    assert drift(bench(*slow, row()), before) == pytest.approx(1.3)
    assert (
        regressions(bench(*slow, row(ms=132)), before) == []
    )  # as much as the peers, which never fail themselves
    (found,) = regressions(bench(*slow, row(ms=150)), before)
    assert "the peers +30 %" in found.text
    (found,) = regressions(bench(*peers, row(ms=150)), before)
    assert "peers" not in found.text
    one = bench(row("PyTorch eager", "float32", 300), *peers[1:], row(ms=150))
    assert drift(one, before) == 1.0 and regressions(one, before)  # one peer alone is no machine
    fast = [row(name, "float32", 50) for name in ("PyTorch eager", "ONNX Runtime", "OpenVINO")]
    assert drift(bench(*fast), before) == 1.0


def test_a_row_that_ran_and_does_not_now():
    found = regressions(bench(Row("wetread", "int8", problem="gate failed")), bench(row()))
    assert [change.text for change in found] == ["wetread int8 ran, and does not now: gate failed"]
    assert regressions(bench(row()), bench(Row("wetread", "int8", problem="gate failed"))) == []
    assert regressions(bench(row("other")), bench(row())) == []


@pytest.mark.parametrize("what", ["machine", "settings", "case"])
def test_other_machines_and_settings_are_not_compared(what):
    now = bench(row())
    changed = {
        "machine": {"processor": "other"},
        "settings": {"window": [8, 8, 8]},
        "case": {"name": "other"},
    }[what]
    with pytest.raises(OutputError, match="not comparable"):
        check_comparable(now, replace(now, **{what: getattr(now, what) | changed}))
    check_comparable(now, now)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "rows": [1]}', '{"format": 2}'])
def test_a_baseline_that_is_none(tmp_path, text):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(OutputError, match=r"no bench\.json"):
        load_baseline(tmp_path / "b.json")
    with pytest.raises(OutputError, match="cannot be read"):
        load_baseline(tmp_path / "none.json")
