"""Views: every slice of a view is the slice of the whole view, and reads no more than that."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from sd3par.errors import CheckpointError
from sd3par.weights.views import Identity, Packed, Same, Squeezed, Swapped, Transposed, View, ViewCheckpoint
from tests.arrays import array
from tests.checkpoints import ArrayCheckpoint

STORED = {"matrix": array("matrix", (12, 6)), "conv": array("conv", (12, 6, 1, 1)), "vector": array("vector", (12,))}
MATRIX, VECTOR = STORED["matrix"], STORED["vector"]
EYE = np.eye(12, dtype=np.float32)

CASES: dict[str, tuple[View, np.ndarray]] = {
    "same": (Same("matrix"), MATRIX),
    "first of packed": (Packed("matrix", 0, 3), MATRIX[:4]),
    "last of packed": (Packed("matrix", 2, 3), MATRIX[8:]),
    "packed vector": (Packed("vector", 1, 3), VECTOR[4:8]),
    "swapped": (Swapped("matrix"), np.concatenate([MATRIX[6:], MATRIX[:6]])),
    "swapped vector": (Swapped("vector"), np.concatenate([VECTOR[6:], VECTOR[:6]])),
    "squeezed": (Squeezed("conv"), STORED["conv"][:, :, 0, 0]),
    "squeezed matrix": (Squeezed("matrix"), MATRIX),
    "transposed": (Transposed("matrix"), MATRIX.T),
    "identity": (Identity(12), EYE),
}


@pytest.mark.parametrize("name", CASES)
def test_every_slice(name: str) -> None:
    view, whole = CASES[name]
    stored = ArrayCheckpoint(STORED)
    checkpoint = ViewCheckpoint(stored, {"x": view})
    assert checkpoint.shapes() == {"x": whole.shape}
    np.testing.assert_array_equal(checkpoint.read("x").numpy(), whole)
    runs = [slice(a, b) for a in range(len(whole)) for b in range(a + 1, len(whole) + 1)]
    columns = [()] if whole.ndim == 1 else [(), (slice(1, 4),)]
    for run, rest in product(runs, columns):
        stored.reads.clear()
        np.testing.assert_array_equal(checkpoint.read("x", (run, *rest)).numpy(), whole[(run, *rest)])
        assert sum(size for _, size in stored.reads) == (0 if name == "identity" else whole[(run, *rest)].nbytes)


@pytest.mark.parametrize("view", [Packed("matrix", 0, 5), Swapped("odd"), Squeezed("wide"), Transposed("odd")])
def test_a_view_that_does_not_fit_is_refused(view: View) -> None:
    stored = ArrayCheckpoint({"matrix": MATRIX, "odd": np.zeros(3), "wide": np.zeros((2, 2, 3, 3))}, "file")
    with pytest.raises(CheckpointError, match=f"file: {view.key}: shape"):  # type: ignore[attr-defined]
        ViewCheckpoint(stored, {"x": view})


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(CheckpointError, match="matrix: missing"):
        ViewCheckpoint(ArrayCheckpoint(STORED), {"x": Same("matrix")}).read("matrix")
