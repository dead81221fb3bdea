"""Precision: ranges observed on calibration cases, and graphs cast or quantised by them."""
