import shutil
import subprocess

import pytest


@pytest.fixture
def verified():
    """Runs dciodvfy on a file; errors fail the test, its absence skips it."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (Debian's dicom3tools) is not installed")

    def verify(path):
        done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
        report = done.stderr + done.stdout
        assert not [line for line in report.splitlines() if line.startswith("Error")], report
        return report

    return verify
