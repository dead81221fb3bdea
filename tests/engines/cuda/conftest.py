"""Plans run on the CPU, kernels under Triton's interpreter; on a GPU set WETREAD_TEST_DEVICE=cuda.

Where the extra ``cuda`` is not installed nothing here is collected.
"""

from importlib.util import find_spec

from tests.kernels import conftest as _  # noqa: F401  (sets up the interpreter before triton is imported)

if not all(find_spec(name) for name in ("torch", "triton", "safetensors")):
    collect_ignore_glob = ["test_*.py"]
