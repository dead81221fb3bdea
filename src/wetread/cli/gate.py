"""``wetread gate``: the gate, run again on this device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from wetread.cli import show_build
from wetread.cli.show import progress as show_progress


def gate(
    package: Annotated[str, typer.Argument(help="Package directory, or the name of an embedded one.")],
    cases: Annotated[Path, typer.Option("--cases", help="Folder of held-out cases.")],
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference", help="The float32 original: the model that was built, or a package of it."
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", help="Backend to judge: auto, openvino, cuda, …")
    ] = "auto",
    precision: Annotated[
        str | None,
        typer.Option("--precision", help="Arithmetic to judge, as float16. Default: the package's own."),
    ] = None,
    max_dice_drop: Annotated[
        float, typer.Option("--max-dice-drop", min=0.0, max=1.0, help="Mean Dice that may be lost.")
    ] = 0.005,
    trust: Annotated[
        bool, typer.Option("--trust", help="Load originals that execute what they hold (pickles).")
    ] = False,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Threads; 0 means all cores.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Judge a package on held-out cases, on this device, and record the verdict beside the plan."""
    from wetread.build.regate import RegateOptions, regate
    from wetread.build.verdict import GateLimits
    from wetread.package import Package

    with show_progress(quiet=as_json) as progress:
        options = RegateOptions(
            reference=reference,
            engine=engine,
            limits=GateLimits(max_dice_drop=max_dice_drop),
            trust=trust,
            threads=threads,
            progress=progress,
            precision=precision,
        )
        result = regate(Package.open(package), cases, options)
    if as_json:
        typer.echo(json.dumps(result.to_json()))
    else:
        show_build.gate_table(result)
    if not result.passed:
        raise typer.Exit(22)
