"""From a path to a reading: the simple loop over one case."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from wetread.engines.base import Engine
from wetread.errors import Notice
from wetread.findings import Reading
from wetread.inference import Runner
from wetread.package import Package
from wetread.reading.case import Case, CaseInfo
from wetread.reading.select import choose
from wetread.reading.source import Loaded, open_source
from wetread.recipe import Recipe

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ReadOptions:
    """How to read, apart from what the recipe says.

    Attributes:
        engine: backend, or ``auto``.
        threads: CPU threads, 0 for all cores.
        allow_failed_gate: load an engine whose gate was not passed; the reading says so.
        precision: arithmetic, where the backend has others than the network's own; None takes that.
    """

    engine: str = "auto"
    threads: int = 0
    allow_failed_gate: bool = False
    precision: str | None = None


DEFAULT_OPTIONS = ReadOptions()


def read(
    study: Path | str,
    package: Package | Path | str = "lung-nodule",
    *,
    options: ReadOptions = DEFAULT_OPTIONS,
    progress: Progress | None = None,
) -> Reading:
    """Reads a study.

    Args:
        study: DICOM folder, zip of one or file; NIfTI file, or folder of NIfTI files for several channels.
        package: a package, its directory, or the name of an embedded one.
        options: engine, threads.
        progress: called with (stage, done, total).

    Returns:
        The reading: mask on the source grid, findings, notices, timings in seconds.

    Raises:
        WetreadError: what was wrong, where, and what to do; see `wetread.errors`.
    """
    started = time.perf_counter()
    package = package if isinstance(package, Package) else Package.open(package)
    with ThreadPoolExecutor(1) as pool:
        # the engine is made while slices are read: both mostly wait for something else than the interpreter
        making = pool.submit(make_engines, package, options)
        try:
            inputs = load_inputs(study, package.recipe, threads=options.threads, progress=progress)
        except BaseException:
            _discard(making)
            raise
        waited = time.perf_counter()
        with _closing(making) as (engines, gate):
            engine_s = time.perf_counter() - waited
            reading = read_inputs(inputs, package, engines, gate, options=options, progress=progress)
    stages = {**inputs.timings_s, "engine": engine_s, **reading.timings_s}
    return replace(reading, timings_s={**stages, "total": time.perf_counter() - started})


@dataclass(frozen=True, eq=False)
class Inputs:
    """A study's channels as they were loaded: what readings start from, several of them if need be.

    Attributes:
        loaded: one for each of the recipe's channels, in their order.
        notices: of the source, the choice of series, and the loading.
        timings_s: seconds for listing and loading.
    """

    loaded: tuple[Loaded, ...]
    notices: tuple[Notice, ...] = ()
    timings_s: dict[str, float] = field(default_factory=dict)


def load_inputs(
    study: Path | str,
    recipe: Recipe,
    *,
    threads: int = 0,
    progress: Progress | None = None,
    ignore: Collection[str] = (),
) -> Inputs:
    """Opens a study, chooses the recipe's channels and loads them.

    Args:
        study: see `read`.
        recipe: whose channels are wanted.
        threads: for decoding; 0 for all cores.
        progress: called with (stage, done, total).
        ignore: names of NIfTI files in a folder that are no images of the study, such as a true mask.

    Raises:
        WetreadError: the study cannot be opened, no series suits a channel, or one is damaged.
    """
    report = progress if progress is not None else _silent
    started = time.perf_counter()
    with open_source(study, ignore=ignore) as source:
        choices, chosen = choose(recipe, source.candidates())
        listed = time.perf_counter()
        loaded = tuple(
            source.load(c.index, threads=threads or None, progress=partial(report, "load")) for c in choices
        )
        notices = (*source.notices, *chosen, *(n for item in loaded for n in item.notices))
    return Inputs(loaded, notices, {"list": listed - started, "load": time.perf_counter() - listed})


def read_inputs(
    inputs: Inputs,
    package: Package,
    engines: Sequence[Engine],
    gate: str,
    *,
    options: ReadOptions = DEFAULT_OPTIONS,
    progress: Progress | None = None,
) -> Reading:
    """Reads a study that was loaded, with engines that were made.

    Args:
        inputs: the loaded channels; they are not changed.
        package: whose recipe is followed.
        engines: one for each of its networks; they stay open.
        gate: the gate's verdict on them, which goes into the reading.
        options: threads.
        progress: called with (stage, done, total).

    Raises:
        WetreadError: see `read`.
    """
    # engines that keep plans say what they built and which plans they refused
    made = [notice for engine in engines for notice in getattr(engine, "notices", ())]
    info = _info(package, inputs.loaded, gate, (*inputs.notices, *made))
    case = _case(package, engines[0], inputs.loaded, info, options)
    _run(case, engines, inputs.loaded, progress if progress is not None else _silent)
    return replace(case.finish(), origin=inputs.loaded[package.recipe.reference_channel])


def make_engines(package: Package, options: ReadOptions) -> tuple[list[Engine], str]:
    """One engine for each network of the package, and the gate's verdict on them.

    Raises:
        GateError: the gate was not passed and no override was asked for.
        EngineError: the backend is missing or refuses the network.
    """
    from wetread.engines.registry import make_engine

    engines: list[Engine] = []
    texts: list[str] = []
    try:
        for index in range(len(package.models)):
            engine = make_engine(
                package,
                options.engine,
                model=index,
                precision=options.precision,
                threads=options.threads or None,
                override_gate=options.allow_failed_gate,
            )
            engines.append(engine)
            info = engine.info
            verdict = package.check_gate(
                info.backend,
                info.precision,
                options.allow_failed_gate,
                info.fingerprint,
                getattr(engine, "plans", ()),
            )
            if verdict.text not in texts:
                texts.append(verdict.text)
    except BaseException:
        for engine in engines:
            engine.close()
        raise
    return engines, "; ".join(texts)


def _run(case: Case, engines: Sequence[Engine], loaded: Sequence[Loaded], report: Progress) -> None:
    """Adds all slices, then runs windows until none is left."""
    for channel, item in enumerate(loaded):
        case.add(0, item.volume.voxels, channel)
        report("prepare", channel + 1, len(loaded))
    with Runner(case.sweep, engines) as runner:
        runner.run(progress=partial(report, "windows"))
        spent = runner.timings
    for stage, seconds in (("prepare", spent.fill_s), ("network", spent.engine_s), ("blend", spent.blend_s)):
        case.timings_s[stage] = case.timings_s.get(stage, 0.0) + seconds


def _case(
    package: Package, engine: Engine, loaded: Sequence[Loaded], info: CaseInfo, options: ReadOptions
) -> Case:
    grids = [item.volume.grid for item in loaded]
    return Case(package, engine, grids, info, threads=options.threads or None)


def _info(package: Package, loaded: Sequence[Loaded], gate: str, notices: Sequence[Notice]) -> CaseInfo:
    """Origin of the reading; a NIfTI file's modality is the one that the recipe expects, and that is said."""
    index = package.recipe.reference_channel
    reference, extra = loaded[index], []
    modality = reference.volume.modality
    if not modality:
        modality = (package.recipe.channels[index].select.modality or "").upper()
        if modality:
            extra.append(
                Notice(
                    "MODALITY_ASSUMED",
                    f"the file does not say its modality; read as {modality}, which the recipe expects",
                    ", ".join(reference.volume.sources),
                )
            )
    series = reference.series
    return CaseInfo(
        modality=modality,
        study_instance_uid=series.attributes.get("study_instance_uid", "") if series else "",
        series_instance_uid=series.uid if series else "",
        sources=tuple(source for item in loaded for source in item.volume.sources),
        gate=gate,
        notices=(*notices, *extra),
    )


def _silent(stage: str, done: int, total: int) -> None:
    """Progress for nobody."""


@contextmanager
def _closing(
    making: Future[tuple[list[Engine], str]],
) -> Iterator[tuple[list[Engine], str]]:
    engines, gate = making.result()
    try:
        yield engines, gate
    finally:
        for engine in engines:
            engine.close()


def _discard(making: Future[tuple[list[Engine], str]]) -> None:
    """Frees engines that are no longer needed, whether or not they could be made."""
    if not making.cancel() and making.exception() is None:
        for engine in making.result()[0]:
            engine.close()
