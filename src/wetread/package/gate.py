"""The gate's records: on which backend and in which precision a package was found to keep its accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from wetread.errors import GateError
from wetread.package.manifest import Arithmetic, Closed, Sha256

ANY = "*"
REFERENCE = "reference"
"""The float64 backend, which other backends are compared with and which therefore needs no gate."""


class GateRecord(Closed):
    """One run of the gate, or the statement that none is needed.

    Attributes:
        backend: name of the backend; ``*`` for every one.
        precision: arithmetic that was judged.
        status: ``reference`` for a float32 network run as float32, which is what others are compared with.
        cases: how many held-out cases were read.
        figures: what was measured, such as ``mean_dice_drop``.
        device: where it was run, such as the processor's name; empty where it holds for every device.
        note: in words.
    """

    backend: str = Field(min_length=1)
    precision: Arithmetic
    status: Literal["reference", "passed", "failed"]
    cases: int = Field(0, ge=0)
    figures: dict[str, float] = Field(default_factory=dict)
    device: str = ""
    note: str = ""


class Gate(Closed):
    """All records of one package.

    Attributes:
        package: hash of the package they speak of.
        records: the last one of a backend and precision counts.
    """

    format: Literal[1] = 1
    package: Sha256
    records: tuple[GateRecord, ...] = ()

    def find(self, backend: str, precision: str) -> GateRecord | None:
        """The record of this backend and precision, else the one for every backend."""
        for name in (backend, ANY):
            for record in reversed(self.records):
                if (record.backend, record.precision) == (name, precision):
                    return record
        return None


class DeviceGate(Closed):
    """The gate that was run on one device, with its whole table; lies in ``engines/<fingerprint>/gate.json``.

    Attributes:
        package: hash of the package it speaks of.
        fingerprint: of the engine that was judged: backend, version, precision and device.
        record: the summary.
        plans: SHA-256 of the serialised engines beside it that it was run with, by file name.
        table: every case and figure, as `wetread.build.gate` writes it.
    """

    format: Literal[1] = 1
    package: Sha256
    fingerprint: str
    record: GateRecord
    plans: dict[str, Sha256] = Field(default_factory=dict)
    table: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class GateVerdict:
    """Why an engine was allowed to load; `text` goes into every reading it takes part in."""

    status: Literal["reference", "passed", "overridden"]
    text: str


def reference_record(
    note: str = "the unmodified float32 network is what other precisions are compared with",
) -> GateRecord:
    """The record that a float32 network gets when it is packed."""
    return GateRecord(
        backend=ANY,
        precision="float32",
        status="reference",
        note=note,
    )


def judge(
    gate: Gate, backend: str, precision: str, override: bool, where: str, own: GateRecord | None = None
) -> GateVerdict:
    """Decides whether an engine may load.

    Args:
        gate: the package's summary.
        backend, precision: of the engine.
        override: the user loads it whatever the gate says.
        where: for messages.
        own: what the gate said on this very device; counts before the summary.

    Raises:
        GateError: no record, or a failed one, and no override.
    """
    record = own if own is not None else gate.find(backend, precision)
    name = f"{backend} in {precision}"
    if backend == REFERENCE and record is None:
        return GateVerdict("reference", f"{name}: reference (others are compared with it)")
    if record is not None and record.status != "failed":
        detail = _own_figures(record) or record.note
        return GateVerdict(record.status, f"{name}: {record.status}" + (f" ({detail})" if detail else ""))
    found = "no gate has been run" if record is None else f"the gate failed ({_figures(record)})"
    if override:
        return GateVerdict("overridden", f"{name}: {found}; loaded by explicit override")
    known = ", ".join(f"{r.backend} {r.precision} {r.status}" for r in gate.records) or "none"
    raise GateError(
        f"{found} for {name}; records: {known}",
        where=where,
        todo="use a backend and precision that passed, run the gate, or override explicitly",
    )


def _figures(record: GateRecord) -> str:
    return _own_figures(record) or record.note or "no figures"


def _own_figures(record: GateRecord) -> str:
    """The candidate's figures in a line; those of the original are left to the table."""
    own = {name: value for name, value in record.figures.items() if not name.startswith("reference_")}
    return ", ".join(f"{name} {value:g}" for name, value in own.items())
