"""The second and third phase of lowering as a list of passes; after each of them the program can be run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from wetread.engines.cuda.lower import (
    concat,
    fuse_epilogue,
    fuse_mlp,
    fuse_norms,
    fuse_pointwise,
    fuse_quantised,
    layout,
)
from wetread.engines.cuda.lower.edit import remove_dead
from wetread.engines.cuda.lower.lowering import Stored
from wetread.engines.cuda.program import Program

Pass: TypeAlias = Callable[[Program], None]


def passes(stored: Mapping[str, Stored]) -> list[tuple[str, Pass]]:
    """Name and function of each pass in order.

    Args:
        stored: weights that the graph keeps in eight bits, by their names in the program.
    """
    return [
        ("dead", remove_dead),
        ("linear layers", fuse_mlp.mlp),
        ("conversions", concat.conversions),
        ("operands", partial(fuse_quantised.operands, stored=stored)),
        ("parts", fuse_quantised.parts),
        ("residual", fuse_epilogue.residual),
        ("activation", fuse_epilogue.activation),
        ("shared statistics", fuse_epilogue.shared_statistics),
        ("statistics", fuse_epilogue.statistics),
        ("lost bias", fuse_epilogue.lost_bias),
        ("producers", fuse_quantised.producers),
        ("heads", fuse_quantised.heads),
        ("pairs", concat.pairs),
        ("small", fuse_norms.small),
        ("on load", fuse_norms.on_load),
        ("softmax", fuse_epilogue.softmax),
        ("leftovers", fuse_quantised.leftovers),
        ("chains", fuse_pointwise.chains),
        ("in place", concat.in_place),
        ("planes", concat.conversions),
        ("padded channels", layout.padded_channels),
        ("border", layout.border),
        ("weight types", layout.weight_types),
        ("dead again", remove_dead),
    ]
