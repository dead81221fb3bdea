"""From PyTorch to a graph: what all importers of its formats share."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.build.importers.base import ImportOptions
from wetread.errors import EngineUnavailableError, GraphError, Notice
from wetread.graph import Graph
from wetread.graph.fold import fold_constants

OPSET = 20
"""Operators of the exported graph: 20 is the first that knows GELU, and every engine takes it."""
TOLERANCE = 1e-4
"""Difference between PyTorch and the graph, both in float32: root mean square, relative to that of the output."""
WORST = 1e-3
"""Largest difference, relative to the largest output: float32 alone gives 1e-4 in a network of nnU-Net's size."""

Float32 = NDArray[np.float32]


def need_torch(where: str) -> ModuleType:
    """The module `torch`.

    Raises:
        EngineUnavailableError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise EngineUnavailableError(
            "PyTorch is not installed, this format cannot be read without it",
            where=where,
            todo="pip install 'wetread[torch]', or export the network to ONNX where PyTorch is",
        ) from error
    found: ModuleType = torch
    return found


def tools(*names: str) -> dict[str, str]:
    """Versions of the distributions that took part."""
    return {name: metadata.version(name) for name in ("torch", "onnx", "onnxscript", *names)}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters tell their progress, and warn of what is checked here anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def program_graph(program: Any, where: str, *, optimise: bool = False) -> Graph:
    """The graph of a `torch.export.ExportedProgram`.

    Args:
        program: exported in inference mode, with one input.
        where: file for messages.
        optimise: lets the exporter fold what it can.

    Raises:
        GraphError: an operator has no counterpart in ONNX; names it.
    """
    torch = need_torch(where)
    names = list(program.graph_signature.user_inputs)
    if len(names) != 1:
        raise GraphError(
            f"the network has {len(names)} inputs ({', '.join(map(str, names))}), expected one",
            where=where,
            todo="concatenate inputs along the channel axis, in a module around the network, before exporting",
        )
    try:
        with quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                optimize=optimise,
                opset_version=OPSET,
                verbose=False,
                input_names=["image"],
                output_names=["output"],
            )
        model = exported.model_proto
    except Exception as error:  # the exporter raises what it likes
        raise GraphError(
            f"PyTorch cannot turn this network into ONNX: {short(error)}",
            where=where,
            todo="replace the operator that it names, or give an ONNX file",
        ) from error
    return fold_constants(Graph(model, where).stripped())


def module_graph(
    network: Any, channels: int, window: Sequence[int], options: ImportOptions, where: str
) -> tuple[Graph, tuple[Notice, ...]]:
    """The graph of a `torch.nn.Module` in evaluation mode, checked against PyTorch itself.

    The batch axis is free where the network allows it; spatial axes are fixed at the window unless
    ``options.dynamic``.

    Args:
        network: takes float32 (batch, channels, *window).
        channels: channels of its input.
        window: spatial shape that it is exported for.
        options: ``dynamic`` and ``optimise`` are used.
        where: file for messages.

    Returns:
        The graph, and what could not be kept free.

    Raises:
        GraphError: it cannot be exported, or the graph does not give what PyTorch gives.
    """
    torch = need_torch(where)
    network = network.float().cpu().eval()
    free = torch.export.Dim.DYNAMIC
    axes = {0: free, **({2: free, 3: free, 4: free} if options.dynamic else {})}
    notices: tuple[Notice, ...] = ()
    try:
        program = _exported(torch, network, (2, channels, *window), axes)
        graph = program_graph(program, where, optimise=options.optimise)
    except Exception as error:
        if options.dynamic:
            raise GraphError(
                f"the network cannot be exported with free spatial axes: {short(error)}",
                where=where,
                todo="build without free shapes",
            ) from error
        try:
            program = _exported(torch, network, (1, channels, *window), {})
        except Exception as again:
            raise GraphError(
                f"PyTorch cannot export this network for windows of {tuple(window)}: {short(again)}",
                where=where,
                todo="try another window, export it yourself with torch.export, or give an ONNX file",
            ) from again
        graph = program_graph(program, where, optimise=options.optimise)
        text = f"the network could not be exported with a free batch axis ({short(error)}); the batch is 1"
        notices = (Notice("BATCH_FIXED", text, where),)

    def run(image: Float32) -> Float32:
        return first_output(network, image)

    return graph, (*notices, *check_agreement(run, graph, channels, window))


def _exported(torch: Any, network: Any, shape: Sequence[int], axes: dict[int, Any]) -> Any:
    example = torch.zeros(*shape)
    with quiet(), torch.no_grad():
        return torch.export.export(network, (example,), dynamic_shapes=(axes,) if axes else None)


def first_output(network: Any, image: Float32) -> Float32:
    """First output of a PyTorch network for (batch, channels, *window)."""
    import torch

    with quiet(), torch.no_grad():
        output = network(torch.from_numpy(image))
    while not isinstance(output, torch.Tensor):  # tuples, lists and dictionaries of outputs
        output = next(iter(output.values() if isinstance(output, dict) else output))
    result: Float32 = output.detach().float().numpy()
    return result


def check_agreement(
    run: Callable[[Float32], Float32], graph: Graph, channels: int, window: Sequence[int]
) -> tuple[Notice, ...]:
    """Compares the graph, run by OpenVINO, with the network that it was made from, on random input.

    Args:
        run: the network itself, (batch, channels, *window) to its first output.
        graph: what was made of it.
        channels: of the input.
        window: spatial shape.

    Returns:
        A notice where OpenVINO is not installed, so that nothing was compared.

    Raises:
        GraphError: shapes differ, or values differ by more than `TOLERANCE` on average or `WORST` anywhere.
    """
    from wetread.engines import make_engine, resolve

    try:
        resolve("openvino")
    except EngineUnavailableError:
        text = "the exported graph was not compared with PyTorch: OpenVINO is not installed"
        return (Notice("IMPORT_UNCHECKED", text, graph.where),)
    rng = np.random.default_rng(0)
    # two different windows at once show a batch axis that is free in name only
    batch = 2 if graph.inputs[0].shape[0] is None and np.prod(window) <= 96**3 else 1
    image = rng.normal(size=(batch, channels, *window)).astype(np.float32)
    expected = run(image)
    engine = make_engine(graph, "openvino")
    try:
        shape = engine.output_shape((window[0], window[1], window[2]))
        found = np.full((batch, *shape), np.nan, np.float32)
        if found.shape != expected.shape:
            raise GraphError(
                f"the exported graph returns {found.shape}, PyTorch {expected.shape}", where=graph.where
            )
        with engine.context((window[0], window[1], window[2]), batch) as context:
            context.submit((image,), (found,)).wait()
    finally:
        engine.close()
    largest = float(np.abs(expected).max())
    worst = float(np.abs(found - expected).max())
    usual = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))
    off = float(np.sqrt(np.mean(np.square(found - expected, dtype=np.float64))))
    if not (worst <= WORST * max(largest, 1e-6) and off <= TOLERANCE * max(usual, 1e-6)):
        raise GraphError(
            f"the exported graph differs from PyTorch by up to {worst:.2g} where the largest output is "
            f"{largest:.2g} (allowed is a part of {WORST:g}), and by {off:.2g} on average where the output is "
            f"{usual:.2g} (allowed is a part of {TOLERANCE:g})",
            where=graph.where,
            todo="report this network: its export is wrong, or depends on the values of its input",
        )
    return ()


def short(error: BaseException, limit: int = 300) -> str:
    """The lines of an exporter's message that say what was wrong, without its frames and advice."""
    text = str(error)
    for mark in ("## Exception summary", "RuntimeError:", "ValueError:"):
        if mark in text:
            text = text.split(mark, 1)[1]
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("⬆")]
    told = " ".join(lines).split("(Refer to the full stack trace")[0].strip()
    if not told:
        told = type(error).__name__
    return told if len(told) <= limit else told[: limit - 1] + "…"
