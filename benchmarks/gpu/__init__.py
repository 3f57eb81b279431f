"""Full-size models on GPUs, beside diffusers in the same run: `python -m benchmarks.gpu --help`."""
