"""``wetread inspect``: what was done to a network, and what the gate said."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from wetread.cli import show_build


def inspect(
    package: Annotated[str, typer.Argument(help="Package directory, or the name of an embedded one.")],
    layers: Annotated[
        bool, typer.Option("--layers", help="List every layer, not only those of note.")
    ] = False,
    backend: Annotated[
        str | None,
        typer.Option("--backend", help="Show what this backend executes, step by step: cuda, openvino, …"),
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="With --backend: arithmetic, as float16.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Show the graph before and after, sites fused and declined, precision per layer, the gate's table."""
    from wetread.build.inspection import inspect_backend, inspect_package
    from wetread.package import Package

    if backend is not None:
        found = inspect_backend(Package.open(package), backend, precision)
        if as_json:
            typer.echo(json.dumps(found))
        else:
            show_build.executed(found, every_layer=layers)
        return
    data = inspect_package(Package.open(package))
    if as_json:
        typer.echo(json.dumps(data))
    else:
        show_build.inspected(data, every_layer=layers)
