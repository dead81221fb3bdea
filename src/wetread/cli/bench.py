"""``wetread bench``: a package beside the runtimes that its users have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, cast

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wetread.cli import show


def bench(
    package: Annotated[
        str, typer.Argument(metavar="PACKAGE", help="Package directory, or an embedded one's name.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for JSON, Markdown and SVG.")] = Path(
        "bench"
    ),
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference", help="The model that the package was made from, or a float32 package of it."
        ),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Load a reference that executes what it holds (pickles).")
    ] = False,
    case: Annotated[Path | None, typer.Option("--case", help="Study. Default: a chest phantom.")] = None,
    windows: Annotated[int, typer.Option("--windows", min=1, help="Windows drawn from the case.")] = 8,
    turns: Annotated[int, typer.Option("--turns", min=1, help="Turns of each row.")] = 10,
    per_turn: Annotated[int, typer.Option("--per-turn", min=1, help="Windows in a turn.")] = 2,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Threads; 0 means all cores.")] = 0,
    accuracy_over: Annotated[
        str, typer.Option("--accuracy-over", help="Dice over the whole case, its drawn windows, or auto.")
    ] = "auto",
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="bench.json of an earlier run; a regression fails.")
    ] = None,
    allow_failed_gate: Annotated[
        bool, typer.Option("--allow-failed-gate", help="Run a package without a passed gate.")
    ] = False,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Longest wait for a row, in s.")] = 900.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Measure a package beside PyTorch, ONNX Runtime and OpenVINO: latency, memory, size, Dice."""
    from wetread.bench.baseline import check_comparable, load_baseline, regressions
    from wetread.bench.run import BenchOptions, Scope, bench_package
    from wetread.bench.table import write_bench
    from wetread.errors import RegressionError

    if accuracy_over not in ("auto", "case", "windows"):
        raise typer.BadParameter(
            f"{accuracy_over!r} is none of auto, case, windows", param_hint="--accuracy-over"
        )
    before = load_baseline(baseline) if baseline is not None else None
    options = BenchOptions(
        reference=reference,
        trust=trust,
        case=case,
        windows=windows,
        turns=turns,
        per_turn=per_turn,
        threads=threads,
        accuracy_over=cast(Scope, accuracy_over),
        allow_failed_gate=allow_failed_gate,
        timeout_s=timeout,
    )
    with show.progress(quiet=as_json) as progress:
        result = bench_package(package, options, progress)
    paths = write_bench(result, out)
    if as_json:
        typer.echo(json.dumps(result.to_json()))
    else:
        _show(result)
        for path in paths:
            typer.echo(f"wrote {path}")
    if before is not None:
        check_comparable(result, before)
        worse = regressions(result, before)
        if worse:
            raise RegressionError(
                "; ".join(change.text for change in worse),
                where=str(baseline),
                todo="find what made it worse, or take the new run as the baseline",
            )
        if not as_json:
            typer.echo(f"no regression against {baseline}")


def _show(result: object) -> None:
    from wetread.bench.rows import Bench
    from wetread.bench.table import SHORT, cells

    assert isinstance(result, Bench)
    console = Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("row", no_wrap=True)
    for _, title, _ in SHORT:
        table.add_column(title, justify="right", no_wrap=True)
    for row, texts in cells(result, SHORT):
        if not row.problem:
            table.add_row(escape(row.key), *texts)
    console.print(table)
    for row in result.rows:
        if row.problem:
            console.print(f"{row.key} not run: {row.problem}", markup=False, highlight=False)
