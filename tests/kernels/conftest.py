"""The kernels run under Triton's interpreter here; on a GPU set WETREAD_TEST_DEVICE=cuda to run them compiled."""

from __future__ import annotations

import os

if os.environ.get("WETREAD_TEST_DEVICE", "cpu") == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"


def _numpy_2_4() -> None:
    """Triton 3.6's interpreter calls int() on arrays of one element, which numpy 2.4 refuses: take the element."""
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    original = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.reshape(-1)[0]))

    interpreter._patch_lang_tensor = patched


_numpy_2_4()
