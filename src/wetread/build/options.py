"""What a build is asked for, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wetread.build.importers import ImportOptions
from wetread.build.shapes import DynamicCost
from wetread.build.verdict import GateLimits, GateResult
from wetread.errors import GateError, Notice
from wetread.package import Package, ShapeProfile
from wetread.recipe import Recipe

Asked = Literal["auto", "fp32", "fp16", "int8"]
Calibrator = Literal["minmax", "entropy", "percentile"]
Progress = Callable[[str, int, int], None]

PRECISIONS = {"fp32": "float32", "fp16": "float16", "int8": "int8"}


@dataclass(frozen=True)
class BuildOptions:
    """What a build is asked for.

    Attributes:
        recipe: how the network is used; None takes the one that the importer derives.
        name, version: of the package, in place of the recipe's.
        precision: ``auto`` takes INT8 where its gate passes, else float16, else float32.
        calibrate: folder of cases that scales are observed on.
        calibrator: how a scale follows from what was observed.
        per_case: windows of each calibration case.
        gate: folder of held-out cases.
        limits: what may be lost on them.
        no_gate: no gate is run, on purpose; the package then loads by override only, unless it is float32.
        shapes: windows of several shapes are allowed for; None fixes the recipe's.
        imports: how the model is read.
        card: model card, Markdown.
        engine: backend that will serve the package.
        threads: CPU threads; 0 for all.
        force: replaces the same version.
        progress: called with (stage, done, total).
    """

    recipe: Path | Recipe | None = None
    name: str = ""
    version: str = ""
    precision: Asked = "auto"
    calibrate: Path | None = None
    calibrator: Calibrator = "minmax"
    per_case: int = 8
    gate: Path | None = None
    limits: GateLimits = field(default_factory=GateLimits)
    no_gate: bool = False
    shapes: ShapeProfile | None = None
    imports: ImportOptions = field(default_factory=ImportOptions)
    card: Path | None = None
    engine: str = "auto"
    threads: int = 0
    force: bool = False
    progress: Progress | None = None

    def check(self) -> None:
        """Refuses what cannot lead to a package, before any work is done.

        Raises:
            GateError: a precision below float32 without cases to calibrate or to judge on.
        """
        if self.precision == "auto" and self.no_gate:
            raise GateError(
                "the gate decides what `auto` becomes, and --no-gate leaves it out",
                where="--no-gate",
                todo="name a precision, or give held-out cases with --gate CASES",
            )
        if self.precision in ("int8", "fp16"):
            name = PRECISIONS[self.precision]
            if self.calibrate is None:
                raise GateError(
                    f"{name} needs cases to observe ranges on",
                    where=f"--precision {self.precision}",
                    todo="give --calibrate CASES: a folder with a few typical scans, without truth",
                )
            if self.gate is None and not self.no_gate:
                raise GateError(
                    f"{name} needs held-out cases to be judged on",
                    where=f"--precision {self.precision}",
                    todo="give --gate CASES, or --no-gate for a package that loads by override only",
                )

    def wanted(self) -> tuple[str, ...]:
        """Precisions to try, in order; the first that passes is taken."""
        if self.precision != "auto":
            return (self.precision,)
        return ("int8", "fp16", "fp32") if self.calibrate is not None and self.gate is not None else ("fp32",)

    def report(self, stage: str, done: int, total: int) -> None:
        """Tells the progress, where anybody wants to know."""
        if self.progress is not None:
            self.progress(stage, done, total)


@dataclass(frozen=True)
class Attempt:
    """One precision that was tried.

    Attributes:
        precision: ``int8``, ``float16`` or ``float32``.
        gate: the verdict; None where none was asked for.
        released: layers that were left in floating point for it.
        reason: why it was not taken; empty where it was.
    """

    precision: str
    gate: GateResult | None
    released: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class BuildResult:
    """What a build gave.

    Attributes:
        package: opened.
        gate: verdict on it; None where none was asked for.
        attempts: every precision that was tried, the last one taken.
        facts: content of ``build.json``.
        notices: what a person should know.
        dynamic: what a profile of window shapes costs on this device; None without one. Times differ from run
            to run, so that they are no part of the package.
    """

    package: Package
    gate: GateResult | None
    attempts: tuple[Attempt, ...]
    facts: dict[str, Any]
    notices: tuple[Notice, ...]
    dynamic: DynamicCost | None = None


class NotPassedError(GateError):
    """The gate failed and nothing could be released to make it pass; `result` has the table."""

    def __init__(self, result: GateResult, todo: str) -> None:
        super().__init__("; ".join((result.headline(), *result.failures[:3])), todo=todo, code="GATE_FAILED")
        self.result = result

    def to_json(self) -> dict[str, Any]:
        """Code, text and the whole table."""
        return {**super().to_json(), "gate": self.result.to_json()}
