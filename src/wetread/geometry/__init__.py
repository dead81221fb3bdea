"""Geometry: orientation, grids made from grids, resampling, and what a device can do to volumes."""

from wetread.geometry.axes import AxisMap, Interpolation, antialias_sigma, axis_maps, coarse_axis
from wetread.geometry.grids import corners_mm, fitted_grid, lattice_grid, lattice_index, shifted_grid
from wetread.geometry.ops import CpuOps, Ops
from wetread.geometry.orient import Orientation, orient
from wetread.geometry.parallel import Intensity, cpu_count, in_parallel
from wetread.geometry.resample import Method, Resampler, resample

__all__ = [
    "AxisMap",
    "CpuOps",
    "Intensity",
    "Interpolation",
    "Method",
    "Ops",
    "Orientation",
    "Resampler",
    "antialias_sigma",
    "axis_maps",
    "coarse_axis",
    "corners_mm",
    "cpu_count",
    "fitted_grid",
    "in_parallel",
    "lattice_grid",
    "lattice_index",
    "orient",
    "resample",
    "shifted_grid",
]
