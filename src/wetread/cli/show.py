"""What the commands show: progress, the table of findings, descriptions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from wetread.findings import Reading

Report = Callable[[str, int, int], None]


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Report]:
    """Yields ``report(stage, done, total)``: a bar per stage on a terminal, one line per stage when piped."""
    if quiet:
        yield lambda stage, done, total: None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        seen: set[str] = set()

        def plain(stage: str, done: int, total: int) -> None:
            if done >= total and stage not in seen:
                seen.add(stage)
                sys.stderr.write(f"{stage}: {done} of {total}\n")
                sys.stderr.flush()

        yield plain
        return
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def bar(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield bar


def reading(result: Reading, written: Mapping[str, Path]) -> None:
    """Prints findings, notices, times and paths."""
    console = Console()
    if result.scores:
        table = Table(box=box.SIMPLE_HEAD)
        for name in ("label", "probability", "decided"):
            table.add_column(name, justify="right" if name == "probability" else "left", no_wrap=True)
        for name, score in result.scores.items():
            table.add_row(escape(name), f"{score:.3f}", "yes" if name in result.classes else "")
        console.print(table)
    elif result.findings:
        unit = "HU" if result.modality == "CT" else "mean"
        table = Table(title=f"{len(result.findings)} finding(s)", title_justify="left", box=box.SIMPLE_HEAD)
        for name in ("#", "label", "centre L P S (mm)", "slices", "axis mm", "ml", unit, "p"):
            table.add_column(name, justify="left" if name == "label" else "right", no_wrap=True)
        for f in result.findings:
            centre = " ".join(f"{c:.1f}" for c in f.centroid_lps_mm)
            slices = f"{f.slice_range[0] + 1}-{f.slice_range[1] + 1}"
            figures = (
                f"{f.long_axis_mm:.1f}",
                f"{f.volume_ml:.2f}",
                f"{f.mean:.0f}",
                f"{f.max_probability:.2f}",
            )
            table.add_row(str(f.number), escape(f.label), centre, slices, *figures)
        console.print(table)
    else:
        console.print("No lesion found.")
    for notice in result.notices:
        console.print(f"notice {notice.code}: {notice.text}", markup=False, highlight=False)
    total = result.timings_s.get("total", sum(result.timings_s.values()))
    stages = ", ".join(f"{k} {v:.1f}" for k, v in result.timings_s.items() if k != "total" and v >= 0.05)
    console.print(f"read in {total:.1f} s ({stages})", markup=False, highlight=False)
    for path in written.values():
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    console.print(result.provenance.intended_use, markup=False, highlight=False)


def description(data: Mapping[str, Any]) -> None:
    """Prints what `wetread info` found, as indented lines."""
    console = Console()

    def lines(value: Any, indent: int) -> Iterator[str]:
        pad = "  " * indent
        for key, item in value.items():
            if isinstance(item, Mapping):
                yield f"{pad}{key}:"
                yield from lines(item, indent + 1)
            elif isinstance(item, list) and any(isinstance(x, Mapping) for x in item):
                yield f"{pad}{key}:"
                for x in item:
                    inner = list(lines(x, indent + 2))
                    if inner:
                        inner[0] = f"{pad}  - {inner[0].lstrip()}"
                    yield from inner
            else:
                yield f"{pad}{key}: {item}"

    for line in lines(data, 0):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
