"""What `wetread build`, `gate` and `inspect` print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from wetread.build.check import CheckResult
    from wetread.build.options import BuildResult
    from wetread.build.verdict import GateResult


def built(result: BuildResult) -> None:
    """Prints nodes before and after, precision, the gate's table, notices and the path."""
    console = Console()
    for network in result.facts["networks"]:
        passes = network["passes"]
        place = (
            f"stage {network['stage']} fold {network['fold']}: " if len(result.facts["networks"]) > 1 else ""
        )
        _plain(console, f"{place}{passes['nodes_before']} nodes, {passes['nodes_after']} after the passes")
        if network["precision"] is not None:
            _plain(console, _counts(network["precision"]["layers"]))
    if result.gate is not None:
        gate_table(result.gate)
    if (cost := result.dynamic) is not None:
        _plain(
            console,
            f"windows of several shapes: {cost.dynamic_ms:.1f} ms for one of the usual shape, "
            f"{cost.fixed_ms:.1f} ms where it is fixed (± {cost.dynamic_spread_ms:.1f} and "
            f"{cost.fixed_spread_ms:.1f}, {cost.windows} windows each)",
        )
    for notice in result.notices:
        _plain(
            console, f"notice {notice.code}: {notice.text}" + (f" [{notice.where}]" if notice.where else "")
        )
    _plain(console, f"wrote {result.package.path}")
    _plain(console, f"hash  {result.package.hash}")


def gate_table(result: GateResult) -> None:
    """Prints the verdict, its figures, and what failed."""
    console = Console()
    table = Table(title=escape(result.headline()), title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("figure", "float32", "candidate", "limit"):
        table.add_column(name, justify="left" if name == "figure" else "right", no_wrap=True)
    for row in result.rows():
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)
    for text in (*result.failures, *result.notes):
        _plain(console, text)


def checked(result: CheckResult) -> None:
    """Prints what a rebuilt package differs in."""
    console = Console()
    for difference in result.differences:
        _plain(
            console, f"{difference.what}: the package has {difference.package}, rebuilt {difference.rebuilt}"
        )
    for note in result.notes:
        _plain(console, note)
    _plain(console, f"{result.package}: {'DIFFERS' if result.differences else 'confirmed'}")


def inspected(data: Mapping[str, Any], *, every_layer: bool = False) -> None:
    """Prints what `inspect_package` found."""
    console = Console()
    _plain(console, f"{data['name']} {data['version']}, {data['precision']}")
    _plain(console, f"hash {data['hash']}")
    for source in data["sources"]:
        _plain(
            console, f"made from {source['name']}, {source['bytes']} bytes, SHA-256 {source['sha256'][:16]}…"
        )
    for network in data["networks"]:
        _network(console, network, every_layer)
    for record in data["gate"]:
        figures = ", ".join(f"{name} {value:g}" for name, value in record["figures"].items())
        text = f"gate {record['backend']} {record['precision']}: {record['status']}"
        cases = f" on {record['cases']} cases" if record["cases"] else ""
        _plain(console, text + cases + (f" ({figures})" if figures else ""))
        if record["note"]:
            _plain(console, f"  {record['note']}")
    for device in data["devices"]:
        _device(console, device)
    for notice in data["build"].get("notices", []):
        _plain(console, f"notice {notice['code']}: {notice['text']}")


def executed(found: Sequence[Mapping[str, Any]], *, every_layer: bool = False) -> None:
    """Prints what `inspect_backend` found: steps counted by kind, or each of them."""
    console = Console()
    for entry in found:
        device = entry["device"] or "no device yet: kernels are chosen there"
        window = "" if entry.get("window") is None else ", windows of " + "×".join(map(str, entry["window"]))
        if entry.get("batch", 1) > 1:
            window += f", {entry['batch']} at once"
        _plain(
            console, f"{entry['network']} on {entry['backend']} in {entry['precision']}{window} ({device})"
        )
        if "arena_bytes" in entry:
            arena, weights = entry["arena_bytes"] / 2**20, entry["weight_bytes"] / 2**20
            _plain(console, f"a context takes {arena:.1f} MiB beside {weights:.1f} MiB of weights")
        strangers = sum(not step["native"] for step in entry["steps"])
        torch = f", {strangers} of them by torch" if entry["backend"] == "cuda" else ""
        _plain(console, f"{len(entry['steps'])} steps{torch}")
        _steps(console, entry["steps"], every_layer)


def _steps(console: Console, steps: Sequence[Mapping[str, Any]], every: bool) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for name in (*(("step",) if every else ("steps",)), "operation", "precision", "kernel"):
        table.add_column(name, justify="right" if name == "steps" else "left", overflow="fold")
    if every:
        for step in steps:
            table.add_row(*(escape(step[key]) for key in ("name", "type", "precision", "kernel")))
    else:
        counts = Counter(
            (step["type"], step["precision"], step["kernel"].split(" ")[0].strip(",")) for step in steps
        )
        for (kind, precision, family), count in counts.items():
            table.add_row(str(count), escape(kind), precision, escape(family))
    console.print(table)


def _network(console: Console, network: Mapping[str, Any], every_layer: bool) -> None:
    _plain(console, f"\n{network['file']}: {network['bytes'] / 2**20:.1f} MiB, {network['nodes']} nodes")
    if passes := network.get("passes"):
        table = Table(box=box.SIMPLE_HEAD, title="passes", title_justify="left")
        for name in ("pass", "nodes", "fused", "declined", "worst error"):
            table.add_column(name, justify="left" if name == "pass" else "right")
        for entry in passes["passes"]:
            fused = sum(site["applied"] for site in entry["sites"])
            error = "" if entry["worst_error"] is None else f"{entry['worst_error']:.1e}"
            nodes = f"{entry['nodes_before']} → {entry['nodes_after']}"
            table.add_row(entry["name"], nodes, str(fused), str(len(entry["sites"]) - fused), error)
        console.print(table)
        _operators(console, passes)
        for text in _declined(passes):
            _plain(console, text)
    layers = (network.get("layers") or {}).get("layers", [])
    if layers:
        _plain(console, _counts(layers))
    for layer in layers:
        if every_layer or layer["reason"] == "released":
            scale = "" if layer["scale"] is None else f", scale {layer['scale']:.4g}"
            _plain(
                console,
                f"  {layer['name']} ({layer['operator']}): {layer['precision']}, {layer['reason']}{scale}",
            )


def _operators(console: Console, passes: Mapping[str, Any]) -> None:
    """One line: how many nodes of each operator there were and are."""
    before, after = passes["operators_before"], passes["operators_after"]
    parts = [
        f"{name} {before.get(name, 0)} → {after.get(name, 0)}"
        for name in sorted(set(before) | set(after))
        if before.get(name, 0) != after.get(name, 0)
    ]
    if parts:
        _plain(console, "operators: " + ", ".join(parts))


def _declined(passes: Mapping[str, Any]) -> Iterator[str]:
    """Sites that were declined, each reason once with its nodes."""
    for entry in passes["passes"]:
        reasons: dict[str, list[str]] = {}
        for site in entry["sites"]:
            if not site["applied"]:
                reasons.setdefault(site["reason"], []).append("+".join(site["nodes"]))
        for reason, nodes in reasons.items():
            more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
            yield f"declined by {entry['name']}: {', '.join(nodes[:3])}{more}: {reason}"


def _counts(layers: list[Mapping[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for layer in layers:
        counts[layer["precision"]] = counts.get(layer["precision"], 0) + 1
    return "precision: " + ", ".join(f"{count} nodes {name}" for name, count in counts.items())


def _device(console: Console, device: Mapping[str, Any]) -> None:
    """The table of a gate that was run on one device."""
    _plain(console, f"\nengines/{device['fingerprint']}/gate.json")
    cases = device.get("table", {}).get("cases", [])
    names = [label["label"] for label in cases[0].get("labels", [])] if cases else []
    if not names:
        return
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("case", *(f"Dice {label}" for label in names), "agree", "lost"):
        table.add_column(escape(name), justify="left" if name == "case" else "right")
    for case in cases:
        cells = [f"{label['candidate']:.4f}" for label in case.get("labels", [])] or [""] * len(names)
        agree = case.get("agreement")
        cells += ["" if agree is None else f"{agree:.5f}", str(len(case.get("lost", [])))]
        table.add_row(escape(case["name"]), *cells)
    console.print(table)


def _plain(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
