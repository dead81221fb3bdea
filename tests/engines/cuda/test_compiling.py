"""Workers that compile: what fails, dies or hangs there drops out, and the rest is done all the same."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from tests.engines.cuda import crew as bad  # noqa: E402
from tests.engines.cuda import programs  # noqa: E402
from wetread.engines.cuda.compiling import Crew, Job, compile_all, run_all  # noqa: E402
from wetread.engines.cuda.program import Step  # noqa: E402

pytestmark = pytest.mark.peer


def test_all_jobs_are_done_whatever_happens_to_workers(tmp_path):
    whats = ["", "raise", "", "die", "", "lost", "", "hang", ""]
    jobs = [Job(f"j{i}", f"j{i} {what}".strip()) for i, what in enumerate(whats)]
    failed = run_all(jobs, Crew(bad.start, bad.task, (str(tmp_path),), bad.lost), 2, timeout_s=2.0)
    assert {key: text.split(":")[0] for key, text in failed.items()} == {
        "j1": "ValueError", "j3": "its process died (exit code 7)", "j5": "RuntimeError",
        "j7": "took longer than 2 s",
    }  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["j0", "j2", "j4", "j6", "j8"]


def test_a_worker_goes_on_after_a_failure_that_is_none_of_its_own(tmp_path):
    jobs = [Job("a", "a raise"), Job("b", "b"), Job("c", "c")]
    (tmp_path / "never lost").touch()
    failed = run_all(jobs, Crew(bad.start, bad.task, (str(tmp_path),), bad.lost), 1)
    assert set(failed) == {"a"}
    assert (tmp_path / "b").read_text() == (tmp_path / "c").read_text()  # one process


def test_workers_that_cannot_start(tmp_path):
    failed = run_all([Job("a", "a"), Job("b", "b")], Crew(bad.start_badly, bad.task, (str(tmp_path),)), 2)
    assert set(failed) >= {"a", "b"}


def test_nothing_to_do(tmp_path):
    assert run_all([], Crew(bad.start, bad.task, (str(tmp_path),)), 4) == {}


def test_steps_travel_to_workers():
    """A step's program goes there as a plan on disk; what does not run there is told by its key."""
    program = programs.chain((4,))
    program.steps = [Step("copied", "copy", {"x": "x"}, {"y": "t0"}, {})]
    lines = []
    jobs = {"a": ("copied", None), "b": ("copied", {"family": "none such"})}
    failed = compile_all(program, jobs, torch.device("cpu"), 1, lines.append)
    assert set(failed) == {"b"} and "no kernel of its own" in failed["b"]
    assert "copied: drops out: none such" in "".join(lines)


def test_no_processes_no_workers():
    assert compile_all(programs.chain((4,)), {"a": ("x", None)}, torch.device("cpu"), 0, print) == {}


def test_kernels_are_compiled_later_where_no_worker_starts(monkeypatch):
    """Nothing drops out that was never tried."""
    monkeypatch.setattr("wetread.engines.cuda.compiling._start", bad.start_badly)
    lines = []
    program = programs.chain((4,))
    program.steps = [Step("copied", "copy", {"x": "x"}, {"y": "t0"}, {})]
    jobs = {"a": ("copied", {"family": "none such"})}
    assert compile_all(program, jobs, torch.device("cpu"), 1, lines.append) == {}
    assert "a worker could not be started" in lines[0]


def test_a_script_needs_no_guard(tmp_path):
    """Workers do not run the script's top level once more."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""
from pathlib import Path
from tests.engines.cuda import crew
from wetread.engines.cuda.compiling import Crew, Job, run_all
with open({str(tmp_path / "runs")!r}, "a") as file:
    file.write("run ")
folder = Path({str(tmp_path)!r})
failed = run_all([Job("a", "a"), Job("b", "b")], Crew(crew.start, crew.task, (str(folder),)), 2)
assert not failed, failed
import __main__
assert __main__.__file__ == {str(script)!r}
"""
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, str(script)], check=True, timeout=200, env=environment)
    assert (tmp_path / "a").exists() and (tmp_path / "b").exists()
    assert (tmp_path / "runs").read_text() == "run "
