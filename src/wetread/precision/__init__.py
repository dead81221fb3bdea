"""Precision: ranges observed on calibration cases, and graphs cast or quantised by them."""

from wetread.precision.calibrate import CALIBRATORS, Calibrator
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
    "LayerPrecision",
    "PrecisionReport",
    "Ranges",
    "TensorRange",
    "calibration_windows",
    "observe",
    "quantisable",
    "quantise",
    "quantised_tensors",
    "to_half",
]
