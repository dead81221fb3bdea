"""``wetread export``: a package for another server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, cast

import typer


def export(
    package: Annotated[str, typer.Argument(help="Package directory, or the name of an embedded one.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Model repository; made if need be.")],
    to: Annotated[str, typer.Option("--to", help="For which server: triton.")] = "triton",
    backend: Annotated[
        str, typer.Option("--backend", help="Triton's backend: onnxruntime, openvino or tensorrt.")
    ] = "onnxruntime",
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="Largest batch of windows.")] = 4,
    queue_delay_us: Annotated[
        int | None,
        typer.Option("--queue-delay-us", min=0, help="Form batches; microseconds a window waits for others."),
    ] = None,
    instances: Annotated[int, typer.Option("--instances", min=1, help="Copies that run at once.")] = 1,
    plans: Annotated[
        Path | None, typer.Option("--plans", help="tensorrt: folder of plans. Default: the package's own.")
    ] = None,
    allow_failed_gate: Annotated[
        bool, typer.Option("--allow-failed-gate", help="Export without a passed gate; recorded.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace models of the same name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Write a package's networks for another server; preprocessing and labels stay the client's."""
    from wetread.build.triton import TritonBackend, TritonOptions, export_triton
    from wetread.package import Package

    if to != "triton":
        raise typer.BadParameter(f"there is no server {to!r}; known: triton", param_hint="--to")
    if backend not in ("onnxruntime", "openvino", "tensorrt"):
        raise typer.BadParameter(
            f"{backend!r} is none of onnxruntime, openvino, tensorrt", param_hint="--backend"
        )
    options = TritonOptions(
        backend=cast(TritonBackend, backend),
        max_batch=max_batch,
        queue_delay_us=queue_delay_us,
        instances=instances,
        plans=plans,
        override_gate=allow_failed_gate,
        force=force,
    )
    written = export_triton(Package.open(package), out, options)
    if as_json:
        typer.echo(json.dumps({"repository": str(out), "models": [path.name for path in written]}))
    else:
        for path in written:
            typer.echo(f"wrote {path}")
        typer.echo(f"serve  tritonserver --model-repository={out.resolve()}")
