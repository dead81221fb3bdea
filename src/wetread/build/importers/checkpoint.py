"""Checkpoints of PyTorch (``.pt``, ``.pth``, ``.ckpt``): weights, mostly without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wetread.build.importers.base import Imported, ImportedNetwork, ImportOptions
from wetread.build.importers.pickles import archive_globals, beyond_tensors
from wetread.build.importers.torch_graph import module_graph, need_torch, quiet, short, tools
from wetread.build.importers.torchscript import input_channels
from wetread.errors import GraphError

_OTHERS = "use an nnU-Net folder, a MONAI bundle, an exported program (.pt2), TorchScript or ONNX"
_PLAIN = ("numpy.", "collections.", "builtins.", "__builtin__.", "_codecs.", "torch.torch_version.")
"""What training states hold beside tensors; no network is made of it."""


def import_checkpoint(path: Path, options: ImportOptions) -> Imported:
    """Reads a whole pickled network, where the user trusts it; refuses bare weights.

    Raises:
        GraphError: truncated; weights without a network; a pickled network without ``--trust``, with the
            names that it would import; or one whose classes are not installed.
        EngineUnavailableError: PyTorch is not installed.
    """
    needed = sorted({name for names in archive_globals(path).values() for name in beyond_tensors(names)})
    if all(name.startswith(_PLAIN) for name in needed):
        raise GraphError("this file holds weights without a network", where=str(path), todo=_OTHERS)
    if not options.trust:
        raise GraphError(
            f"loading this file would execute its pickle, which imports {', '.join(needed[:6])}"
            + (f" and {len(needed) - 6} more" if len(needed) > 6 else ""),
            where=str(path),
            todo=f"say --trust if you know who made it and it holds a whole network; else {_OTHERS}",
            code="NEEDS_TRUST",
        )
    torch = need_torch(str(path))
    try:
        with quiet():
            network: Any = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a pickle raises what it likes
        raise GraphError(
            f"the pickle cannot be loaded: {short(error)}",
            where=str(path),
            todo=f"install what it imports ({', '.join(needed[:6])}); or {_OTHERS}",
        ) from error
    if not isinstance(network, torch.nn.Module):
        raise GraphError("this file holds weights without a network", where=str(path), todo=_OTHERS)
    if options.window is None:
        raise GraphError(
            "a pickled network does not say the shape of its input",
            where=str(path),
            todo="give a recipe with a window",
        )
    channels = input_channels(network, str(path))
    graph, notices = module_graph(network, channels, options.window, options, str(path))
    return Imported((ImportedNetwork(graph),), sources=(path,), tools=tools(), notices=notices)
