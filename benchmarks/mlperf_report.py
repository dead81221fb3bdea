"""The page of the MLPerf benchmark, from its JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORD = 6.84
"""Samples a second of NVIDIA's submission to MLPerf Inference: 3D-UNet 99.9, Offline, one H200, TensorRT 10.2, INT8."""

SHOWN = ("wetread int8, 8", "wetread int8, 1", "wetread float16, 8", "wetread float16, 1")
"""Tables of steps on the page; the JSON has all."""

HEAD = """\
# MLPerf's 3D-UNet, Offline, on one H200

{gpu}, driver {driver}, torch {torch}, Triton {triton}, CUDA {cuda}, cuDNN {cudnn}; {date};
one run of `benchmarks/mlperf_3dunet.py`, medians. Every number is in the JSON beside this page.

The network: 1→32→64→128→256→320→320, ReLU, {gflop:.0f} GFLOP for a window of {window}; He-initialised with norms as
trained networks have them, since MLPerf's weights cannot be had here. {count} cases with {mean:.1f} windows on average,
overlap one half, blended by the cube root of the outer product of Gaussians (σ = 16), argmax. A sample is timed from
the volume in device memory to its label map: cutting, network, stitching, argmax; preprocessing is not. All cases
weigh the same; each is a volume of its own, every window is computed each time, nothing is kept from one sample to
the next.

NVIDIA's figure for its own submission (TensorRT 10.2, INT8, one H200) is {record} samples a second. It comes from
another machine and another harness (LoadGen, trained weights, KiTS19), so the ratio to it is an orientation.

| engine | samples/s (quartiles) | ms a window, all included | one window, ms | TFLOP/s | share of ceiling | {last}
|---|---|---|---|---|---|---|---|---|"""
LAST_COLUMNS = "peak memory, one window, GiB | relative L2 of logits | foreground Dice |"

FOOT = """
¹ over some cases of 8 to 100 windows, scaled by windows; through wetread's cutting and stitching.

The ceiling: 989 TFLOP/s in float16, 1979 in 8 bits. Memory: weights included; wetread's is an arena and weights, known
before the first run. torch.compile: {compile}. Dice and logits are of a network without training, whose labels lie
near ties; trained networks are in cuda-accuracy.md.

## Around the network
"""

STEPS = """
## Steps: {title} at once

Each alone, repeated in a CUDA graph; {total:.0f} µs in all, floors {floors:.0f} µs (the larger of operations / peak and
bytes / 4.3 TB/s).

| step | kernel | in | µs | floor | TFLOP/s |
|---|---|---|---|---|---|"""


def report(path: Path, out: Path) -> None:
    """Writes mlperf_3dunet.md beside a copy of the JSON."""
    data = json.loads(path.read_text())
    out.mkdir(parents=True, exist_ok=True)
    (out / "mlperf_3dunet.json").write_text(json.dumps(data, indent=1) + "\n")
    lines = [_head(data), *map(_row, data["rows"])]
    notes = [row["note"] for row in data["rows"] if row.get("note")]
    lines.append(FOOT.format(compile=notes[0] if notes else "not run"))
    lines += [_around(row) for row in data["rows"] if row["engine"] == "wetread"]
    lines += noted(data)
    for title, rows in data.get("steps", {}).items():
        if title in SHOWN:
            lines += steps(title, rows)
    (out / "mlperf_3dunet.md").write_text("\n".join(lines) + "\n")


def _head(data: dict[str, Any]) -> str:
    machine, cases = data["machine"], data["cases"]
    return HEAD.format(
        **machine, gflop=data["gflop_per_window"], window="×".join(map(str, data["window"])), record=RECORD,
        count=cases["count"], mean=cases["mean_windows"], last=LAST_COLUMNS,
    )  # fmt: skip


def _row(row: dict[str, Any]) -> str:
    title = f"**wetread {row['precision']}**" if row["engine"] == "wetread" else row["engine"]
    low, high = row["samples_per_s_quartiles"]
    memory = row.get("window_peak_bytes") or row["peak_bytes"]
    gib = None if memory is None else memory / 2**30
    cells = [
        title + (" ¹" if row["extrapolated"] else ""), f"{row['samples_per_s']:.2f} ({low:.2f}–{high:.2f})",
        f"{row['ms_per_window']:.3f}", f"{row['window_latency_ms']:.3f}", f"{row['tflops']:.0f}",
        f"{row['share_of_peak']:.0%}", _or(gib, ".2f"), _or(row["relative_l2"], ".1e"),
        _or(row["foreground_dice"], ".5f"),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _or(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _around(row: dict[str, Any]) -> str:
    share = 1 - row["network_ms_per_window"] / row["ms_per_window"]
    by = ", ".join(f"{batch} at once {ms:.3f}" for batch, ms in row["network_ms_by_batch"].items())
    return (
        f"- {row['precision']}: {row['samples_per_s'] / RECORD:.2f} of {RECORD}; network alone, ms a window: {by};\n"
        f"  what else a case takes (cutting, stitching, uneven batches, clocks under load) {share:.1%}; the ring\n"
        f"  {row['ring_bytes'] / 2**30:.2f} GiB, all of it {row['peak_bytes'] / 2**30:.2f} GiB."
    )


def noted(data: dict[str, Any]) -> list[str]:
    """What was learnt, as it was written into the JSON after the run."""
    return (
        ["", "## What bounds it now", "", *(f"- {note}" for note in data["notes"])] if "notes" in data else []
    )


def steps(title: str, rows: list[dict[str, Any]]) -> list[str]:
    """A table of steps beside their floors."""
    total = sum(r["us"] or 0 for r in rows)
    lines = [STEPS.format(title=title, total=total, floors=sum(map(floor_us, rows)))]
    for r in rows:
        us = r["us"] or float("nan")
        rate = f"{r['gflop'] / us * 1e3:.0f}" if r["gflop"] else ""
        lines.append(
            f"| {r['step']} | {r['kernel']} | {r['precision']} | {us:.1f} | {floor_us(r):.1f} | {rate} |"
        )
    return lines


def floor_us(row: dict[str, Any]) -> float:
    """The larger of a step's two floors."""
    return max(row["compute_floor_us"], row["memory_floor_us"])
