"""One function for each kernel: checks shapes, makes descriptors, launches. Nothing is allocated.

arguments     Tile, Norm, Epilogue, Geometry, and what all launchers share
convolutions  conv3d: families gather, taps, planes, pairs, march
few           conv_few, conv_depthwise
norms         norm_apply, norm_reduce, reduce_parts, norm_sums
outputs       upconv, head
"""

from __future__ import annotations

from wetread.kernels.arguments import ACTIVATIONS, PLAIN, Epilogue, Family, Geometry, Norm, Tile
from wetread.kernels.convolutions import conv3d
from wetread.kernels.few import conv_depthwise, conv_few
from wetread.kernels.norms import norm_apply, norm_reduce, norm_sums, reduce_parts
from wetread.kernels.outputs import head, upconv

__all__ = [
    "ACTIVATIONS", "PLAIN", "Epilogue", "Family", "Geometry", "Norm", "Tile", "conv3d", "conv_depthwise", "conv_few",
    "head", "norm_apply", "norm_reduce", "norm_sums", "reduce_parts", "upconv",
]  # fmt: skip
