"""The tuner keeps the fastest kernel that is right: driven here by a clock that is told what each kernel takes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tests.engines.cuda import programs  # noqa: E402
from wetread.engines.cuda import cache as caches  # noqa: E402
from wetread.engines.cuda.cache import Row, TimingCache, problem_of  # noqa: E402
from wetread.engines.cuda.operations import Target  # noqa: E402
from wetread.engines.cuda.plan import Plan  # noqa: E402
from wetread.engines.cuda.program import Step, TensorSpec, sums_spec  # noqa: E402
from wetread.engines.cuda.trial import Trial, WrongResultError, tolerance  # noqa: E402
from wetread.engines.cuda.tuner import Options, compile_many, step_table, table_text, target, tune  # noqa: E402

pytestmark = pytest.mark.peer
INTERPRETED = Target(interpreted=True)
STAMP = {"gpu": "fake", "driver": "1", "kernels": "a"}
TIMES = {"right": 10.0, "slow": 30.0, "library": 20.0}


class FakeClock:
    """Takes from each kernel the time that it is told; runs it, as a clock must."""

    def __init__(self, affine, times=None):
        self.affine, self.times, self.calls = affine, {**TIMES, **(times or {})}, []

    def time_us(self, launch, limit_us=float("inf")):
        for _ in range(3):
            launch()
        name = self.names.get(id(launch), "library")
        self.calls.append(name)
        return self.times.get(name, 5.0)

    @property
    def names(self):
        return self.affine.launches


@pytest.fixture
def affine(monkeypatch):
    made = programs.install(monkeypatch)
    made.launches, made.kept = {}, []
    original = made.prepare

    def prepare(step, kernel, at):
        run = original(step, kernel, at)
        made.launches[id(run)] = kernel["family"]
        made.kept.append(run)  # an id is only unique among those that live
        return run

    made.prepare = prepare
    return made


def tuned(affine, program=None, *, offered=("right", "slow"), times=None, **more):
    affine.offered = list(offered)
    clock = FakeClock(affine, times)
    lines = []
    options = Options(**{"clock": clock, "log": lines.append, "processes": 0, **more})
    return tune(program or programs.chain((4,)), INTERPRETED, options), clock, "\n".join(lines)


def families(program):
    return [None if step.kernel is None else step.kernel["family"] for step in program.steps]


def test_the_fastest_wins(affine):
    assert families(tuned(affine)[0]) == ["right"]
    assert families(tuned(affine, times={"slow": 3.0})[0]) == ["slow"]


def test_the_library_wins_where_it_is_faster(affine):
    program, _, log = tuned(affine, times={"library": 9.0})
    assert families(program) == [None] and "library" in log
    # not by a hair: its kernels allocate, and change with its version
    assert families(tuned(affine, times={"library": 9.9})[0]) == ["right"]


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("wrong", "rounding explains"),
        ("lazy", "missing"),
        ("moving", "move from run to run"),
        ("outside", "writes where it should not"),
        ("spoils", "writes where it should not"),
        ("crash", "out of resource"),
    ],
)
def test_what_is_not_right_drops_out_however_fast(affine, family, said):
    program = programs.in_place() if family == "outside" else programs.chain((4,), window=(16, 16, 16))
    chosen, _, log = tuned(affine, program, offered=(family, "slow"), times={family: 0.1, "slow": 15.0})
    assert families(chosen) == ["slow"]
    assert said in log


def test_where_none_is_right_the_library_runs(affine, monkeypatch):
    monkeypatch.setattr(type(affine), "library", lambda self, step, at: at.outputs["y"].zero_())
    chosen, _, log = tuned(affine, offered=("wrong",))
    assert families(chosen) == [None]
    assert "no candidate agrees" in log


def test_equal_problems_are_timed_once(affine):
    program = programs.chain((4, 4, 4, 4))
    # factors differ, which no speed depends on; the last step is another problem, since its factor is 1
    program.steps[3] = replace(program.steps[3], attributes={"factor": 1.0})
    chosen, _, _ = tuned(affine, program)
    assert families(chosen) == ["right"] * 4
    assert {name for name, _ in affine.prepared} == {"step0", "step3"}


def test_a_known_problem_is_not_timed_again(affine, tmp_path):
    path = tmp_path / "timings.json"
    first, clock, _ = tuned(affine, cache=TimingCache(path, STAMP))
    assert clock.calls
    again, clock, _ = tuned(affine, cache=TimingCache(path, STAMP))
    assert not clock.calls and families(again) == families(first)
    # another driver, another kernel source, another shape: timed anew
    for changed in ({"driver": "2"}, {"kernels": "b"}):
        assert tuned(affine, cache=TimingCache(path, {**STAMP, **changed}))[1].calls
    other = programs.chain((4,), window=(3, 4, 6))
    assert tuned(affine, other, cache=TimingCache(path, STAMP))[1].calls


def test_a_tuned_plan_reproduces(affine, tmp_path):
    """From the cache, plan and JSON are the same; where times are near each other as well."""
    path = tmp_path / "timings.json"
    times = {"right": 10.0, "slow": 10.2}
    first = tuned(affine, times=times, cache=TimingCache(path, STAMP))[0]
    second = tuned(affine, times={"right": 11.0, "slow": 1.0}, cache=TimingCache(path, STAMP))[0]
    Plan.make(first).save(tmp_path / "a", "p")
    Plan.make(second).save(tmp_path / "b", "p")
    assert (tmp_path / "a/p.plan.json").read_bytes() == (tmp_path / "b/p.plan.json").read_bytes()


def test_hints_restrict_the_candidates(affine, tmp_path):
    path = tmp_path / "timings.json"
    offered = ("right", "slow", "library like")
    tuned(affine, offered=offered, times={"library like": 4.0}, cache=TimingCache(path, STAMP))
    newer = TimingCache(path, {**STAMP, "driver": "2"})
    chosen, clock, _ = tuned(affine, offered=offered, cache=newer, quick=True, hinted=2)
    assert set(clock.calls) == {"library like", "right"} and families(chosen) == ["library like"]
    # another window of the same layer takes them as well, and what is no longer offered is left out
    other = programs.chain((4,), window=(3, 4, 6))
    small = {"offered": ("right", "slow"), "hinted": 2}
    _, clock, _ = tuned(affine, other, cache=TimingCache(path, STAMP), **small)
    assert set(clock.calls) == {"right", "library"}
    # what came with another version's kernels may lack a family: the first of each is timed as well
    _, clock, _ = tuned(affine, other, hints=TimingCache(path, {**STAMP, "kernels": "b"}), **small)
    assert set(clock.calls) == {"right", "slow", "library"}
    _, clock, _ = tuned(affine, other, cache=TimingCache(path, {**STAMP, "kernels": "b"}), hinted=1)
    assert set(clock.calls) == {"right", "slow", "library"}  # old kernels' times are no hints by themselves
    # nor are those of a window far larger
    far = programs.chain((4,), window=(16, 16, 16))
    _, clock, _ = tuned(affine, far, cache=TimingCache(path, STAMP), hinted=1)
    assert set(clock.calls) == {"right", "slow", "library"}
    # nothing is known of it: all are timed
    _, clock, _ = tuned(affine, programs.in_place(), offered=("right", "slow"), hints=newer)
    assert set(clock.calls) == {"right", "slow", "library"}


def test_several_programs_compile_side_by_side(affine, monkeypatch):
    """Each problem once, and what failed there is not run by the tuner."""
    sent = []

    def compile_all(program, jobs, device, processes, log):
        sent.append((len(program.steps), sorted(jobs), processes))
        return {key: "ValueError: no" for key in jobs if "slow" in key}

    monkeypatch.setattr("wetread.engines.cuda.tuner.compile_all", compile_all)
    affine.offered = ["right", "slow"]
    wide, deep = programs.chain((4, 4)), programs.chain((4, 4, 4), window=(4, 4, 4))
    failed = compile_many([wide, deep, wide], INTERPRETED, Options(processes=8), "cpu")
    assert [(steps, len(jobs)) for steps, jobs, _ in sorted(sent)] == [(2, 0), (2, 2), (3, 2)]
    assert sum(count for _, jobs, count in sent if jobs) == 8 and len(failed) == 2
    clock = FakeClock(affine, {"slow": 0.1})
    chosen = tune(wide, INTERPRETED, Options(clock=clock, compiled=failed))
    assert families(chosen) == ["right", "right"] and "slow" not in clock.calls


def test_old_devices_take_the_library_and_time_nothing(affine):
    for old in (Target((7, 5), 65536, 40), Target()):
        program = programs.chain((4, 4))
        program.steps = [step.with_kernel({"family": "right"}) for step in program.steps]
        clock = FakeClock(affine)
        assert families(tune(program, old, Options(clock=clock))) == [None, None]
        assert not clock.calls


def test_the_target_here():
    assert target("cpu").capability == (0, 0)


def test_step_table(affine):
    program = tuned(affine, programs.chain((4, 4)))[0]
    rows = step_table(Plan.make(program), FakeClock(affine), "cpu")
    assert [(row.name, row.kernel, row.us) for row in rows] == [
        ("step0", "right", 10.0),
        ("step1", "right", 10.0),
    ]
    text = table_text(rows)
    assert "step1" in text and text.splitlines()[-1].split()[:2] == ["sum", "20.0"]


def test_a_damaged_cache_is_empty(tmp_path):
    path = tmp_path / "timings.json"
    step, program = programs.chain((4,)).steps[0], programs.chain((4,))
    made = TimingCache(path, STAMP)
    made.put(problem_of(step, program), [Row({"family": "right"}, 1.0)])
    assert TimingCache(path, STAMP).get(problem_of(step, program)) == [Row({"family": "right"}, 1.0)]
    data = path.read_bytes()
    for broken in (data[: len(data) // 2], b"[]", b'{"format": 1, "entries": {"a": {}}}',
                   data.replace(b'"format": 1', b'"format": 9')):  # fmt: skip
        path.write_bytes(broken)
        assert TimingCache(path, STAMP).entries == {}


def test_processes_add_to_one_cache(tmp_path):
    path = tmp_path / "timings.json"
    one, two = TimingCache(path, STAMP), TimingCache(path, STAMP)  # both read before either writes
    a, b = programs.chain((4,)), programs.chain((4,), window=(2, 2, 2))
    one.put(problem_of(a.steps[0], a), [Row(None, 1.0)])
    two.put(problem_of(b.steps[0], b), [Row(None, 2.0)])
    both = TimingCache(path, STAMP)
    assert both.get(problem_of(a.steps[0], a)) and both.get(problem_of(b.steps[0], b))
    assert json.loads(path.read_text())["format"] == caches.FORMAT


def test_stamp_names_what_timings_depend_on():
    assert set(caches.stamp("cpu")) == {"gpu", "driver", "cuda", "torch", "triton", "kernels"}
    assert caches.stamp("cpu")["torch"] == torch.__version__


def test_tolerances_go_by_the_types_that_take_part():
    program = programs.chain((4,))
    program.precision = "float16"
    step = program.steps[0]
    assert tolerance(step, program, "y").relative == 2e-3
    eight = replace(program.tensors["x"], dtype="int8")
    program.tensors["x"] = eight
    program.weights["w8"] = torch.zeros(4, 4, 1, 1, 1, dtype=torch.int8)
    conv = Step("c", "conv", {"x": "x", "weight": "w8"}, {"y": "t0"}, {})
    assert tolerance(conv, program, "y").relative == 2e-3  # exact products, rounded to float16
    program.tensors["x"] = replace(eight, dtype="float16")
    made_on_load = tolerance(conv, program, "y")
    assert made_on_load.relative == 1.5e-2
    for kind, allowed in (
        ("int8", 2e-3),
        ("float8_e4m3fn", 5e-3),
    ):  # sums of products: exact, and added with 14 bits
        program.tensors["x"] = replace(eight, dtype=kind)
        program.tensors["own"] = sums_spec(2, 4)
        added = Step("s", "conv", {"x": "x", "weight": "w8"}, {"y": "t0", "sums": "own"}, {})
        assert tolerance(added, program, "sums").relative == allowed
        assert tolerance(added, program, "y").relative == allowed
    program.precision = "float32"
    for name in ("x", "t0"):
        program.tensors[name] = replace(eight, dtype="float32")
    assert tolerance(step, program, "y").relative == 2e-3  # its bias is float16
    program.weights["w0"] = program.weights["w0"].float()
    assert tolerance(step, program, "y").relative == 2e-5


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float8_e4m3fn", "float32", "bfloat16", "float16"])
def test_trials_fill_every_type(affine, dtype):
    program = programs.chain((4,), window=(8, 8, 8))
    for name in ("x", "t0"):
        program.tensors[name] = replace(program.tensors[name], dtype=dtype)
    program.steps[0] = replace(program.steps[0], attributes={"factor": 0.5})
    trial = Trial(program.steps[0], program, "cpu")
    trial.learn()
    x = trial.arrays(None).inputs["x"].float()
    assert float(x.std()) > 0.3 and bool(torch.isfinite(x).all())
    trial.launcher({"family": "right"})()
    assert trial.compare() == 0.0
    trial.reset()
    with pytest.raises(WrongResultError):
        trial.compare()  # nothing was written


def test_sums_are_those_of_their_tensor_and_are_compared(affine, monkeypatch):
    program = programs.chain((4,), window=(8, 8, 8))
    program.tensors["sums"] = sums_spec(2, 4)
    program.tensors["own"] = sums_spec(2, 4)
    step = program.steps[0]
    step = Step(
        step.name, step.op, {**step.inputs, "sums": "sums"}, {**step.outputs, "sums": "own"}, {"factor": 2.0}
    )
    program.steps[0] = step

    def reference(self, step, at, off=0.0):
        x = at.inputs["x"].double().flatten(2)
        held = at.inputs["sums"].sum(0)
        torch.testing.assert_close(held[..., 0], x.sum(2))
        torch.testing.assert_close(held[..., 1], x.square().sum(2))
        at.outputs["y"].copy_(at.inputs["x"] * 2)
        at.outputs["sums"][3] += torch.stack((2 * x.sum(2), 4 * x.square().sum(2)), -1) * (1 + off)

    monkeypatch.setattr(type(affine), "reference", reference)
    trial = Trial(step, program, "cpu")
    trial.learn()
    trial.launcher(None)()
    assert trial.compare() < 1e-9
    trial.reset()
    reference(affine, step, trial.arrays(None), off=0.01)
    with pytest.raises(WrongResultError, match="sums are off"):
        trial.compare()


def test_problems_tell_layouts_apart():
    program = programs.in_place()
    step = program.steps[0]
    alone = problem_of(step, program)
    program.tensors["first"] = TensorSpec(
        program.tensors["first"].shape, "float16", program.tensors["y"].strides, "y", 4
    )
    assert problem_of(step, program) != alone
