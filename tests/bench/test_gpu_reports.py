"""The pages of the GPU benchmarks are what their JSON gives, and the aims of issue 4 that they state."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "benchmarks"
sys.path.insert(0, str(ROOT / "benchmarks"))

import mlperf_report  # noqa: E402
import networks_report  # noqa: E402


def test_the_page_of_mlperf(tmp_path):
    mlperf_report.report(PAGES / "mlperf_3dunet.json", tmp_path)
    assert (tmp_path / "mlperf_3dunet.md").read_text() == (PAGES / "mlperf_3dunet.md").read_text()


def test_the_page_of_the_networks(tmp_path):
    networks_report.report(json.loads((PAGES / "cuda-networks.json").read_text()), tmp_path)
    assert (tmp_path / "cuda-networks.md").read_text() == (PAGES / "cuda-networks.md").read_text()


@pytest.mark.parametrize(("precision", "least"), [("float16", 5.8), ("int8", 9.0)])
def test_samples_a_second(precision, least):
    rows = json.loads((PAGES / "mlperf_3dunet.json").read_text())["rows"]
    row = next(r for r in rows if r["engine"] == "wetread" and r["precision"] == precision)
    assert row["samples_per_s"] >= least and not row["extrapolated"]
    assert row["samples_per_s"] == pytest.approx(1e3 / row["ms_per_window"] / (row["windows"] / 43), rel=1e-3)
    assert row["windows"] == 2761
