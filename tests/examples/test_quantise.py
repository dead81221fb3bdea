"""The stroke example in INT8: calibrated on altered FLAIR and T1, judged on T2."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "mr_stroke"


@pytest.mark.peer
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_int8_with_rollback_reaches_dice_of_0_99_on_t2(real_case, tmp_path, monkeypatch):
    from wetread.engines import make_engine

    monkeypatch.setattr(sys, "path", [str(EXAMPLE), *sys.path])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import quantise

        checkpoint = real_case("mr-stroke/meshnet26.pt")
        made = quantise.quantise(checkpoint, checkpoint.parent, tmp_path / "models")
    facts = made.facts
    assert facts["networks"][0]["passes"]["operators_before"]["BatchNormalization"] == 9
    assert "BatchNormalization" not in facts["networks"][0]["passes"]["operators_after"]
    assert facts["networks"][0]["passes"]["error"] <= 1e-5
    assert made.gate is not None and made.gate.passed
    assert made.gate.figures["mean_dice"] >= 0.99
    assert len(facts["released"]) <= 5  # of ten
    assert {case["name"] for case in facts["calibration"]["cases"]} == {
        "altered-0-0.nii.gz",
        "altered-1-0.nii.gz",
    }
    engine = make_engine(made.package)
    assert engine.info.precision == "int8"
    engine.close()
