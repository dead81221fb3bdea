"""Findings and the reading: the answer, as plain data."""

from wetread.findings.model import Finding, LabelInfo, Provenance, Reading, tracking_uid

__all__ = ["Finding", "LabelInfo", "Provenance", "Reading", "tracking_uid"]
