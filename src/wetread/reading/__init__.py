"""Reading: the flow from a study to its outputs.

``read`` opens a study, chooses series, loads them, runs a `Case` to its end; ``save`` writes the outputs.
"""

from wetread.reading.case import Case, CaseInfo
from wetread.reading.describe import describe
from wetread.reading.flow import Inputs, ReadOptions, load_inputs, make_engines, read, read_inputs
from wetread.reading.output import OutputFolder, default_out
from wetread.reading.saving import SaveOptions, SegKind, save

__all__ = [
    "Case",
    "CaseInfo",
    "Inputs",
    "OutputFolder",
    "ReadOptions",
    "SaveOptions",
    "SegKind",
    "default_out",
    "describe",
    "load_inputs",
    "make_engines",
    "read",
    "read_inputs",
    "save",
]
