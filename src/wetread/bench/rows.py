"""The rows of a bench as plain data: what the table, the JSON and the baseline hold."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from wetread import __version__

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8")


@dataclass(frozen=True)
class Row:
    """One runtime in one precision.

    Attributes:
        engine, precision: name the row.
        figures: what was measured, the unit in each name; those that could not be are None.
        problem: why the row has no figures; empty where it has.
        layers: number of layers by the precision in which they run, where the runtime tells.
    """

    engine: str
    precision: str
    figures: dict[str, float | int | None] = field(default_factory=dict)
    problem: str = ""
    layers: dict[str, int] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Engine and precision."""
        return f"{self.engine} {self.precision}"

    def to_json(self) -> dict[str, Any]:
        """One object: engine, precision, figures."""
        data: dict[str, Any] = {"engine": self.engine, "precision": self.precision, **self.figures}
        if self.layers:
            data["layers_by_precision"] = self.layers
        if self.problem:
            data["problem"] = self.problem
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Row:
        """The row that `to_json` wrote."""
        rest = dict(data)
        named = (rest.pop("engine"), rest.pop("precision"))
        layers, problem = rest.pop("layers_by_precision", {}), rest.pop("problem", "")
        return cls(*named, rest, problem, layers)


def timing_figures(seconds: Sequence[float]) -> dict[str, float | int | None]:
    """Median, quartiles and 95th percentile in milliseconds, and windows a second (by the mean).

    Percentiles interpolate linearly, as numpy's.
    """
    p25, p50, p75, p95 = (float(v) for v in np.percentile(np.asarray(seconds) * 1000, (25, 50, 75, 95)))
    return {
        "latency_ms_p50": round(p50, 3),
        "latency_ms_p95": round(p95, 3),
        "latency_ms_p25": round(p25, 3),
        "latency_ms_p75": round(p75, 3),
        "windows_per_s": round(len(seconds) / sum(seconds), 4),
        "windows_timed": len(seconds),
    }


def machine(threads: int) -> dict[str, Any]:
    """Processor, cores, memory, system; what two runs must share to be compared."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = text.splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "processor": model or platform.processor() or platform.machine(),
        "instruction_sets": [name for name in _INSTRUCTIONS if name in flags],
        "cores": affinity,
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "wetread": __version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


@dataclass(frozen=True)
class Bench:
    """A run of the bench.

    Attributes:
        rows: in the order of the table.
        package: name, version, hash and precision of the package.
        case: what was read, and over what accuracy was taken.
        compared_with: key of the float32 row that outputs are compared with; empty where there is none.
        machine: see `machine`.
        versions: of the runtimes' packages.
        settings: windows, turns, threads.
    """

    rows: tuple[Row, ...]
    package: dict[str, Any]
    case: dict[str, Any]
    compared_with: str
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """What ``bench.json`` holds."""
        return {
            "format": 1,
            "package": self.package,
            "case": self.case,
            "compared_with": self.compared_with,
            "rows": [row.to_json() for row in self.rows],
            "machine": self.machine,
            "versions": self.versions,
            "settings": self.settings,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Bench:
        """The bench that `to_json` wrote.

        Raises:
            KeyError, TypeError: it is none.
        """
        return cls(
            tuple(Row.from_json(row) for row in data["rows"]),
            data["package"],
            data["case"],
            data["compared_with"],
            data["machine"],
            data["versions"],
            data["settings"],
        )
