"""``wetread build``: a trained network becomes a gated package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from wetread.cli import show_build
from wetread.cli.show import progress as show_progress

if TYPE_CHECKING:
    from wetread.build.options import Asked, BuildOptions, Calibrator


def build(
    model: Annotated[
        Path,
        typer.Argument(
            help="ONNX, .pt2, TorchScript, nnU-Net results folder, MONAI bundle.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of packages.")] = Path("models"),
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="How it is used, where the model's files do not say.")
    ] = None,
    precision: Annotated[str, typer.Option("--precision", help="auto, fp32, fp16 or int8.")] = "auto",
    calibrate: Annotated[
        Path | None, typer.Option("--calibrate", metavar="CASES", help="Scans that scales are observed on.")
    ] = None,
    calibrator: Annotated[
        str, typer.Option("--calibrator", help="minmax, entropy or percentile.")
    ] = "minmax",
    windows: Annotated[int, typer.Option("--windows", min=1, help="Windows of each calibration case.")] = 8,
    gate: Annotated[
        Path | None, typer.Option("--gate", metavar="CASES", help="Held-out scans to be judged on.")
    ] = None,
    max_dice_drop: Annotated[
        float, typer.Option("--max-dice-drop", min=0.0, max=1.0, help="Mean Dice that may be lost.")
    ] = 0.005,
    no_gate: Annotated[
        bool, typer.Option("--no-gate", help="Judge nothing; the package loads by override only.")
    ] = False,
    shapes: Annotated[
        str | None, typer.Option("--shapes", metavar="MIN:OPT:MAX", help="Window shapes, each as 64x128x128.")
    ] = None,
    folds: Annotated[
        str, typer.Option("--folds", help="nnU-Net: folds to ensemble, as 0,1,2. Default: all.")
    ] = "",
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", help="nnU-Net: file in each fold's folder.")
    ] = "checkpoint_final.pth",
    no_mirror: Annotated[
        bool, typer.Option("--no-mirror", help="Leave test-time mirroring out of the recipe.")
    ] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Load formats that execute what they hold (pickles).")
    ] = False,
    name: Annotated[str, typer.Option("--name", help="Name of the package.")] = "",
    version: Annotated[str, typer.Option("--version", help="Version of the package, as 1.2.0.")] = "",
    card: Annotated[Path | None, typer.Option("--card", help="Model card, Markdown.")] = None,
    engine: Annotated[str, typer.Option("--engine", help="Backend that will serve it.")] = "auto",
    threads: Annotated[int, typer.Option("--threads", min=0, help="Threads; 0 means all cores.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the same version.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Rebuild elsewhere and compare with the package that is there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Make a package of a trained network: optimised, quantised, and judged on held-out cases."""
    from wetread.build.importers import ImportOptions
    from wetread.build.options import BuildOptions
    from wetread.build.verdict import GateLimits
    from wetread.package import ShapeProfile

    imports = ImportOptions(
        trust=trust, folds=_folds(folds), checkpoint=checkpoint, mirror=not no_mirror, name=name
    )
    with show_progress(quiet=as_json) as progress:
        options = BuildOptions(
            recipe=recipe,
            name=name,
            version=version,
            precision=cast("Asked", _one_of("--precision", precision, ("auto", "fp32", "fp16", "int8"))),
            calibrate=calibrate,
            calibrator=cast(
                "Calibrator", _one_of("--calibrator", calibrator, ("minmax", "entropy", "percentile"))
            ),
            per_case=windows,
            gate=gate,
            limits=GateLimits(max_dice_drop=max_dice_drop),
            no_gate=no_gate,
            shapes=None if shapes is None else ShapeProfile.parse(shapes),
            imports=imports,
            card=card,
            engine=engine,
            threads=threads,
            force=force,
            progress=progress,
        )
        if not check:
            _build(model, out, options, as_json)
            return
        from wetread.build.check import check_build

        found = check_build(model, out, options)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        show_build.checked(found)
    if found.differences:
        raise typer.Exit(22)


def _build(model: Path, out: Path, options: BuildOptions, as_json: bool) -> None:
    from wetread.build.options import NotPassedError
    from wetread.build.pipeline import build as make_package

    try:
        result = make_package(model, out, options)
    except NotPassedError as error:
        if not as_json:
            show_build.gate_table(error.result)
        raise
    if as_json:
        data: dict[str, Any] = {
            "package": str(result.package.path),
            "hash": result.package.hash,
            "build": result.facts,
        }
        data["gate"] = None if result.gate is None else result.gate.to_json()
        data["dynamic"] = None if result.dynamic is None else result.dynamic.as_dict()
        typer.echo(json.dumps(data))
    else:
        show_build.built(result)


def _folds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is no list of folds such as 0,1,2", param_hint="--folds"
        ) from error


def _one_of(option: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(known)}", param_hint=option)
    return value
