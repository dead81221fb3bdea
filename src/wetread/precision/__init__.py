"""Precision: ranges observed on calibration cases, and graphs cast or quantised by them."""

from wetread.precision.calibrate import CALIBRATORS, Calibrator
from wetread.precision.coverage import CaseFacts, CoverageReport, coverage, scan_facts
from wetread.precision.equalise import equalise
from wetread.precision.half import to_half
from wetread.precision.observe import observe
from wetread.precision.placement import quantisable, quantised_tensors
from wetread.precision.quantise import quantise
from wetread.precision.ranges import Ranges, TensorRange
from wetread.precision.report import LayerPrecision, PrecisionReport
from wetread.precision.windows import CalibrationWindow, calibration_windows

__all__ = [
    "CALIBRATORS",
    "CalibrationWindow",
    "Calibrator",
    "CaseFacts",
    "CoverageReport",
    "LayerPrecision",
    "PrecisionReport",
    "Ranges",
    "TensorRange",
    "calibration_windows",
    "coverage",
    "equalise",
    "observe",
    "quantisable",
    "quantise",
    "quantised_tensors",
    "scan_facts",
    "to_half",
]
