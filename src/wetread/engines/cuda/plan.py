"""A plan: a program with its kernels chosen and its memory placed, and how it lies on disk.

On disk a plan is ``<name>.plan.json`` and one or more ``weights-<hash>.safetensors``, in which each tensor has the
hash of its content as its name: plans of one network for several windows and batches share their weights' files.
The JSON carries the hash of itself and of the files that it needs. Nothing here needs onnx.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch

from wetread.engines.cuda.arena import Placement, place
from wetread.engines.cuda.operations import Arrays, Packs, operation
from wetread.engines.cuda.program import Json, Program, Step, TensorSpec
from wetread.errors import EngineError
from wetread.storage import write_bytes

Launch: TypeAlias = Callable[[], None]
FORMAT = 1
SUFFIX = ".plan.json"
_AGAIN = "delete the plan; it is built again for this device"


@dataclass(frozen=True)
class Plan:
    """A lowered network, ready to run on one kind of device.

    Attributes:
        program: steps with their kernels, weights on the CPU.
        placement: of its storages in an arena.
        provenance: what it was made of and for: GPU, driver, versions, hashes; plain data, told, not obeyed.
    """

    program: Program
    placement: Placement
    provenance: Mapping[str, Json] = field(default_factory=dict)

    @classmethod
    def make(cls, program: Program, provenance: Mapping[str, Json] | None = None) -> Plan:
        """Places a program whose kernels are chosen.

        Raises:
            EngineError: the program contradicts itself.
        """
        program.verify()
        return cls(program, place(program), dict(provenance or {}))

    @property
    def bytes(self) -> int:
        """Bytes of the arena: all that a context holds on the device beside weights and what it stages."""
        return self.placement.bytes

    def arena(self, device: torch.device | str) -> torch.Tensor:
        """A new arena, flat uint8, with zeros where they are needed once.

        Raises:
            torch.OutOfMemoryError: it does not fit.
        """
        arena = torch.empty(max(self.bytes, 1), dtype=torch.uint8, device=device)
        self.zero_once(arena)
        return arena

    def zero_once(self, arena: torch.Tensor) -> None:
        """Before the first run in an arena, and after another plan ran in it. Inputs are written afterwards."""
        start, end = self.placement.once
        arena[start:end].zero_()

    def zero(self, arena: torch.Tensor) -> None:
        """Before every run; leaves the inputs alone, so it may be part of the captured graph."""
        start, end = self.placement.zeroed
        if end > start:
            arena[start:end].zero_()

    def tensors(self, arena: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Every tensor of the program as a view into an arena, and the weights, by name.

        Args:
            arena: flat uint8, of `bytes` or more.
            weights: the program's, on the arena's device.

        Raises:
            EngineError: the arena is too small.
        """
        if arena.dtype != torch.uint8 or arena.numel() < self.bytes:
            raise EngineError(
                f"a plan of {self.bytes} bytes was given an arena of {arena.numel()} × {arena.dtype}"
            )
        found = dict(weights)
        for name, spec in self.program.tensors.items():
            if self.program.base(name) in self.placement.offsets:
                found[name] = spec.view(self.placement.storage(self.program, name, arena))
        return found

    def launchers(
        self, tensors: Mapping[str, torch.Tensor], arena: torch.Tensor, packs: Packs
    ) -> list[Launch]:
        """For each step the function that launches it; packs weights and makes descriptors now.

        What they launch goes to torch's current stream. Library steps want `library_settings` around their first
        run and the capture.

        Args:
            tensors: from `tensors`.
            arena: the same arena, for scratch.
            packs: of the engine; shared by its contexts.

        Raises:
            EngineError: a kernel does not take its tensors; names the step.
        """
        made = []
        for step in self.program.steps:
            start, size = self.placement.scratch.get(step.name, (0, 0))
            arrays = Arrays(
                {role: tensors[name] for role, name in step.inputs.items()},
                {role: tensors[name] for role, name in step.outputs.items()},
                arena[start : start + size] if size else None,
                packs,
            )
            made.append(launcher(step, arrays))
        return made

    def save(self, folder: Path | str, name: str) -> Path:
        """Writes the plan, and those of its weights that no file in the folder holds yet.

        Args:
            folder: made if it is missing.
            name: letters, digits, ``.``, ``_`` and ``-``; without a suffix.

        Returns:
            The JSON file.

        Raises:
            EngineError: an attribute is no plain data, or the name is none.
            OutputError: a file could not be written.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise EngineError(f"{name!r} is no name for a plan", todo="use letters, digits, '.', '_' and '-'")
        folder = Path(folder)
        digests = {key: digest(weight) for key, weight in self.program.weights.items()}
        files = _store(folder, {digests[key]: weight for key, weight in self.program.weights.items()})
        weights = {
            key: {"tensor": digests[key], "strides": list(weight.stride())}
            for key, weight in self.program.weights.items()
        }
        body = {
            "program": program_to_json(self.program),
            "weights": weights,
            "files": files,
            "placement": self.placement.to_json(),
            "provenance": dict(self.provenance),
        }
        text = _text(body)
        whole = {"format": FORMAT, "sha256": hashlib.sha256(text.encode()).hexdigest(), "plan": body}
        path = folder / f"{name}{SUFFIX}"
        write_bytes(path, (_text(whole) + "\n").encode())
        return path

    @classmethod
    def load(
        cls, folder: Path | str, name: str, shared: MutableMapping[str, torch.Tensor] | None = None
    ) -> Plan:
        """Reads a plan that `save` wrote.

        Args:
            folder: where.
            name: as given to `save`.
            shared: weights by the hash of their content; plans loaded with one mapping share their weights.

        Raises:
            EngineError: a file is missing, damaged, truncated, or of another format.
        """
        folder = Path(folder)
        path = folder / f"{name}{SUFFIX}"
        body = _read(path)
        shared = {} if shared is None else shared
        try:
            stored = {key: row["tensor"] for key, row in body["weights"].items()}
            _fetch(folder, body["files"], set(stored.values()), shared)
            weights = {
                key: _strided(shared[row["tensor"]], tuple(row["strides"]), shared, row["tensor"])
                for key, row in body["weights"].items()
            }
            program = program_from_json(body["program"], weights)
            placement = Placement.from_json(body["placement"])
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(
                f"the plan lacks something: {type(error).__name__}: {error}", where=str(path), todo=_AGAIN
            ) from error
        program.verify()
        return cls(program, placement, body["provenance"])


def launcher(step: Step, arrays: Arrays) -> Launch:
    """The function that runs one step on its tensors, by its kernel or by the library.

    Raises:
        EngineError: the kernel does not take the tensors; names the step.
    """
    found = operation(step.op)
    if step.kernel is None:
        return lambda: found.library(step, arrays)
    try:
        return found.prepare(step, step.kernel, arrays)
    except EngineError as error:
        error.where = error.where or step.name
        raise


@contextlib.contextmanager
def library_settings(precision: str) -> Iterator[None]:
    """How the library's kernels are chosen: cuDNN times its own; TF32 unless the engine is of float32.

    The settings are the process's: make plans, warm up and capture under one lock.
    """
    tf32 = precision != "float32"
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=True, deterministic=False, allow_tf32=tf32
        ), torch.no_grad():  # fmt: skip
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def program_to_json(program: Program) -> dict[str, Any]:
    """Everything of a program but its weights, as plain data."""
    tensors = {}
    for name, spec in program.tensors.items():
        row: dict[str, Any] = {"shape": list(spec.shape), "dtype": spec.dtype, "strides": list(spec.strides)}
        if spec.base:
            row |= {"base": spec.base, "offset": spec.offset}
        if spec.zeroed:
            row["zeroed"] = True
        tensors[name] = row
    steps = [
        {key: value for key, value in asdict(step).items() if key in ("name", "op") or value}
        for step in program.steps
    ]
    return {
        "window": list(program.window), "batch": program.batch, "precision": program.precision,
        "inputs": list(program.inputs), "outputs": list(program.outputs), "tensors": tensors, "steps": steps,
    }  # fmt: skip


def program_from_json(data: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> Program:
    """From `program_to_json`.

    Raises:
        KeyError, TypeError, ValueError: something is missing or of another kind.
    """
    tensors = {
        name: TensorSpec(tuple(row["shape"]), row["dtype"], tuple(row["strides"]), row.get("base", ""),
                         row.get("offset", 0), row.get("zeroed", False))
        for name, row in data["tensors"].items()
    }  # fmt: skip
    steps = [
        Step(row["name"], row["op"], row.get("inputs", {}), row.get("outputs", {}), row.get("attributes", {}),
             tuple(row.get("nodes", ())), row.get("kernel"))
        for row in data["steps"]
    ]  # fmt: skip
    depth, height, width = data["window"]
    return Program(
        (depth, height, width), data["batch"], data["precision"], tuple(data["inputs"]), tuple(data["outputs"]),
        tensors, dict(weights), steps,
    )  # fmt: skip


def digest(weight: torch.Tensor) -> str:
    """SHA-256 of a tensor's type, shape and values."""
    flat = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    found = hashlib.sha256(f"{weight.dtype} {list(weight.shape)} ".encode())
    found.update(memoryview(flat.numpy()))
    return found.hexdigest()


def _text(body: Mapping[str, Any]) -> str:
    try:
        return json.dumps(body, sort_keys=True, indent=1)
    except (TypeError, ValueError) as error:
        raise EngineError(f"a plan is plain data only, and this is none: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    """The body of a plan's JSON, checked against its own hash."""
    where = str(path)
    try:
        whole = json.loads(path.read_bytes())
    except OSError as error:
        raise EngineError(f"the plan cannot be read: {error.strerror}", where=where, todo=_AGAIN) from error
    except ValueError as error:
        raise EngineError(
            f"the plan is no JSON, or cut off: {error}", where=where, todo=_AGAIN, code="PLAN_DAMAGED"
        ) from error
    if not isinstance(whole, dict) or "format" not in whole:
        raise EngineError("the file is no plan", where=where, todo=_AGAIN, code="PLAN_DAMAGED")
    if whole["format"] != FORMAT:
        raise EngineError(
            f"the plan is of format {whole['format']!r}, this version reads {FORMAT}", where=where, todo=_AGAIN,
            code="PLAN_FORMAT",
        )  # fmt: skip
    body = whole.get("plan")
    if not isinstance(body, dict) or hashlib.sha256(_text(body).encode()).hexdigest() != whole.get("sha256"):
        raise EngineError(
            "the plan does not match its own hash: it was damaged or changed", where=where, todo=_AGAIN,
            code="PLAN_DAMAGED",
        )  # fmt: skip
    return body


def _store(folder: Path, weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Writes what no file of the folder holds; the hash of each file that holds one of the weights, by its name."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save

    files: dict[str, str] = {}
    missing = dict(weights)
    for path in sorted(folder.glob("weights-*.safetensors")):
        hashed = _file_hash(path)
        if path.stem != f"weights-{hashed[:16]}":
            continue  # damaged: its plans say so when they are loaded
        try:
            with safe_open(path, "pt") as file:
                held = set(file.keys()) & set(missing)
        except (OSError, SafetensorError):
            continue
        if held:
            files[path.name] = hashed
            missing = {key: value for key, value in missing.items() if key not in held}
    if missing:
        data = save({key: value.detach().cpu().contiguous().clone() for key, value in missing.items()})
        hashed = hashlib.sha256(data).hexdigest()
        final = folder / f"weights-{hashed[:16]}.safetensors"
        write_bytes(final, data)
        files[final.name] = hashed
    return files


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(
    folder: Path, files: Mapping[str, str], wanted: set[str], shared: MutableMapping[str, torch.Tensor]
) -> None:
    """Reads the wanted tensors that are not shared yet, from files that match their hashes."""
    from safetensors import SafetensorError, safe_open

    for name, expected in files.items():
        if wanted <= shared.keys():
            return
        path = folder / Path(name).name
        try:
            if _file_hash(path) != expected:
                raise EngineError(
                    "the weights do not match the plan: the file was damaged or cut off", where=str(path),
                    todo=_AGAIN, code="PLAN_DAMAGED",
                )  # fmt: skip
            with safe_open(path, "pt") as file:
                for key in wanted & set(file.keys()):
                    if key not in shared:
                        shared[key] = file.get_tensor(key)
        except OSError as error:
            raise EngineError(
                f"the plan's weights cannot be read: {error.strerror or error}", where=str(path), todo=_AGAIN
            ) from error
        except SafetensorError as error:
            raise EngineError(
                f"the plan's weights are damaged: {error}", where=str(path), todo=_AGAIN, code="PLAN_DAMAGED"
            ) from error


def _strided(
    weight: torch.Tensor, strides: tuple[int, ...], shared: MutableMapping[str, torch.Tensor], key: str
) -> torch.Tensor:
    """The weight with the strides that its program had."""
    if tuple(weight.stride()) == strides or weight.numel() <= 1:
        return weight
    key = f"{key} {strides}"
    if key not in shared:
        shared[key] = torch.empty_strided(weight.shape, strides, dtype=weight.dtype).copy_(weight)
    return shared[key]
