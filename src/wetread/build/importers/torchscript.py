"""TorchScript files (``.ts``, ``.pt``): the network is there as code, the recipe is not.

PyTorch interprets that code; it is no Python, and `torch.jit.load` runs no Python pickle. But it can name any
operator, some of which write files, and a class may have code that runs as it is loaded. So the code is parsed
here first, and what a network has no use for needs ``--trust``. PyTorch's loader itself is native code that was
not made for hostile files: this check does not change that.
"""

from __future__ import annotations

import ast
import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.build.importers.base import Imported, ImportedNetwork, ImportOptions
from wetread.build.importers.pickles import open_archive
from wetread.build.importers.torch_graph import (
    OPSET,
    check_agreement,
    first_output,
    need_torch,
    quiet,
    short,
    tools,
)
from wetread.errors import GraphError, Notice
from wetread.graph import Graph
from wetread.graph.fold import fold_constants

_FILES = {"from_file", "save", "load", "_save", "_load", "read_file", "write_file", "_pickle_load_obj"}
_SPACES = {"aten", "prim"}
_AT_LOAD = {"__setstate__", "__getstate__"}


def import_torchscript(path: Path, options: ImportOptions) -> Imported:
    """Reads a TorchScript file and exports it for ``options.window``.

    Raises:
        GraphError: truncated, needs ``--trust``, no window was given, or no counterpart in ONNX.
        EngineUnavailableError: PyTorch is not installed.
    """
    if options.window is None:
        raise GraphError(
            "a TorchScript file does not say the shape of its input",
            where=str(path),
            todo="give a recipe with a window, or export the network to ONNX",
        )
    network = load_torchscript(path, trust=options.trust)
    graph, notices = torchscript_graph(network, options.window, options, str(path))
    return Imported((ImportedNetwork(graph),), sources=(path,), tools=tools(), notices=notices)


def load_torchscript(path: Path, *, trust: bool) -> Any:
    """The network on the CPU, in evaluation mode and float32.

    Raises:
        GraphError: damaged, or its code does what a network has no use for and `trust` is False.
        EngineUnavailableError: PyTorch is not installed.
    """
    reasons = inspect_torchscript(path)
    if reasons and not trust:
        raise GraphError(
            f"the code in this file does what a network has no use for: {'; '.join(reasons[:4])}",
            where=str(path),
            todo="say --trust if you know who made it",
            code="NEEDS_TRUST",
        )
    torch = need_torch(str(path))
    try:
        with quiet():
            return torch.jit.load(str(path), map_location="cpu").eval().float()
    except Exception as error:  # the loader raises what it likes
        raise GraphError(
            f"PyTorch {torch.__version__} cannot load this TorchScript file: {short(error)}",
            where=str(path),
            todo="save it again with torch.jit.save, or give an exported program (.pt2) or ONNX",
        ) from error


def inspect_torchscript(path: Path) -> tuple[str, ...]:
    """What the code in the file does that a network has no use for; empty where there is nothing.

    Raises:
        GraphError: the archive is damaged or holds no code.
    """
    reasons: list[str] = []
    with open_archive(path) as archive:
        names = [n for n in archive.namelist() if "/code/" in f"/{n}" and n.endswith(".py")]
        if not names:
            raise GraphError("this archive holds no TorchScript code", where=str(path))
        for name in names:
            reasons += _of_code(archive, name)
    return tuple(dict.fromkeys(reasons))


def _of_code(archive: zipfile.ZipFile, name: str) -> Iterator[str]:
    try:
        tree = ast.parse(archive.read(name).decode("utf-8", "replace"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        yield f"{name} cannot be parsed"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in _AT_LOAD:
            yield f"{node.name} in {name} runs as the file is loaded"
        elif isinstance(node, ast.Attribute):
            dotted = _dotted(node)
            if dotted[:1] == ["torch"] and (dotted[-1] in _FILES or dotted[1:2] == ["classes"]):
                yield f"it calls {'.'.join(dotted)}"
            elif dotted[:1] == ["ops"] and len(dotted) > 2:
                if dotted[1] not in _SPACES:
                    yield f"it calls the custom operator {dotted[1]}::{dotted[2]}"
                elif dotted[2] in _FILES or "Python" in dotted[2]:
                    yield f"it calls {dotted[1]}::{dotted[2]}"


def _dotted(node: ast.expr) -> list[str]:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        parts.append(node.id)
    return parts[::-1]


def input_channels(network: Any, where: str) -> int:
    """Channels of a network's input, by the first weight that convolves in 3D.

    Raises:
        GraphError: there is none.
    """
    for _, weight in (*network.named_parameters(), *network.named_buffers()):
        if weight.dim() == 5:
            return int(weight.shape[1])
    raise GraphError(
        "the channels of the network's input cannot be told: it has no 3D convolution",
        where=where,
        todo="export the network to ONNX or .pt2",
    )


def torchscript_graph(
    network: Any, window: Sequence[int], options: ImportOptions, where: str, channels: int | None = None
) -> tuple[Graph, tuple[Notice, ...]]:
    """The graph of a TorchScript network, checked against PyTorch itself.

    Args:
        network: as `load_torchscript` gives it.
        window: spatial shape that it is exported for; axes stay free with ``options.dynamic``.
        options: ``dynamic`` and ``optimise`` are used.
        where: file for messages.
        channels: of its input; None reads them off the first 3D convolution.

    Raises:
        GraphError: no counterpart in ONNX, or the graph does not give what PyTorch gives.
    """
    torch = need_torch(where)
    if channels is None:
        channels = input_channels(network, where)
    free = {0: "batch", **({2: "i", 3: "j", 4: "k"} if options.dynamic else {})}
    example, content = torch.zeros(1, channels, *window), io.BytesIO()
    try:
        with quiet(), torch.no_grad():
            torch.onnx.export(
                network,
                (example,),
                content,
                dynamo=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["output"],
                dynamic_axes={"image": free, "output": free},
                do_constant_folding=options.optimise,
                training=torch.onnx.TrainingMode.EVAL
                if options.optimise
                else torch.onnx.TrainingMode.PRESERVE,
            )
    except Exception as error:  # the exporter raises what it likes
        raise GraphError(
            f"PyTorch cannot turn this network into ONNX for windows of {tuple(window)}: {short(error)}",
            where=where,
            todo="try another window, or export the network yourself with torch.export or to ONNX",
        ) from error
    graph = fold_constants(Graph.from_bytes(content.getvalue(), where).stripped())

    def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
        return first_output(network, image)

    return graph, check_agreement(run, graph, channels, window)
