"""The bench of a package: which rows there are, and one run of all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wetread.bench.accuracy import Accuracy, make_yardstick, measure_accuracy
from wetread.bench.drive import RowFailedError, Timed, Worker, take_turns
from wetread.bench.inputs import BenchCase, open_case
from wetread.bench.rows import Bench, Row, machine, timing_figures
from wetread.bench.task import DEVICES, Task
from wetread.build.importers import ImportOptions, import_model
from wetread.engines.registry import resolve
from wetread.errors import EngineUnavailableError, PackageError
from wetread.geometry import cpu_count
from wetread.package import Package

Progress = Callable[[str, int, int], None]
Scope = Literal["auto", "case", "windows"]
TOLERANCE = 1e-3
"""Largest output difference of a float32 row; float32 through some fifty layers leaves about 1e-5."""

_REFERENCES = ("ONNX Runtime float32", "OpenVINO float32", "wetread float32", "PyTorch eager float32")
_HALVES = ("cuda",)


@dataclass(frozen=True)
class BenchOptions:
    """How a package is measured.

    Attributes:
        reference: float32 network that the package was made from: a package, or any model that `wetread build`
            takes; None where the package is float32 itself.
        trust: the reference may be a format that executes what it holds.
        case: study; None takes a chest phantom.
        windows: how many windows are drawn from it.
        turns, per_turn: counted turns of each row, and windows in each.
        threads: of every runtime; 0 for all cores.
        accuracy_over: ``case`` reads all its windows with every row, ``windows`` compares the drawn ones, ``auto``
            takes the case where that needs no more than `case_seconds` in all.
        case_seconds: see there.
        allow_failed_gate: run a package whose gate was not passed.
        timeout_s: longest wait for one answer of a row.
    """

    reference: Path | None = None
    trust: bool = False
    case: Path | None = None
    windows: int = 8
    turns: int = 10
    per_turn: int = 2
    threads: int = 0
    accuracy_over: Scope = "auto"
    case_seconds: float = 120.0
    allow_failed_gate: bool = False
    timeout_s: float = 900.0


DEFAULT_OPTIONS = BenchOptions()


def bench_package(
    source: Package | Path | str, options: BenchOptions = DEFAULT_OPTIONS, progress: Progress | None = None
) -> Bench:
    """Measures a package beside the runtimes that its users have.

    Args:
        source: the package, its directory, or the name of an embedded one.
        options: see there.
        progress: called with (stage, done, total).

    Raises:
        PackageError: it or the reference cannot be opened, or the reference is not float32.
        InputError: the case cannot be read.
    """
    package = source if isinstance(source, Package) else Package.open(source)
    options = replace(options, threads=options.threads or cpu_count())
    case = open_case(package.recipe, options.case, options.threads)
    inputs = case.windows(options.windows)
    with tempfile.TemporaryDirectory(prefix="wetread-bench-") as folder:
        original = find_original(package, options, Path(folder))
        tasks, absent = plan_rows(package, original, options, inputs.shape[2:])
        result = run_rows(tasks, case, inputs, options, absent=absent, progress=progress)
    name = {
        "name": package.name,
        "version": package.version,
        "hash": package.hash,
        "precision": package.precision,
        "reference": "" if options.reference is None else options.reference.name,
    }
    return replace(result, package=name)


@dataclass(frozen=True)
class OriginalNetworks:
    """The float32 networks that others are compared with: ONNX files, and the package that they belong to, if any."""

    networks: tuple[str, ...]
    package: str = ""


def plan_rows(
    package: Package, original: OriginalNetworks | None, options: BenchOptions, window: Sequence[int]
) -> tuple[list[Task], list[Row]]:
    """The rows that can be tried, and those of which it is known beforehand that they cannot run, and why."""
    tasks: list[Task] = []
    absent: list[Row] = []
    a, b, c = window
    blank = Task(
        "", "float32", "wetread", (), (a, b, c), len(package.recipe.channels), options.threads,
        allow_failed_gate=options.allow_failed_gate,
    )  # fmt: skip
    for engine, kind in (
        ("PyTorch eager", "torch-eager"),
        ("PyTorch TorchScript", "torch-script"),
        ("ONNX Runtime", "onnxruntime"),
        ("OpenVINO", "openvino"),
        ("wetread", "wetread"),
    ):
        if original is None:
            why = f"the package is {package.precision}: name the float32 network with --reference"
            absent.append(Row(engine, "float32", problem=why))
            continue
        task = replace(blank, engine=engine, kind=kind, networks=original.networks)  # type: ignore[arg-type]
        if kind == "wetread":
            task = replace(task, package=original.package, optimise=not original.package)
        tasks.append(task)
    own = tuple(str(package.model_path(i)) for i in range(len(package.models)))
    mine = replace(blank, networks=own, package=str(package.path), precision=package.models[0].precision)
    if mine.precision == "float32":
        why = "the package is float32; `wetread build --precision int8` makes one that is not"
        absent.append(Row("wetread", "int8", problem=why))
    else:
        tasks.append(replace(mine, engine="wetread"))
    for backend in DEVICES:
        device = replace(mine, engine=f"wetread {backend}", backend=backend)
        try:
            resolve(backend)
            tasks += [device, *_lower(device, original)]
        except EngineUnavailableError as error:
            absent.append(Row(f"wetread {backend}", mine.precision, problem=str(error)))
    return tasks, absent


def _lower(task: Task, original: OriginalNetworks | None) -> list[Task]:
    """The float32 network in float16, on a backend that computes float32 networks so."""
    if task.backend not in _HALVES or original is None:
        return []
    half = replace(task, precision="float16", arithmetic="float16", networks=original.networks)
    return [replace(half, package=original.package, optimise=not original.package)]


def find_original(package: Package, options: BenchOptions, folder: Path) -> OriginalNetworks | None:
    """The float32 networks to compare with; None where there are none.

    Args:
        package: what is measured.
        options: its ``reference``.
        folder: for networks that have to be imported.

    Raises:
        PackageError: the reference is a package that is not float32.
        WetreadError: the reference cannot be imported.
    """
    path = options.reference
    if path is not None and path.suffix == ".onnx":
        return OriginalNetworks((str(path),))
    if path is None or (path / "manifest.json").is_file() or any(path.glob("[0-9]*/manifest.json")):
        other = package if path is None else Package.open(path)
        if other.precision == "float32":
            files = tuple(str(other.model_path(i)) for i in range(len(other.models)))
            return OriginalNetworks(files, str(other.path))
        if path is None:
            return None
        raise PackageError(
            f"the reference is {other.precision}, expected float32",
            where=str(path),
            todo="name the float32 package or the model that this package was made from",
        )
    window = package.recipe.tiling.window or package.recipe.fixed_shape
    folds = tuple(model.fold for model in package.models) if len(package.models) > 1 else ()
    imports = ImportOptions(
        trust=options.trust, folds=folds, window=window, dynamic=window is None, derive=False
    )
    saved: list[str] = []
    for number, item in enumerate(import_model(path, imports).networks):
        graph = item.graph.cut([item.graph.outputs[0].name])
        saved.append(str(graph.save(folder / f"reference-{number}.onnx")))
    return OriginalNetworks(tuple(saved))


def run_rows(
    tasks: Sequence[Task],
    case: BenchCase,
    inputs: NDArray[np.float32],
    options: BenchOptions,
    *,
    absent: Sequence[Row] = (),
    progress: Progress | None = None,
) -> Bench:
    """Runs rows on one case: starts them, compares what they return, then times them in turns.

    Args:
        tasks: the rows, each of its own name.
        case: what is read.
        inputs: windows of the case, (n, channels, *window).
        options: turns and scope; ``threads`` is resolved.
        absent: rows that are known not to run.
        progress: called with (stage, done, total).
    """
    report = progress if progress is not None else _silent
    problems: dict[str, str] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wetread-bench-")))
        workers: list[Worker] = []
        for number, task in enumerate(tasks):
            try:
                workers.append(
                    stack.enter_context(Worker(task, folder / str(number), inputs, options.timeout_s))
                )
            except RowFailedError as error:
                problems[task.key] = str(error)
            report("start", number + 1, len(tasks))
        whole = _whole_case(workers, case, options)
        reference, found = _accuracies(workers, case, (len(inputs), whole), folder, problems)
        for key, item in found.items():
            if key.endswith("float32") and item.output_difference > TOLERANCE:
                problems[key] = (
                    f"its outputs differ from {reference} by {item.output_difference:.2g}: not timed"
                )
        running = [worker for worker in workers if worker.task.key not in problems]
        report("time", 0, 1)
        timed = take_turns(running, len(inputs), options.turns, options.per_turn)
        report("time", 1, 1)
        problems |= {key: str(error) for key, error in timed.failed.items()}
        rows = {
            worker.task.key: _row(worker, timed, found)
            for worker in running
            if worker.task.key in timed.seconds
        }
        versions: dict[str, str] = {}
        for worker in running:
            versions |= worker.ready["versions"]
    listed = [
        rows.get(task.key) or Row(task.engine, task.precision, problem=problems.get(task.key, ""))
        for task in tasks
    ]
    return Bench(
        rows=(*listed, *absent),
        package={"name": case.recipe.name, "version": case.recipe.version},
        case={"name": case.name, "accuracy_over": "the whole case" if whole else f"{len(inputs)} windows"},
        compared_with=reference,
        machine=machine(options.threads),
        versions=versions,
        settings={
            "window": list(inputs.shape[2:]),
            "windows": len(inputs),
            "turns": options.turns,
            "windows_per_turn": options.per_turn,
        },
    )


def _whole_case(workers: Sequence[Worker], case: BenchCase, options: BenchOptions) -> bool:
    """Whether accuracy is taken over all windows of the case, by what one window of each row costs."""
    if case.recipe.task == "classification" or options.accuracy_over == "windows":
        return False
    if options.accuracy_over == "case":
        return True
    count = len(case.sweep(case.recipe.output_channels).ready())
    spent = 0.0
    for worker in workers:
        try:
            spent += count * worker.run([0])[0]
        except RowFailedError:
            continue  # it will fail again, where it is reported
    return spent <= options.case_seconds


def _accuracies(
    workers: Sequence[Worker],
    case: BenchCase,
    scope: tuple[int, bool],
    folder: Path,
    problems: dict[str, str],
) -> tuple[str, dict[str, Accuracy]]:
    """The float32 row that the others are compared with, and each row's accuracy.

    Args:
        workers: the rows.
        case: what is read.
        scope: number of timed windows, and whether the whole case is read.
        folder: for the reference's outputs.
        problems: rows that fail are noted here.
    """
    rows = {worker.task.key: worker for worker in workers}
    windows, whole = scope
    found: dict[str, Accuracy] = {}
    yardstick, reference = None, ""
    for key in [key for key in _REFERENCES if key in rows]:
        try:
            yardstick = make_yardstick(
                rows[key], case, windows, folder / f"outputs-{len(problems)}.npy", whole_case=whole
            )
            reference = key
            break
        except RowFailedError as error:
            problems[key] = str(error)
    for key, worker in rows.items():
        if yardstick is None or key in problems:
            continue
        try:
            found[key] = measure_accuracy(worker, case, yardstick, whole_case=whole)
        except RowFailedError as error:
            problems[key] = str(error)
    return reference, found


def _row(worker: Worker, timed: Timed, found: dict[str, Accuracy]) -> Row:
    key = worker.task.key
    figures: dict[str, float | int | None] = dict(timing_figures(timed.seconds[key]))
    figures["peak_memory_mib"] = round(worker.peak_memory_mib(), 1)
    figures["load_memory_mib"] = round(float(worker.ready["load_memory_mib"]), 1)
    if worker.ready["device_memory_mib"]:
        figures["device_memory_mib"] = round(float(worker.ready["device_memory_mib"]), 1)
    figures["size_mib"] = round(float(worker.ready["size_mib"]), 3)
    accuracy = found.get(key)
    if accuracy is not None:
        figures["dice"] = None if accuracy.dice is None else round(accuracy.dice, 6)
        figures["agreement"] = round(accuracy.agreement, 7)
        figures["output_difference"] = float(f"{accuracy.output_difference:.3g}")
    return Row(worker.task.engine, worker.task.precision, figures, layers=worker.ready["layers"])


def _silent(stage: str, done: int, total: int) -> None:
    """Progress for nobody."""
