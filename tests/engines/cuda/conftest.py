"""Plans run on the CPU, kernels under Triton's interpreter; on a GPU set WETREAD_TEST_DEVICE=cuda."""

from tests.kernels import conftest as _  # noqa: F401  (sets up the interpreter before triton is imported)
