"""The README's Python example runs as it stands, and its commands exist."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_example_runs(ball_study, tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", README, re.S)
    assert code is not None
    lines = [line for line in code.group(1).splitlines() if line.strip()]
    assert len(lines) == 8
    shutil.copytree(ball_study, tmp_path / "study")
    monkeypatch.chdir(tmp_path)
    exec(compile(code.group(1), "README.md", "exec"), {})
    assert (tmp_path / "out" / "reading.json").is_file()
    assert "SPL" in capsys.readouterr().out


def test_commands_and_links_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\S+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


def test_page_on_python_runs(ball_package, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.S)
    assert code is not None
    shutil.copytree(ball_package.parent, tmp_path / "models" / "balls")
    monkeypatch.chdir(tmp_path)
    exec(compile(code.group(1), "docs/python.md", "exec"), {})
    found = capsys.readouterr().out.splitlines()[-1]
    assert found.startswith("1 (34.5, 24.5, 19.0)"), found
