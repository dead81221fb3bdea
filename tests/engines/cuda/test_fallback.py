"""Every operator of the torch step against all of ONNX's own node tests for it, and without a look at the device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from tests.engines.cuda.node_tests import absent_type, cases, check, check_captured, steps_of  # noqa: E402
from tests.kernels.reference import DEVICE  # noqa: E402
from wetread.engines.cuda.lower.listing import markdown  # noqa: E402
from wetread.engines.cuda.operations import operation  # noqa: E402
from wetread.engines.cuda.operations.fallback import OPERATORS  # noqa: E402
from wetread.engines.cuda.operations.fallback.registry import Call  # noqa: E402

pytestmark = pytest.mark.peer


def of(name):
    """Cases that must pass: all but those of types that torch has not, and those the operator names."""
    return [c for c in cases()[name] if not absent_type(c) and c.name not in OPERATORS[name].named]


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_node_tests(name):
    assert of(name), f"ONNX has no node test of {name}: it cannot be listed"
    for case in of(name):
        try:
            for library in (False, True):
                check(case, library)
        except Exception as error:
            raise AssertionError(f"{case.name}: {error}") from error


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU (WETREAD_TEST_DEVICE=cuda)")
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_node_tests_in_a_cuda_graph(name):
    for case in of(name):
        try:
            check_captured(case)
        except Exception as error:
            raise AssertionError(f"{case.name}: {error}") from error


def test_named_cases_exist_and_say_why():
    for name, operator in OPERATORS.items():
        known = {case.name for case in cases()[name]}
        assert set(operator.named) <= known, name
        assert all(operator.named.values())


def test_only_types_are_left_out():
    """What is not run at all holds types that torch has not; the list says so."""
    left = {absent_type(c) for name in OPERATORS for c in cases()[name]} - {""}
    assert left <= {"string", "sequence", "optional", "float4_e2m1fn", "int4", "uint4", "int2", "uint2"}


class NoHost(TorchDispatchMode):
    """Refuses what a CUDA graph cannot hold: values read by the host, and copies from its memory."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        assert "_local_scalar_dense" not in name and "nonzero" not in name and "unique" not in name, name
        if "_to_copy" in name or "copy_" in name:
            devices = {a.device.type for a in args if isinstance(a, torch.Tensor) and a.numel() > 0}
            devices |= {
                torch.device(v).type for k, v in (kwargs or {}).items() if k == "device" and v is not None
            }
            assert len(devices) < 2, f"{name} between {devices}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_nothing_hangs_on_values_of_the_device(name):
    """Run on tensors without values, after a first run has made what is kept for the engine."""
    for case in of(name):
        for step, at, _ in steps_of(case, "meta"):
            operation("torch").library(step, at)
            with NoHost():
                operation("torch").library(step, at)


def test_the_list_of_operators_is_that_of_the_code():
    page = Path(__file__).resolve().parents[3] / "docs" / "cuda-operators.md"
    assert page.read_text() == markdown(), (
        "run python -m wetread.engines.cuda.lower.listing > docs/cuda-operators.md"
    )


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_of_older_operator_sets(name):
    """Up to 12 they run over all axes from one on, as if these were one; the default is the second."""
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    call = Call(name, {}, 12)
    expected = {"Softmax": x.flatten(1).softmax(1), "LogSoftmax": x.flatten(1).log_softmax(1)}
    hard = torch.nn.functional.one_hot(x.flatten(1).argmax(1), 20).float()
    torch.testing.assert_close(OPERATORS[name].run(call, x), expected.get(name, hard).reshape(x.shape))


def test_uint64_beyond_int64():
    """Torch computes with no uint64: they are held as int64, and compared and divided as what they are."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2**64, 1000, np.uint64, endpoint=False) for _ in range(2))
    b[::3] >>= np.uint64(40)
    x, y = (torch.from_numpy(v).view(torch.int64) for v in (a, b))
    for name, expected in {
        "Less": a < b, "GreaterOrEqual": a >= b, "Max": np.maximum(a, b), "Min": np.minimum(a, b), "Div": a // b,
        "Mod": a % b, "Add": a + b, "Mul": a * b,
    }.items():  # fmt: skip
        found = OPERATORS[name].run(Call(name, {}, 20, unsigned=True), x, y)
        found = found.numpy() if found.dtype == torch.bool else found.numpy().view(np.uint64)
        assert np.array_equal(found, expected), name
