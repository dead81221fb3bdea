"""One function for each kernel: checks shapes, makes descriptors, launches. Nothing is allocated.

arguments     Tile, Norm, Epilogue, and what all launchers share
convolutions  conv3d, conv_few
norms         norm_apply, norm_reduce
outputs       upconv, head
"""

from __future__ import annotations

from wetread.kernels.arguments import PLAIN, Epilogue, Family, Norm, Tile
from wetread.kernels.convolutions import conv3d, conv_few
from wetread.kernels.norms import norm_apply, norm_reduce
from wetread.kernels.outputs import head, upconv

__all__ = [
    "PLAIN", "Epilogue", "Family", "Norm", "Tile", "conv3d", "conv_few", "head", "norm_apply", "norm_reduce", "upconv",
]  # fmt: skip
