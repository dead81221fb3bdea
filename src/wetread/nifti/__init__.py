"""NIfTI files in and out; the only room that imports nibabel."""

from wetread.nifti.read import read_grid, read_nifti
from wetread.nifti.write import write_mask

__all__ = ["read_grid", "read_nifti", "write_mask"]
