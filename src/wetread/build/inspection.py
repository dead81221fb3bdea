"""``wetread inspect``: a package's networks, passes, precision and gate, as plain data."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from wetread.build.regate import read_facts
from wetread.engines import Layered, make_engine, resolve
from wetread.engines.registry import Request
from wetread.errors import EngineError
from wetread.graph import Graph
from wetread.package import Package


def inspect_package(package: Package) -> dict[str, Any]:
    """Everything that is known of how a package was made and judged.

    A package without a ``build.json`` (made by `wetread pack`) has its graphs' operators and its gate alone.

    Raises:
        PackageError: a file of it is damaged.
        GraphError: a network cannot be read.
    """
    facts = read_facts(package)
    built = facts.pop("networks", [])
    networks = []
    for number, model in enumerate(package.models):
        graph = Graph.load(package.model_path(number))
        data: dict[str, Any] = {
            "file": model.file,
            "bytes": model.bytes,
            "precision": model.precision,
            "nodes": len(graph.nodes),
            "operators": dict(sorted(graph.operators.items())),
            "inputs": [entry.model_dump(mode="json") for entry in model.inputs],
            "outputs": [entry.model_dump(mode="json") for entry in model.outputs],
        }
        if number < len(built):
            data |= {"passes": built[number]["passes"], "layers": built[number]["precision"]}
        networks.append(data)
    manifest = package.manifest
    return {
        "name": package.name,
        "version": package.version,
        "path": str(package.path),
        "hash": package.hash,
        "precision": package.precision,
        "shapes": None if manifest.shapes is None else manifest.shapes.model_dump(mode="json"),
        "sources": [entry.model_dump(mode="json") for entry in manifest.sources],
        "tools": manifest.tools,
        "networks": networks,
        "build": facts,
        "gate": [record.model_dump(mode="json") for record in package.gate.records],
        "devices": _devices(package),
    }


def inspect_backend(package: Package, backend: str, precision: str | None = None) -> list[dict[str, Any]]:
    """What a backend executes of a package's networks, step by step.

    For ``cuda`` this is read from the plans beside the package, or, where there is none, found by lowering; neither
    needs a GPU. Other backends are asked themselves, on this machine.

    Args:
        package: its networks.
        backend: name of it, or ``auto``.
        precision: that is asked of the backend; None takes the networks' own.

    Returns:
        One entry for each network and plan: ``network``, ``device``, ``precision``, ``window``, ``batch``,
        ``arena_bytes``, ``steps``; a step has ``name``, ``type``, ``precision``, ``kernel``, ``native``, ``nodes``.

    Raises:
        EngineError: the backend is missing, refuses a network, or does not tell its steps.
    """
    name = resolve(backend).name
    found = []
    for number, model in enumerate(package.models):
        if name == "cuda":
            from wetread.engines import cuda

            request = Request(package.model_path(number), model.file, precision=precision, package=package)
            for each in cuda.outlines(request):
                found.append({"network": model.file, "backend": name, **asdict(each)})
        else:
            found.append({"network": model.file, "backend": name, **_asked(package, name, number, precision)})
    for entry in found:
        entry["steps"] = [
            {**_step(layer), "native": layer["kernel"] != "torch"} for layer in entry.pop("layers")
        ]
    return found


def _step(layer: dict[str, Any]) -> dict[str, Any]:
    return {**layer, "nodes": list(layer["nodes"])}


def _asked(package: Package, backend: str, number: int, precision: str | None) -> dict[str, Any]:
    """Layers of a runtime that tells them."""
    window = package.recipe.tiling.window or package.recipe.fixed_shape
    engine = make_engine(package, backend, model=number, precision=precision, override_gate=True)
    try:
        if not isinstance(engine, Layered):
            raise EngineError(
                f"the backend {backend} does not tell its steps", todo="use openvino, onnxruntime or cuda"
            )
        layers = [asdict(layer) for layer in engine.layers(window)]
        return {
            "device": engine.info.device,
            "precision": engine.info.precision,
            "window": window,
            "layers": layers,
        }
    finally:
        engine.close()


def _devices(package: Package) -> list[dict[str, Any]]:
    """Whole tables of the gates that were run, one for each device."""
    found = []
    for file in sorted((package.path / "engines").glob("*/gate.json")):
        try:
            found.append(json.loads(file.read_bytes()))
        except (OSError, ValueError):
            found.append({"fingerprint": file.parent.name, "damaged": True})
    return found
