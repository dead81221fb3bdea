"""The gate: a candidate and the float32 original read the same held-out cases, and what is lost is measured.

The candidate is read on the backend and in the precision in which it will be served, through reading's own flow:
the same preprocessing, windows, blending, labels and findings as a user's study.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wetread.build.cases import CaseShelf, LoadedCase
from wetread.build.metrics import Lesions, agreement, dice, match, sensitivities
from wetread.build.verdict import (
    CaseScore,
    ClassScore,
    Detection,
    GateLimits,
    GateResult,
    LabelScore,
    LostLesion,
)
from wetread.engines.base import EngineInfo
from wetread.engines.common import Closing
from wetread.errors import EngineError, GateError
from wetread.findings import Finding, Reading
from wetread.findings.extract import LesionRules, extract_findings
from wetread.package import Package
from wetread.reading.case import label_info
from wetread.reading.flow import ReadOptions, make_engines, read_inputs
from wetread.recipe import Recipe
from wetread.volume import Grid

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class GateOptions:
    """How the gate reads.

    Attributes:
        engine: backend, or ``auto``.
        threads: CPU threads; 0 for all.
        progress: called with (stage, cases done, cases in all).
        first: names of cases to read before the others, as those on which another candidate failed.
        precision: arithmetic of the candidate; None takes its networks' own. The original runs in its own.
        stop: ends at the first case that no later one can mend (a lost lesion, no reading); the result says so.
    """

    engine: str = "auto"
    threads: int = 0
    progress: Callable[[str, int, int], None] | None = None
    first: tuple[str, ...] = ()
    stop: bool = False
    precision: str | None = None

    def reading(self) -> ReadOptions:
        """Options of the readings; nothing has passed yet, so the gate itself may load what has no gate."""
        return ReadOptions(self.engine, self.threads, allow_failed_gate=True, precision=self.precision)


class Reader(Closing):
    """A package made ready on one backend, which reads loaded cases.

    Attributes:
        package: what is read with.
        info: backend, precision, device and version of its first engine.

    Raises:
        EngineError: the backend is missing or refuses a network.
    """

    def __init__(self, package: Package, options: GateOptions) -> None:
        self.package = package
        self._options = options.reading()
        self._engines, self._gate = make_engines(package, self._options)
        self.info: EngineInfo = self._engines[0].info

    def read(self, case: LoadedCase) -> Reading:
        """Reads one case.

        Raises:
            WetreadError: see `wetread.read`.
        """
        return read_inputs(case.inputs, self.package, self._engines, self._gate, options=self._options)

    def close(self) -> None:
        """Frees the engines."""
        for engine in self._engines:
            engine.close()
        self._engines = []


@dataclass(frozen=True, eq=False)
class Answer:
    """What the gate keeps of a reading: masks packed, so that those of many cases fit into memory.

    Attributes:
        grid: of the mask.
        findings: lesions.
        scores, top: of a classification.
        classes: the classes decided for.
    """

    grid: Grid
    findings: tuple[Finding, ...]
    scores: dict[str, float]
    top: str
    classes: tuple[str, ...]
    _mask: bytes | None
    _numbers: bytes

    @classmethod
    def of(cls, reading: Reading) -> Answer:
        """Packs a reading."""
        mask = None if reading.mask is None else zlib.compress(np.ascontiguousarray(reading.mask).data, 1)
        numbers = b""
        if reading.mask is not None and reading.components is not None:
            numbers = zlib.compress(reading.components[reading.mask > 0].data, 1)
        return cls(
            reading.grid, reading.findings, reading.scores, reading.top_class, reading.classes, mask, numbers
        )

    def mask(self) -> NDArray[np.uint8] | None:
        """Label mask on the grid, or None for a classification."""
        if self._mask is None:
            return None
        return np.frombuffer(zlib.decompress(self._mask), np.uint8).reshape(self.grid.shape)

    def lesions(self) -> Lesions:
        """Findings with their components."""
        components = np.zeros(self.grid.shape, np.int32)
        mask = self.mask()
        if mask is not None and self._numbers:
            components[mask > 0] = np.frombuffer(zlib.decompress(self._numbers), np.int32)
        return Lesions(self.findings, components, self.grid)


class Original:
    """The float32 original's answers to the cases, each taken once however often the gate is run.

    Args:
        package: the network as it was imported, in float32.
        options: the backend that the candidates run on.
    """

    def __init__(self, package: Package, options: GateOptions) -> None:
        self.package = package
        self._options = options
        self._answers: dict[str, Answer] = {}
        self._reader: Reader | None = None

    def answer(self, case: LoadedCase) -> Answer:
        """Its answer to a case.

        Raises:
            WetreadError: the original itself cannot read the case.
        """
        if case.digest not in self._answers:
            if self._reader is None:
                self._reader = Reader(self.package, replace(self._options, precision=None))
            self._answers[case.digest] = Answer.of(self._reader.read(case))
        return self._answers[case.digest]

    def rest(self) -> None:
        """Frees the engines; the answers stay."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def run_gate(
    candidate: Package,
    original: Original | Package,
    cases: CaseShelf,
    limits: GateLimits | None = None,
    options: GateOptions | None = None,
) -> GateResult:
    """Reads every case with the candidate and the original, and measures what is lost.

    Args:
        candidate: package whose networks are judged, in their own precision.
        original: the float32 original, or its answers so far.
        cases: held-out cases; whoever calls has made sure that none of them calibrated the candidate.
        limits: what may be lost.
        options: backend, threads.

    Raises:
        GateError: there is no case, or the original is another network than the candidate's.
        InputError: a case cannot be read, or its truth does not fit.
        EngineError: the backend refuses a network. (A candidate that returns NaN fails the gate instead.)
    """
    options = options if options is not None else GateOptions()
    limits = limits if limits is not None else GateLimits()
    if not len(cases):
        raise GateError("there is no case to judge on", todo="give held-out cases with --gate")
    original = original if isinstance(original, Original) else Original(original, options)
    _check_same_question(candidate.recipe, original.package.recipe)
    scores: list[CaseScore] = []
    notes: tuple[str, ...] = ()
    ordered = sorted(cases.cases, key=lambda case: case.name not in options.first)
    with Reader(candidate, options) as reader:
        for number, case in enumerate(ordered, 1):
            loaded = cases.load(case)
            before = original.answer(loaded)
            try:
                after = Answer.of(reader.read(loaded))
            except EngineError as error:
                scores.append(CaseScore(loaded.name, loaded.truth is not None, failure=str(error)))
            else:
                scores.append(score_case(loaded, before, after, candidate.recipe))
            if options.progress is not None:
                options.progress("gate", number, len(cases))
            if options.stop and number < len(ordered) and scores[-1].hopeless(limits):
                notes = (
                    f"ended after {number} of {len(ordered)} cases, because the gate could not pass any more",
                )
                break
        info = reader.info
    original.rest()
    places = {case.name: place for place, case in enumerate(cases.cases)}
    scores.sort(key=lambda score: places[score.name])
    return GateResult(candidate.hash, info, limits, tuple(scores), notes)


def _check_same_question(candidate: Recipe, original: Recipe) -> None:
    """Refuses a comparison of networks that mark different things."""
    if candidate.task != original.task or candidate.labels != original.labels:
        raise GateError(
            f"the candidate is of {candidate.name} ({', '.join(label.name for label in candidate.labels)}), the "
            f"original of {original.name} ({', '.join(label.name for label in original.labels)})",
            todo="compare with the float32 package that the candidate was built from",
        )


def score_case(case: LoadedCase, before: Answer, after: Answer, recipe: Recipe) -> CaseScore:
    """Everything that is measured on one case.

    Args:
        case: with its truth, if any.
        before, after: answers of the original and of the candidate.
        recipe: task and labels.
    """
    if recipe.task == "classification":
        truth = before.classes if case.classes is None else tuple(sorted(case.classes))
        classes = ClassScore(truth, before.scores, after.scores, before.top, after.top)
        return CaseScore(case.name, case.classes is not None, classes=classes)
    a, b = before.mask(), after.mask()
    assert a is not None and b is not None
    labels = []
    for label in recipe.labels:
        first, second = a == label.index, b == label.index
        true = None if case.truth is None else case.truth == label.index
        empty = not (first.any() or second.any() or (true is not None and true.any()))
        if true is None:
            labels.append(LabelScore(label.name, None, dice(first, second), empty))
        else:
            labels.append(LabelScore(label.name, dice(first, true), dice(second, true), empty))
    score = CaseScore(case.name, case.truth is not None, tuple(labels), agreement(a, b))
    return score if recipe.task != "lesions" else _with_lesions(score, case, before, after, recipe)


def _with_lesions(
    score: CaseScore, case: LoadedCase, before: Answer, after: Answer, recipe: Recipe
) -> CaseScore:
    """Adds sensitivity and false positives, against the truth's lesions or else the original's."""
    first, second = before.lesions(), after.lesions()
    lesions = first if case.truth is None else true_lesions(case.truth, before.grid, recipe)
    hits = [match(lesions, found) for found in (first, second)]
    names = {lesion.number: lesion for lesion in lesions.findings}
    lost = tuple(
        LostLesion(names[i].label, names[i].long_axis_mm, names[i].centroid_lps_mm)
        for i in sorted(hits[0].found - hits[1].found)
    )
    detections = [Detection(sensitivities(lesions.findings, hit.found), len(hit.false)) for hit in hits]
    return CaseScore(
        score.name, score.truth, score.labels, score.agreement, detections[0], detections[1], lost
    )


def true_lesions(truth: NDArray[np.uint8], grid: Grid, recipe: Recipe) -> Lesions:
    """Components of the true mask, whatever their size."""
    labels = tuple(label_info(label) for label in recipe.labels)
    rules = LesionRules(connectivity=recipe.lesions.connectivity)
    findings, _, components = extract_findings(truth, None, None, grid, labels, rules=rules)
    return Lesions(findings, components, grid)
