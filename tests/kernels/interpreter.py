"""Triton's interpreter on Paddle's CPU tensors; import this before anything of sd3par.kernels, in a process of its own.

TRITON_INTERPRET=1 holds for a whole process: Triton reads it when a kernel is decorated, its own library's included.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

from triton.runtime import interpreter  # noqa: E402


def install() -> None:
    """Lets kernels work in place on CPU tensors (the interpreter would copy them with torch's methods).

    Scalars are arrays of one element, of which numpy 2.4 makes no index any more.
    """
    interpreter.GridExecutor._init_args_hst = lambda self, positional, named: (list(positional), dict(named))
    interpreter.GridExecutor._restore_args_dev = lambda self, *arguments: None
    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_with_index
