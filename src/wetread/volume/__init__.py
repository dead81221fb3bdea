"""Volumes: voxels on a grid with a known place in the patient."""

from wetread.volume.grid import Grid, SliceRef
from wetread.volume.volume import Volume

__all__ = ["Grid", "SliceRef", "Volume"]
