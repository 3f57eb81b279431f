"""The plug-in's dry twin, for programs."""

from __future__ import annotations

from tests.nvgpu.conftest import dry_plugin  # noqa: F401  # pytest finds it here
