"""The ways in: the `sd3par` command, and the script for Paddle's launcher. Arguments in, pictures out, nothing else."""
