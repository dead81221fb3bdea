"""Measurements: phantoms with known lesions, accuracy and speed."""
