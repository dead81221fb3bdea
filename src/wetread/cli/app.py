"""The commands and their options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, cast

import typer

from wetread import __version__
from wetread.cli import bench, build, export, gate, inspect, phantoms, show
from wetread.errors import WetreadError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    help="Reads CT and MR studies with trained networks, at once. Research only, not for clinical use.",
)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
ModelOption = Annotated[
    str, typer.Option("-m", "--model", help="Package directory, or the name of an embedded one.")
]
StudyArgument = Annotated[
    Path, typer.Argument(help="DICOM folder or zip of one, a DICOM file, or NIfTI.", show_default=False)
]


@app.command()
def read(
    study: StudyArgument,
    model: ModelOption = "lung-nodule",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder to write to. Default: NAME-reading here.")
    ] = None,
    as_json: JsonFlag = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what the folder holds.")] = False,
    seg: Annotated[str, typer.Option("--seg", help="DICOM SEG type: binary or labelmap.")] = "binary",
    engine: Annotated[
        str, typer.Option("--engine", help="Backend: auto, openvino, onnxruntime, cuda, tensorrt, reference.")
    ] = "auto",
    precision: Annotated[
        str | None, typer.Option("--precision", help="Arithmetic, as float16. Default: the network's own.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Threads; 0 means all cores.")] = 0,
    allow_failed_gate: Annotated[
        bool, typer.Option("--allow-failed-gate", help="Load an engine without a passed gate; recorded.")
    ] = False,
) -> None:
    """Read a study: lesions, mask, DICOM SEG and SR, report."""
    from wetread.reading import OutputFolder, ReadOptions, SaveOptions, SegKind, default_out, save
    from wetread.reading import read as read_study

    save_options = SaveOptions(seg=cast(SegKind, seg))
    folder = OutputFolder(out if out is not None else default_out(study), force=force)
    folder.check()
    options = ReadOptions(
        engine=engine, threads=threads, allow_failed_gate=allow_failed_gate, precision=precision
    )
    with show.progress(quiet=as_json) as progress:
        try:
            reading = read_study(study, model, options=options, progress=progress)
            written = save(reading, folder, options=save_options, progress=progress)
        except WetreadError as error:
            folder.write_failure(error, study)
            raise
    if as_json:
        data = json.loads(written["reading.json"].read_text(encoding="utf-8"))
        data["outputs"] = {name: str(path) for name, path in written.items()}
        typer.echo(json.dumps(data))
    else:
        show.reading(reading, written)


@app.command()
def info(
    source: Annotated[Path, typer.Argument(metavar="STUDY|PACKAGE", help="What to describe.")],
    model: ModelOption = "lung-nodule",
    as_json: JsonFlag = False,
) -> None:
    """Say what series a study holds, which would be read and why; or what a package is."""
    from wetread.reading import describe

    data = describe(source, model)
    if as_json:
        typer.echo(json.dumps(data))
    else:
        show.description(data)


@app.command()
def pack(
    network: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The network, float32 ONNX.")],
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.json", help="How it is used.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of packages.")] = Path("models"),
    card: Annotated[Path | None, typer.Option("--card", help="Model card, Markdown.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the same version.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a package of a network and its recipe, after checking that they fit."""
    from wetread.build.pack import pack as make_package

    package = make_package(network, recipe, out, card=card, force=force)
    if as_json:
        typer.echo(json.dumps({"package": str(package.path), "hash": package.hash}))
    else:
        typer.echo(f"wrote {package.path}\nhash  {package.hash}")


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes."""
    from wetread.recipe import recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=2, ensure_ascii=False))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"wetread {__version__}")


app.command()(bench.bench)
app.command()(build.build)
app.command()(export.export)
app.command()(gate.gate)
app.command()(inspect.inspect)
app.command()(phantoms.phantoms)


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)
    ] = False,
) -> None:
    """Reads CT and MR studies with trained networks, at once. Research only, not for clinical use."""
    if show_version:
        version()
        raise typer.Exit
