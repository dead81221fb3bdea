"""Which backends there are, and how one is made of a package or a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

from wetread.engines.base import Engine
from wetread.engines.functions import has_functions
from wetread.errors import EngineUnavailableError, PackageError
from wetread.package import Package, ShapeProfile

if TYPE_CHECKING:
    from wetread.graph import Graph


@dataclass(frozen=True)
class Backend:
    """One backend: where its `make` lives, and what must be installed for it.

    `make` takes a `Request` and returns an `Engine`. ``gated`` is False where no numbers of the network come
    out, so that there is nothing to judge.
    """

    name: str
    module: str
    requires: tuple[str, ...]
    install: str
    gated: bool = True

    def installed(self) -> bool:
        """True where the backend's room and its vendor's packages can be found; imports nothing heavy."""
        return find_spec(self.module) is not None and all(
            find_spec(name) is not None for name in self.requires
        )


@dataclass(frozen=True)
class Request:
    """What a backend makes an engine of; all that `make_engine` was asked for, resolved.

    Attributes:
        network: ONNX file, or a graph in memory.
        where: the network's name in messages.
        device, precision, threads: None leaves the choice to the backend.
        shapes: profile of window shapes; None where the network takes any that its axes leave free.
        package: the package that the network is of; its cache folder may hold plans for this device.
    """

    network: Path | Graph
    where: str
    device: str | None = None
    precision: str | None = None
    threads: int | None = None
    shapes: ShapeProfile | None = None
    package: Package | None = None

    def source(self) -> Path | bytes:
        """The network as a file, or as ONNX bytes, for runtimes that read ONNX themselves.

        Functions of our own domain, which no runtime knows, are inlined.
        """
        if isinstance(self.network, Path) and not has_functions(self.network):
            return self.network
        return self.graph().inlined().to_bytes()

    def graph(self) -> Graph:
        """The network as a graph, loaded if need be."""
        from wetread.graph import Graph

        return Graph.load(self.network) if isinstance(self.network, Path) else self.network


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("openvino", "wetread.engines.openvino", ("openvino",), "pip install openvino"),
        Backend("reference", "wetread.engines.reference", ("onnx",), "pip install onnx"),
        Backend("null", "wetread.engines.null", (), "", gated=False),
        Backend(
            "onnxruntime",
            "wetread.engines.onnxruntime",
            ("onnxruntime",),
            "pip install 'wetread[onnxruntime]'",
        ),
        Backend(
            "cuda", "wetread.engines.cuda", ("torch", "triton", "safetensors"), "pip install 'wetread[cuda]'"
        ),
        Backend(
            "tensorrt", "wetread.engines.tensorrt", ("tensorrt", "cuda"), "pip install 'wetread[tensorrt]'"
        ),
    )
}

AUTO = ("openvino", "onnxruntime")
"""What ``auto`` chooses from, the best first. Devices beyond the CPU are named by who wants them."""


def available() -> list[str]:
    """Names of the backends that are installed."""
    return [name for name, backend in BACKENDS.items() if backend.installed()]


def resolve(backend: str = "auto") -> Backend:
    """The backend of that name; ``auto`` becomes the first of `AUTO` that is installed.

    Raises:
        EngineUnavailableError: unknown name, or not installed; says what to install.
    """
    if backend == "auto":
        for name in AUTO:
            if BACKENDS[name].installed():
                return BACKENDS[name]
        raise EngineUnavailableError(
            f"none of {', '.join(AUTO)} is installed", where="backend auto", todo=BACKENDS[AUTO[0]].install
        )
    if backend not in BACKENDS:
        raise EngineUnavailableError(
            f"there is no backend {backend!r}", todo=f"use auto or one of {', '.join(BACKENDS)}"
        )
    found = BACKENDS[backend]
    if find_spec(found.module) is None:
        raise EngineUnavailableError(
            f"this version of wetread has no backend {backend!r}", todo=f"use one of {', '.join(available())}"
        )
    missing = [name for name in found.requires if find_spec(name) is None]
    if missing:
        raise EngineUnavailableError(
            f"backend {backend!r} needs {', '.join(missing)}, which is not installed", todo=found.install
        )
    return found


def make_engine(
    source: Package | Graph | Path,
    backend: str = "auto",
    *,
    model: int = 0,
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    shapes: ShapeProfile | None = None,
    override_gate: bool = False,
) -> Engine:
    """Makes an engine.

    Args:
        source: a package, whose gate is then asked; or a graph or an ONNX file, which have none.
        backend: ``auto`` or a name from `BACKENDS`.
        model: which of the package's networks.
        device: the backend's name of a device.
        precision: None takes the network's own.
        threads: processors to use on a CPU; None takes all.
        shapes: smallest, usual and largest window that the engine is made for, where spatial axes are free;
            None takes the package's own, if it has some. Windows outside are refused.
        override_gate: loads although the gate was not passed. Whoever sets it writes the text that
            ``package.check_gate(engine.info.backend, engine.info.precision, override=True)`` returns into
            each reading.

    Raises:
        EngineUnavailableError: unknown or uninstalled backend, or no such device.
        GateError: the package did not pass its gate on this backend in this precision.
        GraphError, UnsupportedOperatorError: the backend cannot run the network.
        PackageError: the package has no such model.
    """
    found = resolve(backend)
    if isinstance(source, Package):
        if not 0 <= model < len(source.models):
            raise PackageError(
                f"the package has {len(source.models)} networks, asked for number {model}",
                where=str(source.path),
            )
        shapes = shapes or source.manifest.shapes
        network, where = source.model_path(model), source.models[model].file
        request = Request(network, where, device, precision, threads, shapes, source)
    else:
        where = source.name if isinstance(source, Path) else "graph"
        request = Request(source, where, device, precision, threads, shapes)
    make = cast("Callable[[Request], Engine]", import_module(found.module).make)
    engine = make(request)
    if isinstance(source, Package) and found.gated:
        try:
            source.check_gate(
                engine.info.backend,
                engine.info.precision,
                override_gate,
                engine.info.fingerprint,
                getattr(engine, "plans", ()),
            )
        except BaseException:
            engine.close()
            raise
    return engine
