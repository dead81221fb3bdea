"""What a worker process is asked to run: plain data that crosses the pipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Kind = Literal["torch-eager", "torch-script", "onnxruntime", "openvino", "wetread"]


DEVICES = ("cuda", "tensorrt")
"""Backends whose weights and activations lie in a GPU's memory."""


@dataclass(frozen=True)
class Task:
    """One row of the bench.

    Attributes:
        engine: name of the row, such as ``PyTorch eager``.
        precision: arithmetic of the row.
        kind: which player runs it.
        networks: ONNX files; the folds of an ensemble are averaged.
        window: spatial shape.
        channels: input channels.
        threads: of every runtime.
        package: folder of the package that the networks belong to, whose gate wetread's engine asks; empty for
            plain files, which have none.
        backend: of wetread's engine.
        arithmetic: precision that is asked of it; empty takes the network's own.
        optimise: whether wetread's graph passes run on a plain file first.
        allow_failed_gate: load an engine whose gate was not passed.
        factory: ``FILE.py:FUNCTION`` that returns a torch module, in place of the ONNX file (benchmarks only: the
            file is executed).
    """

    engine: str
    precision: str
    kind: Kind
    networks: tuple[str, ...]
    window: tuple[int, int, int]
    channels: int
    threads: int
    package: str = ""
    backend: str = "openvino"
    arithmetic: str = ""
    optimise: bool = False
    allow_failed_gate: bool = False
    factory: str = ""

    @property
    def key(self) -> str:
        """Name and precision, which together name a row."""
        return f"{self.engine} {self.precision}"

    def to_json(self) -> dict[str, Any]:
        """All fields as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Task:
        """The task that `to_json` wrote."""
        lists = {"networks": tuple(data["networks"]), "window": tuple(data["window"])}
        return cls(**(data | lists))


class Player(Protocol):
    """One network made ready in one runtime, inside a worker.

    Attributes:
        size_bytes: of the network on disk, as this runtime's users would keep it.
        versions: of the runtime's packages.
        layers: how many layers run in which precision, where the runtime tells.
    """

    size_bytes: int
    versions: dict[str, str]
    layers: dict[str, int]

    def run(self, image: Float32) -> Float32:
        """Runs one window (1, channels, *window); the result is only read until the next call."""
        ...


def sizes(paths: tuple[str, ...]) -> int:
    """Bytes of files, with external weights beside them (``NAME.data``)."""
    total = 0
    for name in paths:
        path = Path(name)
        beside = path.with_name(path.name + ".data")
        total += path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)
    return total
