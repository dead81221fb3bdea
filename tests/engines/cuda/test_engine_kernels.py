"""Whole networks by wetread's own kernels: interpreted on the processor, compiled with WETREAD_TEST_DEVICE=cuda."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from tests import networks
from tests.engines.contract import images
from wetread.engines.cuda.device import Device
from wetread.engines.cuda.executable import Executable
from wetread.engines.cuda.execute import run_reference
from wetread.engines.cuda.lower import lower
from wetread.engines.cuda.operations import Target, operation
from wetread.engines.cuda.plan import Plan
from wetread.engines.cuda.program import Program
from wetread.engines.cuda.store import Store
from wetread.graph import Graph

pytestmark = pytest.mark.peer

DEVICE = os.environ.get("WETREAD_TEST_DEVICE", "cpu")
INTERPRETED = Target((0, 0), 232_448, 132, interpreted=True)


def own(program: Program, target: Target) -> Program:
    """Each step by the kernel that is the likeliest to win; the library where there is none."""
    steps = []
    for step in program.steps:
        kernels = operation(step.op).kernels(step, program, target)
        steps.append(step.with_kernel(kernels[0] if kernels else None))
    return replace(program, steps=steps)


def run(program: Program, device: Device, x: np.ndarray) -> np.ndarray:
    plan = Plan.make(program)
    with Executable(plan, Store(device.torch), device) as executable:
        executable.tensors[program.inputs[0]].zero_()
        executable.capture()
        executable.arena.fill_(255)  # NaN wherever a kernel reads what nothing wrote
        plan.zero_once(executable.arena)
        with executable.current():
            executable.tensors[program.inputs[0]].copy_(torch.from_numpy(x))
            executable.run()
            found = executable.tensors[program.outputs[0]].float().cpu().numpy()
    return found


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize(
    ("model", "precision", "tolerance"),
    [
        (networks.unet((1, 3), (16, 32)), "float16", 2e-3),
        (networks.int8_chain(), "int8", 2e-2),
    ],
    ids=["unet", "int8"],
)
def test_a_network_by_own_kernels(model: onnx.ModelProto, precision: str, tolerance: float) -> None:
    """Rounded where the reference rounds, so that a few roundings fall to the other side: no more.

    Of 8-bit values one that falls to the other side is off by a step, 1/127 of the range.
    """
    device = Device.open(DEVICE)
    target = INTERPRETED if DEVICE == "cpu" else device.target
    program = own(lower(Graph(model), (8, 8, 16), 1, precision), target)
    families = {step.kernel["family"] for step in program.steps if step.kernel is not None}
    assert families, [step.op for step in program.steps]
    x = images(1, 1, (8, 8, 16))
    expected = run_reference(program, {"image": torch.from_numpy(x)})[program.outputs[0]].float().numpy()
    found = run(program, device, x)
    assert np.isfinite(found).all()
    assert distance(found, expected) < tolerance
    graph = Graph(model).evaluate({"image": x})["logits"]
    assert distance(found, graph) < 3e-2  # what the precision costs against float64, over nine layers
