"""Wheels from PyPI that tests look into without installing them; kept in the user's cache between runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def wheel(name: str, version: str) -> Path:
    """Path of the newest wheel of these versions, such as ``10.13.*`` or ``>=11,<12``; skips without network.

    Several processes may ask at once: each downloads for itself, and the first one's folder stays.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wetread-tests"
    plain = "".join(letter if letter.isalnum() or letter == "." else "-" for letter in version)
    place = base / f"{name}-{plain}-{PYTHON}"
    if not list(place.glob("*.whl")):
        own = base / f".{uuid.uuid4().hex}"
        only = version if version[0] in "<>" else f"=={version}"
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
             "--disable-pip-version-check", "--dest", str(own), f"{name}{only}"],
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        if done.returncode:
            shutil.rmtree(own, ignore_errors=True)
            pytest.skip(f"{name} {version} cannot be had from PyPI here: {done.stderr.strip()[-200:]}")
        try:
            own.rename(place)
        except OSError:  # another process was first
            shutil.rmtree(own, ignore_errors=True)
    return max(place.glob("*.whl"))
