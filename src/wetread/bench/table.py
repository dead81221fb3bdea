"""A bench for people: Markdown and a picture (SVG)."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from wetread.bench.rows import Bench, Row
from wetread.storage import write_bytes

Columns = tuple[tuple[str, str, str], ...]

COLUMNS: Columns = (
    ("latency_ms_p50", "p50 (ms)", "{:.1f}"),
    ("latency_ms_p95", "p95 (ms)", "{:.1f}"),
    ("windows_per_s", "windows/s", "{:.2f}"),
    ("speed_up", "speed-up", "{:.2f}×"),
    ("peak_memory_mib", "peak memory (MiB)", "{:.0f}"),
    ("size_mib", "size (MiB)", "{:.1f}"),
    ("dice", "Dice", "{:.4f}"),
    ("agreement", "agreement", "{:.5f}"),
    ("output_difference", "output difference", "{:.1e}"),
)
"""Key of the figure, title, format: what the Markdown shows."""

SHORT: Columns = (
    ("latency_ms_p50", "p50 ms", "{:.1f}"),
    ("latency_ms_p95", "p95 ms", "{:.1f}"),
    ("windows_per_s", "win/s", "{:.2f}"),
    ("speed_up", "faster", "{:.1f}×"),
    ("peak_memory_mib", "MiB", "{:.0f}"),
    ("dice", "Dice", "{:.4f}"),
)
"""The same for a terminal of 80 columns."""

_WIDTH, _LEFT, _ROW, _TOP = 860, 230, 34, 64


def write_bench(bench: Bench, folder: Path, name: str = "bench") -> tuple[Path, Path, Path]:
    """Writes ``NAME.json``, ``NAME.md`` and ``NAME.svg`` into a folder, and returns the paths.

    Raises:
        OutputError: a file could not be written.
    """
    paths = folder / f"{name}.json", folder / f"{name}.md", folder / f"{name}.svg"
    text = json.dumps(bench.to_json(), indent=2, ensure_ascii=False) + "\n"
    write_bytes(paths[0], text.encode())
    write_bytes(paths[1], markdown(bench, paths[2].name).encode())
    write_bytes(paths[2], svg(bench).encode())
    return paths


def slowest_key(bench: Bench) -> str:
    """The row that speed-ups are stated against: the first that ran."""
    return next((row.key for row in bench.rows if not row.problem), "")


def cells(bench: Bench, columns: Columns = COLUMNS) -> list[tuple[Row, list[str]]]:
    """Each row with its figures as text; a dash for what is not known."""
    base = next((row.figures.get("latency_ms_p50") for row in bench.rows if not row.problem), None)
    found = []
    for row in bench.rows:
        figures = dict(row.figures)
        own = figures.get("latency_ms_p50")
        figures["speed_up"] = base / own if base and own else None
        texts = [
            form.format(value) if (value := figures.get(key)) is not None else "–" for key, _, form in columns
        ]
        found.append((row, texts))
    return found


def markdown(bench: Bench, picture: str = "") -> str:
    """The table, what cannot run here and why, and how it was measured."""
    package, case, settings = bench.package, bench.case, bench.settings
    lines = [f"# {package['name']} {package['version']}: bench", ""]
    if picture:
        lines += [f"![latency per window]({picture})", ""]
    lines += [
        "| row | " + " | ".join(title for _, title, _ in COLUMNS) + " |",
        "|---|" + "---:|" * len(COLUMNS),
    ]
    ran = [(row, texts) for row, texts in cells(bench) if not row.problem]
    lines += [f"| {row.key} | " + " | ".join(texts) + " |" for row, texts in ran]
    absent = [row for row in bench.rows if row.problem]
    if absent:
        lines += ["", "Not run here:", ""]
        lines += [f"- {row.key}: {row.problem}" for row in absent]
    window = " × ".join(str(n) for n in settings["window"])
    against = (
        f"against {bench.compared_with}" if bench.compared_with else "against nothing: no float32 row ran"
    )
    lines += [
        "",
        f"Windows of {window} voxels, {settings['turns']} turns of {settings['windows_per_turn']} windows, all rows in "
        f"turn in one run, each in a process of its own with {bench.machine['threads']} threads. Speed-up is "
        f"against {slowest_key(bench) or 'none'}. Dice, agreement and output difference (root mean square of a "
        f"window, as a share of the standard deviation; median) are {against}, over {case['accuracy_over']} of "
        f"{case['name']}.",
    ]
    mixed = [row for row in bench.rows if len(row.layers) > 1]
    for row in mixed:
        counts = ", ".join(f"{count} in {kind}" for kind, count in sorted(row.layers.items()))
        lines += ["", f"Layers of {row.key}, as the runtime executes them: {counts}."]
    machine = bench.machine
    lines += [
        "",
        f"{machine['processor']} ({', '.join(machine['instruction_sets'])}), {machine['cores']} cores; "
        + ", ".join(f"{name} {version}" for name, version in sorted(bench.versions.items()))
        + f"; {machine['date']}.",
        "",
    ]
    return "\n".join(lines)


def svg(bench: Bench) -> str:
    """Bars of the median latency, with a line to the 95th percentile."""
    rows = [row for row in bench.rows if not row.problem]
    longest = max((float(row.figures["latency_ms_p95"] or 0) for row in rows), default=1.0) or 1.0
    height = _TOP + _ROW * len(rows) + 30
    scale = (_WIDTH - _LEFT - 110) / longest
    title = f"{bench.package['name']} {bench.package['version']}: latency per window (ms), median and 95th percentile"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="14">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="32" font-size="16" fill="#15202b">{escape(title)}</text>',
    ]
    for number, row in enumerate(rows):
        middle = _TOP + _ROW * number + _ROW / 2
        p50, p95 = (float(row.figures[key] or 0) for key in ("latency_ms_p50", "latency_ms_p95"))
        color = "#0b6bcb" if row.engine.startswith("wetread") else "#97a4b1"
        end = _LEFT + p95 * scale
        parts += [
            f'<text x="{_LEFT - 10}" y="{middle + 5:.0f}" text-anchor="end" fill="#15202b">{escape(row.key)}</text>',
            f'<rect x="{_LEFT}" y="{middle - 10:.0f}" width="{max(1.0, p50 * scale):.1f}" height="20" fill="{color}"/>',
            f'<line x1="{_LEFT + p50 * scale:.1f}" y1="{middle:.0f}" x2="{end:.1f}" y2="{middle:.0f}" '
            'stroke="#15202b" stroke-width="1.5"/>',
            f'<text x="{end + 8:.1f}" y="{middle + 5:.0f}" fill="#5b6875">{p50:.1f}</text>',
        ]
    parts.append("</svg>")
    return "\n".join(parts) + "\n"
