"""The page of the networks' benchmark, from its JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlperf_report import noted, steps

HEAD = """\
# Networks of several kinds on one H200

{gpu}, driver {driver}, torch {torch}, Triton {triton}, CUDA {cuda}, cuDNN {cudnn}; {date};
one run of `benchmarks/networks.py`, medians of {rounds} runs of a window, variants in turn, inputs and outputs in
device memory. Batch 1. Random seeded weights. torch.compile: float16, reduce-overhead (CUDA graphs), in the faster
memory format.
Every number is in the JSON beside this page.

| network | window | engine | ms (quartiles) | TFLOP/s | share of ceiling | {last}
|---|---|---|---|---|---|---|---|---|---|"""

LAST_COLUMNS = "× eager autocast | × torch.compile | peak memory, GiB | relative L2 |"
FOOT = """
The ceiling: 989 TFLOP/s in float16, 1979 in 8 bits; TFLOP/s are those of the direct algorithm. Peak memory: weights
included, as the allocator saw it. Relative L2: of the output against eager float32 without TF32; in 8 bits of weights
without training, so a bound on nothing but gross errors.
"""


MEMORY = """## Memory of a context

| network | window | precision | arena, MiB | weights, MiB | eager |
|---|---|---|---|---|---|"""


EARLIER = """## Against PyTorch of another run

The lease ended before PyTorch's stacks of these networks were timed again; wetread's times are of a run of the same
evening, PyTorch's of an earlier one on the same kind of machine (torch 2.11, medians, better memory format).

| network | window | wetread float16, ms | eager autocast, ms | torch.compile, ms | × eager | × torch.compile |
|---|---|---|---|---|---|---|"""


def _earlier(row: dict[str, Any], earlier: dict[str, list[float]]) -> str:
    ms, (eager, compiled) = row["ms_per_window"], earlier[row["network"]]
    cells = [row["network"], row["window"], f"{ms:.3f}", f"{eager:.2f}", f"{compiled:.2f}", f"{eager / ms:.1f}",
             f"{compiled / ms:.2f}"]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def report(data: dict[str, Any], out: Path) -> None:
    """Writes cuda-networks.md and cuda-networks.json."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "cuda-networks.json").write_text(json.dumps(data, indent=1) + "\n")
    lines = [HEAD.format(**data["machine"], rounds=data["rounds"], last=LAST_COLUMNS)]
    lines += [_row(row) for row in data["rows"]]
    lines += [FOOT, MEMORY]
    lines += [_memory(row, data["rows"]) for row in data["rows"] if row["engine"] == "wetread"]
    if "earlier" in data:
        lines += ["", EARLIER]
        lines += [_earlier(row, data["earlier"]) for row in data["rows"] if row.get("run") == "earlier"]
    lines += noted(data)
    for title, rows in data.get("steps", {}).items():
        lines += steps(title + ", 1", rows)
    (out / "cuda-networks.md").write_text("\n".join(lines) + "\n")


def _row(row: dict[str, Any]) -> str:
    ours = row["engine"] == "wetread"
    low, high = row["quartiles_ms"]
    cells = [
        row["network"], row["window"], f"**wetread {row['precision']}**" if ours else row["engine"],
        f"{row['ms_per_window']:.3f} ({low:.3f}–{high:.3f})", f"{row['tflops']:.0f}", f"{row['share_of_peak']:.0%}",
        _times(row["times_eager"]), _times(row["times_compile"]), _gib(row["peak_bytes"]),
        "" if row["relative_l2"] is None else f"{row['relative_l2']:.1e}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _gib(value: int | None) -> str:
    return "" if value is None else f"{value / 2**30:.2f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _memory(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    eager = [r["peak_bytes"] for r in rows if r["engine"] == "eager autocast"
             and (r["network"], r["window"]) == (row["network"], row["window"])]  # fmt: skip
    whole = row["context_bytes"] + row["weight_bytes"]
    against = f"{whole / eager[0]:.2f} of eager autocast's {eager[0] / 2**20:.0f} MiB" if eager else ""
    return (f"| {row['network']} | {row['window']} | {row['precision']} | {row['context_bytes'] / 2**20:.0f} "
            f"| {row['weight_bytes'] / 2**20:.0f} | {against} |")  # fmt: skip
