"""Plans on disk: a serialised engine and, beside it, what it was made of and for."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from wetread.errors import EngineError, OutputError, PackageError
from wetread.package import ShapeProfile, bytes_sha256
from wetread.package.manifest import Closed, Sha256, parse, pretty
from wetread.storage import write_bytes

TIMINGS = "timing.cache"
"""Measured times of kernels on this GPU; makes the next build shorter, and its choices the same."""


class PlanRecord(Closed):
    """What a plan was made of and for; lies beside it as JSON.

    Attributes:
        tensorrt: version that made it; another does not read it.
        gpu, compute_capability: device that it was tuned for.
        network: SHA-256 of the ONNX bytes that were fed.
        package: hash of the package; empty for a network without one.
        shapes: window shapes that it takes.
        options: how it was built; told, not compared.
        plan: SHA-256 of the serialised engine.
    """

    format: Literal[1] = 1
    tensorrt: str
    gpu: str
    compute_capability: str
    network: Sha256
    package: str = ""
    shapes: ShapeProfile
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    plan: Sha256

    def check(self, wanted: PlanRecord, where: str) -> None:
        """Compares with what this process needs.

        Raises:
            EngineError: another version, GPU, network, package or profile; names what was found and expected.
        """
        for name in ("tensorrt", "gpu", "compute_capability", "network", "package", "shapes"):
            found, expected = getattr(self, name), getattr(wanted, name)
            if found != expected:
                raise EngineError(
                    f"the plan is for {name} {found}, this is {expected}",
                    where=where,
                    todo="it is built anew for this device",
                )


def plan_name(network: str, shapes: ShapeProfile) -> str:
    """File name of a plan: start of the network's hash, and its shapes."""
    sizes = dict.fromkeys("x".join(map(str, shape)) for shape in (shapes.min, shapes.opt, shapes.max))
    return f"{network[:16]}-{'-'.join(sizes)}.plan"


def read_plan(path: Path, wanted: PlanRecord) -> bytes | None:
    """A plan that fits; None where there is none.

    Args:
        path: of the plan; its record has the same name and ``.json`` behind it.
        wanted: what this process needs; its own ``plan`` is not compared.

    Raises:
        EngineError: there is one, and it is damaged or for something else.
    """
    record_path = path.with_name(path.name + ".json")
    if not path.is_file() and not record_path.is_file():
        return None
    try:
        record = parse(PlanRecord, record_path)
        record.check(wanted, str(path))
        content = path.read_bytes()
    except (PackageError, OSError) as error:
        raise EngineError(
            f"the plan or its record cannot be read: {error}",
            where=str(path),
            todo="it is built anew for this device",
        ) from error
    if (digest := bytes_sha256(content)) != record.plan:
        raise EngineError(
            f"the plan has SHA-256 {digest}, its record says {record.plan}",
            where=str(path),
            todo="it is built anew for this device",
        )
    return content


def write_plan(path: Path, content: bytes, record: PlanRecord) -> bool:
    """Writes a plan and its record, each whole or not at all; False where the folder cannot be written.

    The record comes last: a plan without one is refused, so that a process that dies between leaves no plan
    that counts.
    """
    try:
        path.with_name(path.name + ".json").unlink(missing_ok=True)
        write_bytes(path, content)
        write_bytes(path.with_name(path.name + ".json"), pretty(record.model_dump(mode="json")))
    except (OutputError, OSError):
        return False
    return True
