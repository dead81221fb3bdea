"""What test workers run: pickled by name, so it lies in a module of its own that spawned processes can import."""

from __future__ import annotations

import os
import time
from pathlib import Path


def start(folder: str) -> Path:
    return Path(folder)


def start_badly(folder: str) -> Path:
    raise RuntimeError("no device")


def task(folder: Path, payload: str) -> None:
    """Does what the payload says, and leaves a file behind where it succeeds."""
    name, _, what = payload.partition(" ")
    if what == "raise":
        raise ValueError("does not fit")
    if what == "lost":
        raise RuntimeError("sticky fault")
    if what == "die":
        os._exit(7)
    if what == "hang":
        time.sleep(60)
    (folder / name).write_text(str(os.getpid()))


def lost(folder: Path) -> bool:
    return not (folder / "never lost").exists()
