"""Comparing two runs of the bench.

Only wetread's own rows can fail; the peers that ran in both runs tell how the machine itself has changed: the
*drift* is the median of their ratios of median latencies, and at least 1. The rule: a row has become slower where
its median latency is more than 5 % above the baseline's times the drift, *and* the two runs' interquartile ranges,
the baseline's times the drift, do not overlap (the faster quarter of the new windows is slower than the slower
quarter of the old ones). Memory has grown where the peak is more than 5 % and more than 16 MiB above; sizes on disk
count as memory does. Accuracy has fallen where Dice or agreement is more than 0.001 lower. A row that ran in the
baseline and does not run now is a regression, too.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wetread.bench.rows import Bench, Row
from wetread.errors import OutputError

SHARE = 0.05
LEAST_MIB = 16.0
LEAST_ACCURACY = 0.001
_MACHINE = ("processor", "cores", "threads")
_SETTINGS = ("window",)
_CASE = ("name", "accuracy_over")


@dataclass(frozen=True)
class Change:
    """One figure of one row that became worse beyond noise."""

    row: str
    figure: str
    before: float | None
    now: float | None
    text: str

    def to_json(self) -> dict[str, Any]:
        """All fields as plain data."""
        return dict(vars(self))


def load_baseline(path: Path) -> Bench:
    """Reads the JSON of an earlier run.

    Raises:
        OutputError: it cannot be read, or is no bench.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != 1:
            raise KeyError("format")
        return Bench.from_json(data)
    except OSError as error:
        raise OutputError(
            f"the baseline cannot be read: {error.strerror}", where=str(path), code="BASELINE"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"the baseline is no bench.json: {type(error).__name__} {error}",
            where=str(path),
            todo="give the JSON that an earlier `wetread bench` wrote",
            code="BASELINE",
        ) from error


def check_comparable(now: Bench, before: Bench) -> None:
    """Refuses baselines of another machine or of other windows, whose times say nothing.

    Raises:
        OutputError: names what differs.
    """
    pairs = [(f"machine: {name}", before.machine.get(name), now.machine.get(name)) for name in _MACHINE]
    pairs += [(name, before.settings.get(name), now.settings.get(name)) for name in _SETTINGS]
    pairs += [(f"case: {name}", before.case.get(name), now.case.get(name)) for name in _CASE]
    for name, old, new in pairs:
        if old != new:
            raise OutputError(
                f"the baseline is not comparable: {name} was {old}, is {new}",
                where="--baseline",
                todo="measure the baseline on this machine with the same settings",
                code="BASELINE",
            )


def drift(now: Bench, before: Bench) -> float:
    """How much slower the machine has become, by the peers of both runs; 1 where it has not, or there are none."""
    rows = {row.key: row.figures.get("latency_ms_p50") for row in now.rows if not _own(row)}
    ratios = [
        found / old
        for row in before.rows
        if (found := rows.get(row.key)) and (old := row.figures.get("latency_ms_p50"))
    ]
    return max(1.0, statistics.median(ratios)) if ratios else 1.0


def regressions(now: Bench, before: Bench) -> list[Change]:
    """What became worse beyond noise, row by row; rows that only one run has, and peers, are left out."""
    rows = {row.key: row for row in now.rows}
    slower = drift(now, before)
    found: list[Change] = []
    for old in before.rows:
        new = rows.get(old.key)
        if new is None or old.problem or not _own(old):
            continue
        if new.problem:
            found.append(
                Change(old.key, "runs", None, None, f"{old.key} ran, and does not now: {new.problem}")
            )
            continue
        found += _slower(old, new, slower)
        found += [change for name in ("peak_memory_mib", "size_mib") for change in _larger(old, new, name)]
        found += [change for name in ("dice", "agreement") for change in _lower(old, new, name)]
    return found


def _own(row: Row) -> bool:
    return row.engine.split()[0] == "wetread"


def _slower(old: Row, new: Row, slower: float) -> list[Change]:
    name = "latency_ms_p50"
    before, now = old.figures.get(name), new.figures.get(name)
    upper, lower = old.figures.get("latency_ms_p75"), new.figures.get("latency_ms_p25")
    if before is None or now is None or upper is None or lower is None:
        return []
    if now <= before * slower * (1 + SHARE) or lower <= upper * slower:
        return []
    text = f"{old.key}: {name} {before:g} → {now:g} (+{100 * (now / before - 1):.0f} %)"
    if slower > 1:
        text += f", the peers +{100 * (slower - 1):.0f} %"
    return [Change(old.key, name, before, now, text)]


def _larger(old: Row, new: Row, name: str) -> list[Change]:
    before, now = old.figures.get(name), new.figures.get(name)
    if before is None or now is None or now - before <= max(SHARE * before, LEAST_MIB):
        return []
    return [Change(old.key, name, before, now, f"{old.key}: {name} {before:.0f} → {now:.0f}")]


def _lower(old: Row, new: Row, name: str) -> list[Change]:
    before, now = old.figures.get(name), new.figures.get(name)
    if before is None or now is None or before - now <= LEAST_ACCURACY:
        return []
    return [Change(old.key, name, before, now, f"{old.key}: {name} {before:.4f} → {now:.4f}")]
