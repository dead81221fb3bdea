"""From a path to a reading: the simple loop over one case."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
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

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ReadOptions:
    """How to read, apart from what the recipe says.

    Attributes:
        engine: backend, or ``auto``.
        threads: CPU threads, 0 for all cores.
        allow_failed_gate: load an engine whose gate was not passed; the reading says so.
    """

    engine: str = "auto"
    threads: int = 0
    allow_failed_gate: bool = False


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
    report = progress if progress is not None else _silent
    package = package if isinstance(package, Package) else Package.open(package)
    with ThreadPoolExecutor(1) as pool, open_source(study) as source:
        # the engine is made while slices are read: both mostly wait for something else than the interpreter
        making = pool.submit(make_engines, package, options)
        try:
            choices, notices = choose(package.recipe, source.candidates())
            listed = time.perf_counter()
            loaded = [
                source.load(c.index, threads=options.threads or None, progress=partial(report, "load"))
                for c in choices
            ]
        except BaseException:
            _discard(making)
            raise
        notices = [*source.notices, *notices, *(n for item in loaded for n in item.notices)]
        read_s = time.perf_counter()
        with _closing(making) as (engines, gate):
            engine_s = time.perf_counter()
            case = _case(package, engines[0], loaded, _info(package, loaded, gate, notices), options)
            _run(case, engines, loaded, report)
            reading = case.finish()
    reference = loaded[package.recipe.reference_channel]
    stages = {"list": listed - started, "load": read_s - listed, "engine": engine_s - read_s}
    stages |= reading.timings_s
    stages["total"] = time.perf_counter() - started
    return replace(reading, timings_s=stages, origin=reference)


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
                threads=options.threads or None,
                override_gate=options.allow_failed_gate,
            )
            engines.append(engine)
            info = engine.info
            verdict = package.check_gate(
                info.backend, info.precision, options.allow_failed_gate, info.fingerprint
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
