"""``wetread build``: importer → optimise → observe and lower → gate, with rollback → package."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from wetread import __version__
from wetread.build.cases import CaseShelf, case_shelf, check_held_out, digest_list
from wetread.build.deviation import Tuning
from wetread.build.gate import GateOptions, Original, run_gate
from wetread.build.lower import (
    Calibration,
    Candidate,
    calibrate,
    choose_sign,
    layers_of,
    rank,
    to_float16,
    to_int8,
    tuning_windows,
)
from wetread.build.options import PRECISIONS, Attempt, BuildOptions, BuildResult, NotPassedError
from wetread.build.pack import network_file, read_file, source_entry
from wetread.build.prepare import Prepared, prepare
from wetread.build.rollback import ranking_json, smallest_release
from wetread.build.shapes import dynamic_cost
from wetread.build.verdict import GateResult
from wetread.engines import resolve
from wetread.errors import Notice
from wetread.graph import Graph
from wetread.package import Contents, GateRecord, Package, write_package
from wetread.package.gate import reference_record
from wetread.package.manifest import pretty
from wetread.precision import coverage, scan_facts


def build(model: Path | str, out: Path | str, options: BuildOptions | None = None) -> BuildResult:
    """Makes a gated package of a trained model.

    Same model, cases, options and versions give the same package: nothing in it depends on time or place.

    Args:
        model: file or folder in any of the known formats.
        out: folder of packages; ``<name>/<version>`` is made in it.
        options: what is asked for.

    Returns:
        The package, with the gate's verdict on it.

    Raises:
        GateError: cases are missing, or one both calibrates and judges.
        NotPassedError: the gate failed, whatever was released; it has the table.
        GraphError, RecipeError: the model is damaged, or does not fit its recipe; names node or file.
        InputError, NotFiniteError: a case cannot be read, or holds NaN; names it.
        PackageError: the version exists already.
    """
    options = options if options is not None else BuildOptions()
    options.check()
    options = replace(options, engine=resolve(options.engine).name)
    prepared = prepare(Path(model), options)
    with tempfile.TemporaryDirectory(prefix="wetread-build-") as folder:
        work = _Work(prepared, options, Path(folder))
        candidate, result = work.decide()
        facts = work.facts(candidate)
        package = _write(Path(out), prepared, candidate, result, facts, options)
    dynamic = None
    if options.shapes is not None and options.shapes.min != options.shapes.max:
        dynamic = dynamic_cost(
            candidate.graphs[0], options.shapes, backend=options.engine, threads=options.threads or None
        )
    return BuildResult(package, result, tuple(work.attempts), facts, tuple(work.notices), dynamic)


@dataclass
class _Work:
    """One build in progress."""

    prepared: Prepared
    options: BuildOptions
    folder: Path
    attempts: list[Attempt] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    calibration: Calibration | None = None
    covered: dict[str, Any] | None = None
    ranking: dict[str, Any] | None = None
    judged: CaseShelf | None = None
    original: Original | None = None
    unreleased: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.notices += self.prepared.notices
        recipe, threads = self.prepared.recipe, self.options.threads
        observing = case_shelf(self.options.calibrate, recipe, threads) if self.options.calibrate else None
        self.judged = case_shelf(self.options.gate, recipe, threads) if self.options.gate else None
        if observing is not None and self.judged is not None:
            check_held_out(self.judged.digests(), observing.digests())
            self._cover(observing, self.judged)
        if observing is not None and self.options.precision != "fp32":
            self.options.report("calibrate", 0, 1)
            self.calibration = calibrate(
                [network.graph for network in self.prepared.networks],
                recipe,
                observing,
                self.options.calibrator,
                per_case=self.options.per_case,
                threads=threads,
            )
            self.options.report("calibrate", 1, 1)
        if self.judged is not None:
            originals = tuple(network.original for network in self.prepared.networks)
            self.original = Original(self._package(originals, "original"), self._gate_options())

    def _cover(self, observing: CaseShelf, judged: CaseShelf) -> None:
        """Warns of what the gate's cases have and the calibration cases lack."""
        recipe = self.prepared.recipe
        found = coverage(scan_facts(observing.paths(), recipe), scan_facts(judged.paths(), recipe))
        facts = found.as_dict()
        # cases by their names: where they lay is nobody's business, and would make equal packages differ
        self.covered = facts | {
            kind: [fact | {"case": Path(fact["case"]).name} for fact in facts[kind]]
            for kind in ("calibration", "gate")
        }
        self.notices += found.warnings

    def _gate_options(self) -> GateOptions:
        return GateOptions(self.options.engine, self.options.threads, self.options.progress)

    def _package(self, graphs: Sequence[Graph], name: str) -> Package:
        """A package for the gate alone, in the temporary folder."""
        return write_package(
            self.folder / name,
            self.prepared.recipe,
            [network_file(g, n.stage, n.fold) for g, n in zip(graphs, self.prepared.networks, strict=True)],
            Contents(shapes=self.options.shapes),
            records=[],
            force=True,
        )

    def judge(self, candidate: Candidate, failed: GateResult | None = None) -> GateResult | None:
        """The gate's verdict; None where there are no cases.

        Where an earlier candidate failed, the cases that it failed on are read first, and the gate ends as soon as
        it cannot pass any more: that tells a candidate that will not do by a case or two.
        """
        if self.judged is None or self.original is None:
            return None
        package = self._package(candidate.graphs, "candidate")
        options = self._gate_options()
        if failed is not None:
            hopeless = tuple(c.name for c in failed.cases if c.hopeless(failed.limits))
            options = replace(options, first=hopeless, stop=True)
        return run_gate(package, self.original, self.judged, self.options.limits, options)

    def decide(self) -> tuple[Candidate, GateResult | None]:
        """The first of the wanted precisions that passes.

        Raises:
            NotPassedError: none does.
        """
        result: GateResult | None = None
        for wanted in self.options.wanted():
            candidate, result = self._attempt(wanted)
            released = tuple(name for name in self._layers() if name in candidate.released)
            if result is None or result.passed:
                self.attempts.append(Attempt(candidate.precision, result, released))
                self._explain(candidate)
                return candidate, result
            reason = "; ".join(result.failures)
            self.attempts.append(Attempt(candidate.precision, result, released, reason))
            self.notices.append(
                Notice("PRECISION_REFUSED", f"{candidate.precision} fails its gate: {reason}")
            )
        assert result is not None
        raise NotPassedError(result, _advice(PRECISIONS[self.options.wanted()[-1]]))

    def _attempt(self, wanted: str) -> tuple[Candidate, GateResult | None]:
        if wanted == "fp32" or self.calibration is None:
            candidate = Candidate("float32", tuple(network.graph for network in self.prepared.networks))
            return candidate, self.judge(candidate)
        if wanted == "fp16":
            candidate = to_float16(self.calibration)
            return candidate, self.judge(candidate)
        options = self.options
        tuning = tuning_windows(self.calibration, options.engine, threads=options.threads)
        self.calibration = choose_sign(self.calibration, tuning, options.engine, threads=options.threads)
        candidate = to_int8(self.calibration)
        result = self.judge(candidate)
        if result is None or result.passed:
            return candidate, result
        return self._roll_back(candidate, result, tuning)

    def _roll_back(
        self, first: Candidate, failed: GateResult, tuning: Tuning
    ) -> tuple[Candidate, GateResult]:
        """Releases layers, the most harmful first, until the gate passes; gives the smallest set that does."""
        calibration, options = self.calibration, self.options
        assert calibration is not None
        self.unreleased = failed.failures
        mode, ranking = rank(
            calibration,
            tuning,
            options.engine,
            threads=options.threads,
            report=lambda done, total: options.report("rank", done, total),
        )
        self.ranking = dict(ranking_json(ranking, mode))

        def judged(released: frozenset[str]) -> tuple[Candidate, GateResult]:
            if not released:
                return first, failed
            candidate = to_int8(calibration, released)
            result = self.judge(candidate, failed)
            assert result is not None
            return candidate, result

        found = smallest_release([s.layer for s in ranking], judged, lambda score: score[1].passed)
        return found.score

    def _layers(self) -> tuple[str, ...]:
        return () if self.calibration is None else layers_of(self.calibration)

    def _explain(self, candidate: Candidate) -> None:
        """Notices on what was chosen."""
        self.notices += [notice for report in candidate.reports for notice in report.notices]
        if self.options.precision == "auto" and len(self.options.wanted()) == 1:
            text = "float32, because lower precisions need --calibrate CASES and --gate CASES"
            self.notices.append(Notice("PRECISION_AUTO", text))
        elif self.options.precision == "auto":
            self.notices.append(
                Notice("PRECISION_AUTO", f"{candidate.precision} is the first that passes its gate")
            )
        if candidate.released:
            layers = ", ".join(name for name in self._layers() if name in candidate.released)
            text = f"{len(candidate.released)} of {len(self._layers())} layers stay in float32: {layers}; "
            text += f"without, the gate fails: {'; '.join(self.unreleased)}"
            self.notices.append(Notice("LAYERS_RELEASED", text))
        if self.judged is None and candidate.precision != "float32":
            text = "no gate was run: the package loads by explicit override only"
            self.notices.append(Notice("NO_GATE", text))

    def facts(self, candidate: Candidate) -> dict[str, Any]:
        """Content of ``build.json``; no times, no dates, no paths."""
        networks = []
        for number, network in enumerate(self.prepared.networks):
            report = candidate.reports[number].as_dict() if candidate.reports else None
            networks.append(
                {
                    "stage": network.stage,
                    "fold": network.fold,
                    "passes": network.report.as_dict(),
                    "precision": report,
                }
            )
        calibrated = self.calibration is not None and candidate.precision != "float32"
        return {
            "format": 1,
            "precision": {"asked": self.options.precision, "got": candidate.precision},
            "networks": networks,
            "released": [name for name in self._layers() if name in candidate.released],
            "ranking": self.ranking if candidate.precision == "int8" else None,
            "calibration": self.calibration.facts() if calibrated and self.calibration else None,
            "gate_cases": [] if self.judged is None else digest_list(self.judged.digests()),
            "coverage": self.covered,
            "derived": self.prepared.derived,
            "notices": [notice.to_json() for notice in self.notices],
        }


def _advice(precision: str) -> str:
    """What can be done where nothing helps."""
    if precision == "int8":
        return (
            "calibrate on more typical cases, try another --calibrator, or take --precision fp16; quantisation-"
            "aware fine-tuning before the export helps where all else fails"
        )
    if precision == "float16":
        return "take --precision fp32, or train with mixed precision, so that values stay in float16's range"
    return "the optimised float32 network differs from the imported one: report this as a defect"


def _write(
    out: Path,
    prepared: Prepared,
    candidate: Candidate,
    result: GateResult | None,
    facts: dict[str, Any],
    options: BuildOptions,
) -> Package:
    files = {"build.json": pretty(facts)}
    if options.card is not None:
        files["card.md"] = read_file(options.card)
    records: list[GateRecord] = []
    if candidate.precision == "float32":
        records.append(reference_record("the network as imported, after passes that were checked in float64"))
    package = write_package(
        out,
        prepared.recipe,
        [network_file(g, n.stage, n.fold) for g, n in zip(candidate.graphs, prepared.networks, strict=True)],
        Contents(
            files=files,
            sources=[source_entry(path) for path in prepared.sources],
            tools={"wetread": __version__, "onnx": metadata.version("onnx"), **prepared.tools},
            shapes=options.shapes,
        ),
        records=records,
        force=options.force,
    )
    if result is None:
        return package
    return package.with_device_gate(result.engine.fingerprint, result.record(), result.to_json())
