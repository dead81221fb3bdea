"""The commands as a user types them: output, exit codes, no tracebacks, nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ball_recipe, threshold_network


def wetread(
    *arguments: object, cwd: Path, limit_bytes: int | None = None
) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    environment = {k: v for k, v in os.environ.items() if k not in ("WETREAD_DEBUG", "PYTHONWARNINGS")}
    return subprocess.run(
        [sys.executable, "-c", "from wetread.cli import main; main()", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, check=False, env=environment, timeout=240, preexec_fn=limit,
    )  # fmt: skip


def test_read_writes_everything(ball_study, ball_package, tmp_path):
    done = wetread("read", ball_study, "-m", ball_package, "-o", "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert len(data["findings"]) == 2
    assert {"seg.dcm", "sr.dcm", "mask.nii.gz", "report.html"} <= set(data["outputs"])
    assert all((tmp_path / path).is_file() for path in data["outputs"].values())


def test_read_shows_a_table_and_plain_lines_when_piped(ball_study, ball_package, tmp_path):
    done = wetread("read", ball_study, "-m", ball_package, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 finding(s)" in done.stdout and "ball" in done.stdout
    assert "windows: " in done.stderr and "\x1b" not in done.stderr
    assert (tmp_path / "dicom-reading" / "reading.json").is_file()
    again = wetread("read", ball_study, "-m", ball_package, cwd=tmp_path)
    assert again.returncode == 40 and "--force" in again.stderr


def test_failure_is_machine_readable(ball_package, tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "a.dcm").write_text("hello")
    done = wetread("read", "study", "-m", ball_package, "-o", "out", "--json", cwd=tmp_path)
    failure = json.loads((tmp_path / "out" / "failure.json").read_text())
    assert done.returncode == failure["exit_code"] == json.loads(done.stdout)["exit_code"] != 0
    assert failure["status"] == "failed" and failure["what"]
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_full_disk_leaves_nothing(ball_study, ball_package, tmp_path):
    # every file larger than 2 KiB fails to be written, as on a disk that fills up
    done = wetread("read", ball_study, "-m", ball_package, "-o", "out", cwd=tmp_path, limit_bytes=2048)
    assert done.returncode == 40, done.stderr
    assert "Traceback" not in done.stderr
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in left] == ["failure.json"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["read", "absent"], 11),
        (["info", "absent"], 11),
        (["read", "absent", "-m", "no-such-package"], 21),
        (["pack", "absent.onnx", "absent.json"], None),
        (["nonsense"], 2),
    ],
)
def test_exit_codes(arguments, code, ball_package, tmp_path):
    if "-m" not in arguments and arguments[0] in ("read", "info"):
        arguments = [*arguments, "-m", ball_package]
    done = wetread(*arguments, cwd=tmp_path)
    assert done.returncode == code if code is not None else done.returncode in (20, 23)
    assert "Traceback" not in done.stderr


def test_info_of_a_study(ball_study, ball_package, tmp_path):
    done = wetread("info", ball_study, "-m", ball_package, "--json", cwd=tmp_path)
    data = json.loads(done.stdout)
    assert data["read"][0]["why"] and data["series"][0]["grid"]["axis_codes"] == "SPL"
    assert data["series"][0]["grid"]["spacing_mm"] == pytest.approx([1.5, 0.8, 0.8])
    plain = wetread("info", ball_study, "-m", ball_package, cwd=tmp_path)
    assert plain.returncode == 0 and "axis_codes: SPL" in plain.stdout


def test_info_of_a_package(ball_package, tmp_path):
    data = json.loads(wetread("info", ball_package, "--json", cwd=tmp_path).stdout)
    assert data["kind"] == "package" and data["name"] == "balls" and len(data["hash"]) == 64


def test_pack_and_schema(tmp_path):
    threshold_network(tmp_path / "m.onnx")
    (tmp_path / "r.json").write_text(json.dumps(ball_recipe()))
    done = wetread("pack", "m.onnx", "r.json", "-o", "models", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "models" / "balls" / "1.0.0" / "model.onnx").is_file()
    (tmp_path / "bad.json").write_text(json.dumps(ball_recipe(colour="red")))
    refused = wetread("pack", "m.onnx", "bad.json", cwd=tmp_path)
    assert refused.returncode == 20 and "colour" in refused.stderr
    schema = json.loads(wetread("schema", cwd=tmp_path).stdout)
    assert "tiling" in schema["properties"]
