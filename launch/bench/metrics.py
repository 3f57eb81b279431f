"""How far two pictures are from each other: by pixels, by structure, by numbers."""

from __future__ import annotations

import numpy as np

_SIGMA, _RADIUS, _LEVELS = 1.5, 5, 255.0
_C1, _C2 = (0.01 * _LEVELS) ** 2, (0.03 * _LEVELS) ** 2
LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue: ITU-R BT.601


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio in dB of pictures [..., 3] uint8; infinite where they are equal."""
    error = float(((a.astype(np.float64) - b.astype(np.float64)) ** 2).mean())
    return float("inf") if error == 0.0 else float(10.0 * np.log10(_LEVELS**2 / error))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the structural similarity of pictures [H, W, 3] uint8 by their luma: 1 where they are equal.

    Wang et al. 2004: a Gaussian window of 11 pixels, sigma 1.5, where it lies within the picture.
    """
    x, y = (picture.astype(np.float64) @ LUMA for picture in (a, b))
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    above = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    return float((above / ((mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2))).mean())


def levels(a: np.ndarray, b: np.ndarray) -> int:
    """Returns the largest difference of two pictures [...] uint8, in levels of 255."""
    return int(np.abs(a.astype(np.int16) - b.astype(np.int16)).max())


def relative(got: np.ndarray, want: np.ndarray) -> float:
    """Returns |got - want| / |want| in the 2-norm."""
    difference = got.astype(np.float64) - want.astype(np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(want.astype(np.float64)))


def _blurred(x: np.ndarray) -> np.ndarray:
    """x: [H, W] -> its means under the window, [H - 10, W - 10]."""
    at = np.arange(-_RADIUS, _RADIUS + 1)
    weights = np.exp(-(at**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    for axis in range(2):
        x = np.lib.stride_tricks.sliding_window_view(x, len(weights), axis) @ weights
    return x
