"""``wetread inspect``: a package's networks, passes, precision and gate, as plain data."""

from __future__ import annotations

import json
from typing import Any

from wetread.build.regate import read_facts
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


def _devices(package: Package) -> list[dict[str, Any]]:
    """Whole tables of the gates that were run, one for each device."""
    found = []
    for file in sorted((package.path / "engines").glob("*/gate.json")):
        try:
            found.append(json.loads(file.read_bytes()))
        except (OSError, ValueError):
            found.append({"fingerprint": file.parent.name, "damaged": True})
    return found
