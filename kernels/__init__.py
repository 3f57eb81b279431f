"""The memory-bound operations of the MM-DiT, one function each; the model calls these and nothing below them.

Here the plain-Paddle references run. Triton kernels will stand beside them, and only this file will know which runs.
"""

from sd3par.kernels.adaln import adaln_reference as adaln
from sd3par.kernels.attention import attention_reference as attention
from sd3par.kernels.gate_adaln import gate_adaln_reference as gate_adaln
from sd3par.kernels.guidance_euler import guidance_euler_reference as guidance_euler
from sd3par.kernels.qkv import split_heads_reference as split_heads

__all__ = ["adaln", "attention", "gate_adaln", "guidance_euler", "split_heads", "why_not_triton"]


def why_not_triton() -> str:
    """Returns why the references run instead of Triton kernels, for `sd3par doctor`."""
    return "this version has no Triton kernels yet; the plain-Paddle references run"
