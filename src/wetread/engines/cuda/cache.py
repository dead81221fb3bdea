"""Measured times of kernels, kept as JSON: what was timed once on a machine is not timed again.

An entry belongs to a problem (operation, shapes, types, strides, attributes) and to a stamp: GPU, driver, versions,
hash of the kernels' source. Entries of other stamps never decide; they serve as hints, which kernels to time.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import torch

from wetread.engines.cuda.program import Json, Program, Step
from wetread.storage import write_bytes

Problem: TypeAlias = Mapping[str, Json]
Stamp: TypeAlias = Mapping[str, str]
FORMAT = 1
KEPT = 6
"""Rows of an entry: the winner and those behind it."""


@dataclass(frozen=True)
class Row:
    """A candidate that gave the right values.

    Attributes:
        kernel: plain data; None is the library.
        us: median microseconds of one launch.
        error: relative L2 distance from the reference.
    """

    kernel: Mapping[str, Json] | None
    us: float
    error: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"kernel": self.kernel, "us": round(self.us, 4), "error": float(f"{self.error:.3e}")}


def problem_of(step: Step, program: Program) -> dict[str, Json]:
    """All of a step that its speed may depend on; steps of equal problems are timed once.

    Names are left out, and so are the values of floating attributes (scales, slopes, eps): only whether one is 0,
    1 or another number, since kernels may leave such a factor out.
    """
    storages: dict[str, int] = {}

    def describe(name: str) -> Json:
        spec = program.spec(name)
        told: list[Json] = [list(spec.shape), spec.dtype, list(spec.strides)]
        if name not in program.tensors:
            return [*told, "weight"]
        base = program.base(name)
        number = storages.setdefault(base, len(storages))
        return [*told, number, spec.offset, program.tensors[base].elements, program.tensors[base].zeroed]

    def rolled(names: Mapping[str, str]) -> Json:
        return {role: describe(names[role]) for role in sorted(names)}

    return {
        "op": step.op, "attributes": _kind_of_numbers(dict(step.attributes)), "inputs": rolled(step.inputs),
        "outputs": rolled(step.outputs), "tf32": program.precision != "float32",
    }  # fmt: skip


def _kind_of_numbers(value: Json) -> Json:
    if isinstance(value, Mapping):
        return {key: _kind_of_numbers(each) for key, each in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [_kind_of_numbers(each) for each in value]
    if isinstance(value, float):
        return value if value in (0.0, 1.0) else "number"
    return value


def _kin(problem: Problem) -> str:
    """What is alike in problems that want similar kernels: all but batch and size of the window."""

    def channels(rolled: Mapping[str, Json]) -> Json:
        return {
            role: [each[0] if each[3] == "weight" else each[0][1:2], each[1]] for role, each in rolled.items()
        }

    return _key({"op": problem["op"], "attributes": problem["attributes"], "inputs": channels(problem["inputs"]),
                 "outputs": channels(problem["outputs"])})  # fmt: skip


def _voxels(problem: Problem) -> int:
    """Of the largest tensor, batch included."""
    specs = (*problem["inputs"].values(), *problem["outputs"].values())
    return max(
        (math.prod((each[0][0], *each[0][2:])) for each in specs if each[3] != "weight" and each[0]),
        default=1,
    )


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def problem_key(problem: Problem) -> str:
    """Short text that is equal for equal problems."""
    return _key(problem)


@cache
def source_hash() -> str:
    """Of all sources that decide what a kernel is and computes."""
    found = hashlib.sha256()
    here = Path(__file__).resolve().parent
    for folder in (here.parents[1] / "kernels", here / "operations"):
        for file in sorted(folder.rglob("*")):
            if file.suffix in (".py", ".cu", ".cuh", ".h"):
                found.update(file.relative_to(folder).as_posix().encode())
                found.update(file.read_bytes())
    return found.hexdigest()[:16]


def stamp(device: torch.device | str | int | None = None) -> dict[str, str]:
    """What a timing depends on besides the problem.

    Args:
        device: None takes torch's current GPU, or the CPU where there is none.
    """
    gpu, driver = "cpu", ""
    if torch.cuda.is_available() and (device is None or torch.device(device).type == "cuda"):
        gpu, driver = torch.cuda.get_device_name(device), driver_version()
    return {
        "gpu": gpu, "driver": driver, "cuda": str(torch.version.cuda or ""), "torch": str(torch.__version__),
        "triton": _installed("triton"), "kernels": source_hash(),
    }  # fmt: skip


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def driver_version() -> str:
    """Of NVIDIA's driver, such as 580.95.05; empty where its library is not found."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(96)
        if library.nvmlInit_v2() == 0 and library.nvmlSystemGetDriverVersion(text, 96) == 0:
            return text.value.decode()
    return ""


@dataclass
class TimingCache:
    """Winners by problem, in one file that several processes may write.

    Attributes:
        path: of the JSON; None keeps all in memory.
        stamp: of this machine; entries of others give hints alone.
    """

    path: Path | None
    stamp: Stamp
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.entries = {**self._read(), **self.entries}

    def get(self, problem: Problem) -> list[Row] | None:
        """What was measured here, fastest first; None if it never was."""
        entry = self.entries.get(_key(problem, self.stamp))
        return None if entry is None else _rows(entry)

    def put(self, problem: Problem, rows: Sequence[Row]) -> None:
        """Keeps the fastest rows of a problem, and what other processes have written meanwhile.

        Raises:
            OutputError: the file cannot be written.
        """
        key = _key(problem, self.stamp)
        entry = {
            "problem": problem,
            "stamp": dict(self.stamp),
            "rows": [row.to_json() for row in rows[:KEPT]],
        }
        # as it will be read again: tuples are lists, keys are texts
        self.entries[key] = json.loads(json.dumps(entry))
        if self.path is None:
            return
        with _locked(self.path):
            self.entries = {**self._read(), **self.entries}
            whole = {"format": FORMAT, "entries": self.entries}
            write_bytes(self.path, (json.dumps(whole, indent=1, sort_keys=True) + "\n").encode())

    def hints(self, problem: Problem, *, same_kernels: bool = False) -> list[Mapping[str, Json] | None]:
        """Kernels that won, or nearly, for this problem on other machines or versions, or for its kin; best first.

        Kin are problems that differ in batch and window alone, by a factor of 16 in voxels at the most.

        Args:
            problem: to be tuned.
            same_kernels: only what was measured with the kernels of this version, on this model of GPU.
        """
        known = [
            e for e in self.entries.values()
            if not same_kernels or all(e["stamp"].get(k) == self.stamp.get(k) for k in ("kernels", "gpu"))
        ]  # fmt: skip
        found = [e for e in known if _key(e["problem"]) == _key(problem)]
        if not found:
            kin, size = _kin(problem), _voxels(problem)
            found = [
                e for e in known if _kin(e["problem"]) == kin and size <= 16 * _voxels(e["problem"]) <= 256 * size
            ]  # fmt: skip
        ranked = sorted(((rank, row.kernel) for e in found for rank, row in enumerate(_rows(e))),
                        key=lambda pair: pair[0])  # fmt: skip
        kept: list[Mapping[str, Json] | None] = []
        for _, kernel in ranked:
            if kernel not in kept:
                kept.append(kernel)
        return kept

    def _read(self) -> dict[str, dict[str, Any]]:
        """Entries on disk; none where the file is missing, damaged or of another format: all is timed again."""
        if self.path is None:
            return {}
        try:
            whole = json.loads(self.path.read_bytes())
            if whole["format"] != FORMAT:
                return {}
            found = dict(whole["entries"])
            for entry in found.values():
                _rows(entry)
                _key(entry["problem"], entry["stamp"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return found


def _rows(entry: Mapping[str, Any]) -> list[Row]:
    return [Row(row["kernel"], float(row["us"]), float(row["error"])) for row in entry["rows"]]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keeps other processes from writing the file between reading and writing it here."""
    try:
        import fcntl
    except ImportError:  # no POSIX: files are still whole, a concurrent entry may be lost and is timed again
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
