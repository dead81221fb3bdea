"""A plan comes back from disk as it was, shares weights with others, and is refused when it is damaged."""

from __future__ import annotations

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from tests.engines.cuda import programs  # noqa: E402
from wetread.engines.cuda.execute import run_reference  # noqa: E402
from wetread.engines.cuda.operations import Packs  # noqa: E402
from wetread.engines.cuda.plan import Plan  # noqa: E402
from wetread.engines.cuda.program import Step  # noqa: E402
from wetread.errors import EngineError  # noqa: E402

pytestmark = pytest.mark.peer


@pytest.fixture(autouse=True)
def affine(monkeypatch):
    return programs.install(monkeypatch)


def tuned(**more):
    program = programs.chain(**more)
    program.steps = [step.with_kernel({"family": "right", "tile": [1, 2]}) for step in program.steps]
    return program


def run(plan, inputs):
    memory = plan.arena("cpu")
    memory[plan.placement.once[1] :] = 255  # poison: not a number in every floating type
    tensors = plan.tensors(memory, plan.program.weights)
    launches = plan.launchers(tensors, memory, Packs())
    plan.zero(memory)
    for name, value in inputs.items():
        tensors[name].copy_(value)
    for launch in launches:
        launch()
    return {name: tensors[name].clone() for name in plan.program.outputs}


def test_comes_back_as_it_was(tmp_path):
    made = Plan.make(tuned(), {"gpu": "none", "batch": 2})
    made.save(tmp_path, "b2")
    read = Plan.load(tmp_path, "b2")
    assert read.program.steps == [Step(s.name, s.op, s.inputs, s.outputs, s.attributes, s.nodes, s.kernel)
                                  for s in made.program.steps]  # fmt: skip
    assert read.program.tensors == made.program.tensors
    assert read.placement == made.placement
    assert read.provenance == {"gpu": "none", "batch": 2}
    for name, weight in made.program.weights.items():
        assert torch.equal(read.program.weights[name], weight)


def test_gives_what_the_program_gives(tmp_path):
    program = tuned()
    inputs = programs.random_inputs(program)
    Plan.make(program).save(tmp_path, "p")
    found = run(Plan.load(tmp_path, "p"), inputs)
    wanted = run_reference(program, inputs)
    for name in program.outputs:
        assert torch.equal(found[name], wanted[name])  # the same arithmetic: equal bits


@pytest.mark.parametrize(
    "damage", ["cut", "changed", "weights cut", "weights changed", "weights gone", "format"]
)
def test_damage_is_refused(tmp_path, damage):
    path = Plan.make(tuned()).save(tmp_path, "p")
    weights = next(tmp_path.glob("weights-*"))
    data, stored = path.read_bytes(), bytearray(weights.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        path.write_bytes(data.replace(b'"factor": 1.5', b'"factor": 1.25'))
    elif damage == "weights cut":
        weights.write_bytes(stored[:-2])
    elif damage == "weights changed":
        stored[-1] ^= 1
        weights.write_bytes(stored)
    elif damage == "weights gone":
        weights.unlink()
    else:
        path.write_bytes(data.replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(EngineError) as caught:
        Plan.load(tmp_path, "p")
    assert str(tmp_path) in caught.value.where and caught.value.todo
    assert ("format 2" in caught.value.what) == (damage == "format")


def test_plans_of_a_network_share_weights_files(tmp_path):
    one, four = tuned(batch=1), tuned(batch=4)
    more = tuned(lengths=(4, 4, 4, 4))
    Plan.make(one).save(tmp_path, "b1")
    first = {p.name: p.stat().st_size for p in tmp_path.glob("weights-*")}
    Plan.make(four).save(tmp_path, "b4")
    assert {p.name for p in tmp_path.glob("weights-*")} == set(first)
    Plan.make(more).save(tmp_path, "longer")  # one weight more: a second file with that alone
    assert len(list(tmp_path.glob("weights-*"))) == 2
    shared = {}
    plans_read = [Plan.load(tmp_path, name, shared) for name in ("b1", "b4", "longer")]
    for name in one.weights:
        assert len({id(p.program.weights[name]) for p in plans_read}) == 1
    assert torch.equal(plans_read[2].program.weights["w3"], more.weights["w3"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int8", "uint8", "int64", "bool",
                                   "float8_e4m3fn"])  # fmt: skip
def test_every_type_of_weight(tmp_path, dtype):
    program = tuned()
    values = torch.randn(3, 4, 5) * 50
    program.weights["extra"] = values.to(getattr(torch, dtype)).permute(2, 0, 1)  # strides are kept as well
    program.weights["one"] = torch.tensor(3).to(getattr(torch, dtype))
    Plan.make(program).save(tmp_path, "p")
    read = Plan.load(tmp_path, "p").program.weights
    for name in ("extra", "one"):
        a, b = program.weights[name], read[name]
        assert a.dtype == b.dtype and a.stride() == b.stride()
        assert torch.equal(a.float(), b.float())


def test_loads_without_onnx(tmp_path):
    """No module of onnx is imported on the way to a plan that runs."""
    Plan.make(tuned()).save(tmp_path, "p")
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('onnx', 'onnx_ir', 'onnxscript'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from wetread.engines.cuda.plan import Plan\n"
        f"plan = Plan.load({str(tmp_path)!r}, 'p')\n"
        "print(len(plan.program.steps), plan.bytes)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "3"


def test_names_and_attributes_are_checked(tmp_path):
    made = Plan.make(tuned())
    with pytest.raises(EngineError, match="no name"):
        made.save(tmp_path, "../p")
    program = tuned()
    program.steps[0] = Step("s", "affine", *list(vars(program.steps[0]).values())[2:4], {"factor": {1, 2}})
    with pytest.raises(EngineError, match="plain data"):
        Plan.make(program).save(tmp_path, "p")


def test_a_small_arena_is_refused():
    made = Plan.make(tuned())
    with pytest.raises(EngineError, match="arena"):
        made.tensors(torch.empty(made.bytes - 1, dtype=torch.uint8), made.program.weights)
