"""ONNX's own node tests as torch steps: the cases of each operator, run as lowering would run them."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from functools import cache

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from wetread.engines.cuda.lower.torch_step import describe
from wetread.engines.cuda.operations import Arrays, operation
from wetread.engines.cuda.program import Step
from wetread.graph.plain import operation_of

ABSENT = ("int4", "uint4", "int2", "uint2", "float4_e2m1fn", "object", "str")
"""Element types that torch has not."""


@cache
def cases():
    """Cases of one node of the standard domain, by operator."""
    found = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in collect_testcases(None):
            nodes = case.model.graph.node
            if len(nodes) == 1 and nodes[0].domain in ("", "ai.onnx"):
                found[nodes[0].op_type].append(case)
    return dict(found)


def absent_type(case):
    """Name of a type of the case that torch has not, or what else it holds besides tensors; empty where all is well."""
    graph = case.model.graph
    for value in (*graph.input, *graph.output):
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            return kind.removesuffix("_type")
        name = str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name)
        if value.type.tensor_type.elem_type == onnx.TensorProto.STRING or name.startswith(ABSENT):
            return "string" if value.type.tensor_type.elem_type == onnx.TensorProto.STRING else name
    return ""


def to_array(value):
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def to_torch(array):
    name = array.dtype.name
    if array.dtype.kind == "V" or name.startswith(("bfloat16", "float8")):
        width = {1: np.uint8, 2: np.uint16}[array.dtype.itemsize]
        raw = torch.from_numpy(np.array(array, order="C").view(width).reshape(array.shape).copy())
        return raw.view(getattr(torch, name))
    return torch.from_numpy(np.array(array, order="C"))


def steps_of(case, device="cpu"):
    """For each data set: the step, its arrays on a device (outputs poisoned), and the expected outputs by role."""
    model = case.model
    node = operation_of(model.graph.node[0])
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    for inputs, outputs in case.data_sets:
        names = [value.name for value in model.graph.input]
        values = dict(zip(names, (to_array(v) for v in inputs), strict=True))
        attributes, roles = describe(node, opset, values.get)
        attributes = json.loads(json.dumps(attributes))  # as a plan holds them
        expected = dict(
            zip([v.name for v in model.graph.output], (to_array(v) for v in outputs), strict=True)
        )
        given = {role: to_torch(values[name]).to(device) for role, name in roles.items()}
        places = {str(i): expected[name] for i, name in enumerate(node.outputs) if name in expected}
        made = {}
        for role, array in places.items():
            y = torch.empty_like(to_torch(array), device=device)
            made[role] = y.fill_(torch.nan) if y.dtype in (torch.float32, torch.float64, torch.float16) else y
        step = Step(case.name, "torch", {r: r for r in given}, {r: r for r in made}, attributes)
        yield step, Arrays(given, made), places


def compare(case, step, at, expected):
    """Outputs against what the case expects, to its tolerance."""
    for role, array in expected.items():
        want, got = to_torch(array), at.outputs[role].cpu()
        assert got.shape == want.shape, f"{step.name}: {tuple(got.shape)}"
        if want.dtype.is_floating_point:
            rtol = max(case.rtol, 2**-6) if want.dtype == torch.bfloat16 else case.rtol
            torch.testing.assert_close(got.double(), want.double(), rtol=rtol, atol=case.atol, equal_nan=True)
        else:
            assert torch.equal(got, want), (got, want)


def check(case, library=False):
    """Runs a case and compares."""
    for step, at, expected in steps_of(case):
        run = operation("torch")
        (run.library if library else run.reference)(step, at)
        compare(case, step, at, expected)


def check_captured(case):
    """Runs a case on the GPU as a CUDA graph, after a first run outside of it, and compares."""
    for step, at, expected in steps_of(case, "cuda"):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            operation("torch").library(step, at)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            operation("torch").library(step, at)
        for y in at.outputs.values():
            y.view(torch.uint8).fill_(0xFF) if y.numel() and y.ndim else y.zero_()
        graph.replay()
        torch.cuda.synchronize()
        compare(case, step, at, expected)
