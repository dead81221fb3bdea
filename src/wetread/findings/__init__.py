"""Findings and the reading: the answer, as plain data."""

from wetread.findings.extract import LesionRules, extract_findings, keep_tracking
from wetread.findings.model import Finding, LabelInfo, Provenance, Reading, tracking_uid

__all__ = [
    "Finding",
    "LabelInfo",
    "LesionRules",
    "Provenance",
    "Reading",
    "extract_findings",
    "keep_tracking",
    "tracking_uid",
]
