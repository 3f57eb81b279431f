"""What goes before an import of Paddle."""

from __future__ import annotations

import gc

import pytest

from sd3par.launch.environment import importing


def test_no_garbage_is_looked_for_while_importing() -> None:
    before = gc.get_freeze_count()
    with pytest.raises(ImportError), importing():
        assert not gc.isenabled()
        made = [[]]  # type: ignore[var-annotated]
        raise ImportError("as of a broken package")
    assert gc.isenabled()
    assert gc.get_freeze_count() > before and not any(one is made for one in gc.get_objects())
    gc.unfreeze()
