"""Paddle's CPU wheel on NVIDIA GPUs: a plug-in for Paddle's custom-device interface, in C++ and CUDA.

`python -m sd3par.kernels.nvgpu build` compiles it and puts it where Paddle finds it at its next import; the
device is then called `nvgpu`. Nothing here needs the plug-in, or a GPU, to be imported.
"""
