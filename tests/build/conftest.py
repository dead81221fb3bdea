"""Cases that several tests of the build share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.build.test_pipeline import scan


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``calibrate`` with two scans, ``gate`` with two others, one of which has a truth."""
    root = tmp_path_factory.mktemp("cases")
    for seed in range(2):
        scan(root / "calibrate" / f"c{seed}", seed)
    scan(root / "gate" / "with-truth", 10, truth=True)
    scan(root / "gate" / "without", 11)
    return root
