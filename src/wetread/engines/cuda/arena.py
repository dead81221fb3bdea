"""Memory of a plan: one arena in which every storage has a fixed place, and storages that never live together share.

Offsets are found greedily (largest first, into the tightest gap; Pisarchyk and Lee, "Efficient memory management
for deep neural net inference", 2020) in several orders, of which the smallest arena is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from wetread.engines.cuda.operations import operation
from wetread.engines.cuda.program import Program
from wetread.errors import EngineError

ALIGNMENT = 512
"""Bytes; what copies by descriptor and cuDNN want of a tensor's address."""


@dataclass(frozen=True)
class Placement:
    """Where everything lies in an arena, in bytes.

    Attributes:
        bytes: size of the arena; the peak, since nothing is allocated beside it.
        floor: most bytes that live at once; no placement is smaller.
        offsets: of each storage (the tensors without a base) that a step, an input or an output touches.
        scratch: offset and size of the scratch of each step that has one.
        zeroed: start and end of what must be zero before every run (sums); one memset.
        once: start and end of what must be zero before the first run, and stays so, since steps and inputs write
            only between the zeros (bordered volumes); again when another plan has used the arena.
    """

    bytes: int
    floor: int
    offsets: Mapping[str, int] = field(default_factory=dict)
    scratch: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    zeroed: tuple[int, int] = (0, 0)
    once: tuple[int, int] = (0, 0)

    def storage(self, program: Program, name: str, arena: torch.Tensor) -> torch.Tensor:
        """The bytes of a tensor's storage in an arena, flat uint8."""
        base = program.base(name)
        start = self.offsets[base]
        return arena[start : start + program.tensors[base].bytes]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "bytes": self.bytes, "floor": self.floor, "offsets": dict(self.offsets),
            "scratch": {name: list(each) for name, each in self.scratch.items()},
            "zeroed": list(self.zeroed), "once": list(self.once),
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Placement:
        """From `to_json`."""
        scratch = {name: (int(a), int(b)) for name, (a, b) in data["scratch"].items()}
        zeroed, once = ((int(a), int(b)) for a, b in (data["zeroed"], data["once"]))
        return cls(int(data["bytes"]), int(data["floor"]), dict(data["offsets"]), scratch, zeroed, once)


@dataclass(frozen=True)
class Block:
    """Bytes that live from one step to another, both included."""

    name: str
    bytes: int
    first: int
    last: int

    def meets(self, other: Block) -> bool:
        """Whether both live during some step."""
        return self.first <= other.last and other.first <= self.last


def place(program: Program) -> Placement:
    """Finds a place for every storage and every scratch of a program.

    Storages that steps add to (written in the role ``sums``) lie side by side at the start, then those that stay
    zero where nothing is written; both keep their place for the whole run.

    Raises:
        EngineError: a step's scratch is not known.
    """
    lives = program.lifetimes()
    added = {
        program.base(name)
        for step in program.steps
        for role, name in step.outputs.items()
        if role == "sums" and program.tensors[program.base(name)].zeroed
    }
    kept = [name for name in lives if program.tensors[name].zeroed and name not in added]
    offsets: dict[str, int] = {}
    zeroed = _side_by_side(program, [name for name in lives if name in added], 0, offsets)
    once = _side_by_side(program, kept, zeroed[1], offsets)
    blocks = [
        Block(name, _aligned(program.tensors[name].bytes), first, last)
        for name, (first, last) in lives.items()
        if name not in offsets
    ]
    wanted = {}
    for i, step in enumerate(program.steps):
        size = operation(step.op).scratch_bytes(step, program, step.kernel)
        if size < 0:
            raise EngineError(f"its operation asks for {size} bytes of scratch", where=step.name)
        if size:
            wanted[step.name] = size
            blocks.append(Block(_SCRATCH + step.name, _aligned(size), i, i))
    found, size = pack(blocks)
    start = once[1]
    offsets |= {name: start + at for name, at in found.items() if not name.startswith(_SCRATCH)}
    scratch = {name: (start + found[_SCRATCH + name], size) for name, size in wanted.items()}
    return Placement(start + size, start + live_bytes(blocks), offsets, scratch, zeroed, once)


_SCRATCH = "\0scratch of "


def _aligned(size: int) -> int:
    return -(-max(size, 1) // ALIGNMENT) * ALIGNMENT


def _side_by_side(
    program: Program, names: Sequence[str], start: int, offsets: dict[str, int]
) -> tuple[int, int]:
    at = start
    for name in names:
        offsets[name] = at
        at += _aligned(program.tensors[name].bytes)
    return start, at


def live_bytes(blocks: Sequence[Block]) -> int:
    """Most bytes that live during one step."""
    return max((sum(b.bytes for b in blocks if b.first <= at <= b.last) for at in {b.first for b in blocks}),
               default=0)  # fmt: skip


def pack(blocks: Sequence[Block]) -> tuple[dict[str, int], int]:
    """Offsets of blocks so that none that live together overlap, and the bytes that this takes."""
    orders: tuple[Callable[[Block], Any], ...] = (
        lambda b: (-b.bytes, b.first),
        lambda b: (-b.bytes * (b.last - b.first + 1), b.first),
        lambda b: (b.first, -b.bytes),
        lambda b: (-b.last + b.first, -b.bytes),
    )
    tried = [_greedy(sorted(blocks, key=order)) for order in orders]
    tried.append(_greedy(_by_breadth(blocks)))
    return min(tried, key=lambda found: found[1])


def _by_breadth(blocks: Sequence[Block]) -> list[Block]:
    """The steps at which most bytes live come first, and of each its largest blocks."""
    steps = {b.first for b in blocks}
    weight = {at: sum(b.bytes for b in blocks if b.first <= at <= b.last) for at in steps}
    order: dict[str, Block] = {}
    for at in sorted(steps, key=lambda at: -weight[at]):
        alive = [b for b in blocks if b.first <= at <= b.last]
        order.update({b.name: b for b in sorted(alive, key=lambda b: -b.bytes) if b.name not in order})
    return list(order.values())


def _greedy(order: Sequence[Block]) -> tuple[dict[str, int], int]:
    placed: list[tuple[int, Block]] = []
    offsets: dict[str, int] = {}
    for block in order:
        at = _tightest(block.bytes, sorted((o, o + p.bytes) for o, p in placed if p.meets(block)))
        offsets[block.name] = at
        placed.append((at, block))
    return offsets, max((at + b.bytes for at, b in placed), default=0)


def _tightest(size: int, taken: Sequence[tuple[int, int]]) -> int:
    """Start of the smallest gap between taken ranges that is large enough; behind all of them if there is none."""
    best, spare, end = -1, 0, 0
    for start, stop in taken:
        gap = start - end
        if gap >= size and (best < 0 or gap < spare):
            best, spare = end, gap
        end = max(end, stop)
    return end if best < 0 else best
