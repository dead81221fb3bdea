"""Chest CT phantoms with known nodules, made by procedure from a seed; needs only numpy.

Life of a phantom: measures of a person (`thorax`), bones (`skeleton`), lung tissue, vessels and airways
(`trees`, `tubes`), look-alikes (`mimics`), nodules (`lesions`), then the scanner (`scanner`).
"""

from .chest import DEMO_SHAPE, DEMO_SPACING_MM, Phantom, make_phantom
from .lesions import Nodule

__all__ = ["DEMO_SHAPE", "DEMO_SPACING_MM", "Nodule", "Phantom", "make_phantom"]
