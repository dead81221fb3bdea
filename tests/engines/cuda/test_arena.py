"""Every storage has its place: nothing that lives together overlaps, zeroed tensors lie side by side."""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch")

from tests.engines.cuda import programs  # noqa: E402
from wetread.engines.cuda import arena  # noqa: E402
from wetread.engines.cuda.arena import ALIGNMENT, Block, live_bytes, pack, place  # noqa: E402
from wetread.engines.cuda.program import Step, sums_spec  # noqa: E402

pytestmark = pytest.mark.peer


@pytest.fixture(autouse=True)
def affine(monkeypatch):
    return programs.install(monkeypatch)


def check(blocks, offsets, size):
    for i, a in enumerate(blocks):
        assert offsets[a.name] >= 0 and offsets[a.name] + a.bytes <= size
        for b in blocks[:i]:
            apart = (
                offsets[a.name] + a.bytes <= offsets[b.name] or offsets[b.name] + b.bytes <= offsets[a.name]
            )
            assert apart or not a.meets(b), (a, b)


@pytest.mark.parametrize("seed", range(20))
def test_random_lives_never_overlap(seed):
    rng = random.Random(seed)
    blocks = []
    for i in range(60):
        first = rng.randrange(40)
        size = rng.choice([1, 1, 2, 8, 64]) * ALIGNMENT
        blocks.append(Block(str(i), size, first, min(39, first + rng.choice([0, 1, 2, 20]))))
    offsets, size = pack(blocks)
    check(blocks, offsets, size)
    assert live_bytes(blocks) <= size <= 1.25 * live_bytes(blocks)


def test_a_chain_needs_two_tensors():
    """Each tensor dies when the next is made: two live at once, however long the chain is."""
    blocks = [Block(str(i), 4096, i - 1, i) for i in range(1, 30)]
    assert pack(blocks)[1] == 2 * 4096


def test_skips_of_a_unet_take_no_more_than_their_floor():
    """Levels of falling size whose tensors live until the way up: the smallest arena is found."""
    sizes = [1024 >> i for i in range(5)]
    blocks, at = [], 0
    for i, size in enumerate(sizes):
        blocks += [
            Block(f"a{i}", size * 512, at, at + 1),
            Block(f"skip{i}", size * 512, at + 1, 20 - 2 * i),
            Block(f"down{i}", size * 64, at + 1, at + 2),
        ]
        at += 2
    offsets, size = pack(blocks)
    check(blocks, offsets, size)
    assert size == live_bytes(blocks)


def sums_program():
    program = programs.chain((4, 4, 4))
    for i in (0, 2):
        program.tensors[f"sums{i}"] = sums_spec(2, 4)
        step = program.steps[i]
        program.steps[i] = Step(
            step.name, step.op, step.inputs, {**step.outputs, "sums": f"sums{i}"}, step.attributes
        )
    bordered = programs.maps((2, 4, 5, 6, 7), zeroed=True)
    program.tensors["bordered"] = bordered
    inner = programs.maps((2, 4, 3, 4, 5), base="bordered", offset=bordered.strides[2])
    program.tensors["x"] = type(inner)(
        inner.shape, inner.dtype, bordered.strides, "bordered", sum(bordered.strides[2:])
    )
    return program


def test_zeroed_tensors_lie_side_by_side():
    program = sums_program()
    found = place(program)
    size = program.tensors["sums0"].bytes
    start, end = found.zeroed
    assert sorted(found.offsets[f"sums{i}"] for i in (0, 2)) == [
        start,
        start + -(-size // ALIGNMENT) * ALIGNMENT,
    ]
    assert end - start == 2 * -(-size // ALIGNMENT) * ALIGNMENT
    low, high = found.once
    assert low == end and found.offsets["bordered"] == low
    assert high - low >= program.tensors["bordered"].bytes
    others = [at for name, at in found.offsets.items() if name not in ("sums0", "sums2", "bordered")]
    assert min(others) >= high  # nothing shares what must stay zero
    assert all(at % ALIGNMENT == 0 for at in found.offsets.values())
    assert found.floor <= found.bytes


def test_scratch_lives_during_its_step():
    program = programs.chain((4, 4, 4))
    program.steps[1] = program.steps[1].with_kernel({"family": "right"})
    found = place(program)
    at, size = found.scratch["step1"]
    assert size == programs.SCRATCH and list(found.scratch) == ["step1"]
    for name in (*program.steps[1].inputs.values(), *program.steps[1].outputs.values()):
        if name in found.offsets:
            start, end = found.offsets[name], found.offsets[name] + program.tensors[name].bytes
            assert at + size <= start or at >= end


def test_json_and_back():
    found = place(sums_program())
    assert arena.Placement.from_json(found.to_json()) == found
