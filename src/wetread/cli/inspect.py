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
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Show the graph before and after, sites fused and declined, precision per layer, the gate's table."""
    from wetread.build.inspection import inspect_package
    from wetread.package import Package

    data = inspect_package(Package.open(package))
    if as_json:
        typer.echo(json.dumps(data))
    else:
        show_build.inspected(data, every_layer=layers)
