"""Whether random ops of a device are distributed and repeated as they should be. Each check raises AssertionError."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle
from paddle import Tensor

N = 1_000_003  # several blocks, no multiple of 4


def _host(x: Tensor) -> np.ndarray:
    return x.cpu().astype("float64").numpy()


def _near(value: float, want: float, deviation: float, what: str) -> None:
    """A fair generator fails once in 10^9: `deviation` is of the estimate."""
    assert abs(value - want) < 6 * deviation, f"{what}: {value}, want {want} +- {deviation}"


def check_gaussian(device: str) -> None:
    """Mean, deviation, the share within 1 and beyond 3 deviations, and neighbours that know nothing of each other."""
    paddle.set_device(device)
    z = (_host(paddle.normal(3.0, 2.0, [N])) - 3) / 2
    _near(z.mean(), 0, N**-0.5, "mean")
    _near((z**2).mean(), 1, (2 / N) ** 0.5, "variance")
    _near((abs(z) < 1).mean(), 0.6826895, (0.217 / N) ** 0.5, "within 1")
    _near((abs(z) > 3).mean(), 0.0026998, (0.0027 / N) ** 0.5, "beyond 3")
    for lag in (1, 2, 3, 4):
        _near((z[lag:] * z[:-lag]).mean(), 0, N**-0.5, f"correlation at {lag}")


def check_half_gaussian(device: str) -> None:
    """randn in the dtypes of inference."""
    paddle.set_device(device)
    for dtype in ("float16", "bfloat16"):
        z = _host(paddle.randn([N], dtype=dtype))
        _near(z.mean(), 0, N**-0.5, f"{dtype} mean")
        _near((z**2).mean(), 1, 2 * (2 / N) ** 0.5, f"{dtype} variance")


def check_uniform(device: str) -> None:
    """Each tenth of the interval gets its share; the upper end is never drawn, though bfloat16 is coarse."""
    paddle.set_device(device)
    x = _host(paddle.uniform([N], min=-1.0, max=3.0))
    for share in np.histogram(x, 10, (-1, 3))[0] / N:
        _near(share, 0.1, (0.09 / N) ** 0.5, "tenth")
    coarse = _host(paddle.uniform([N], dtype="bfloat16", min=0.0, max=1.0))
    assert coarse.max() < 1 or device == "cpu"  # Paddle's own kernel rounds up


def check_integers(device: str) -> None:
    """Each value has its share; negative and wide ranges are reached."""
    paddle.set_device(device)
    x = _host(paddle.randint(-2, 5, [N]))
    for value in range(-2, 5):
        _near((x == value).mean(), 1 / 7, (6 / 49 / N) ** 0.5, f"share of {value}")
    wide = _host(paddle.randint(-(2**31), 2**31 - 1, [N]))
    _near(wide.mean() / 2**31, 0, (1 / 3 / N) ** 0.5, "mean of wide integers")


def check_others(device: str) -> None:
    """Truncated normal, exponential, Bernoulli, dropout and permutations."""
    paddle.set_device(device)
    truncated = paddle.nn.initializer.TruncatedNormal(1.0, 2.0, -1.0, 3.0)
    x = _host(paddle.create_parameter([N], "float32", default_initializer=truncated).detach())
    assert x.min() >= -1 and x.max() <= 3
    _near(x.mean(), 1, (1.165 / N) ** 0.5, "truncated mean")
    _near(((x - 1) ** 2).mean(), 4 * 0.2911, 2e-3, "truncated variance")
    x = _host(paddle.zeros([N]).exponential_(0.5))
    _near(x.mean(), 2, 2 * N**-0.5, "exponential mean")
    x = _host(paddle.bernoulli(paddle.full([N], 0.3)))
    _near(x.mean(), 0.3, (0.21 / N) ** 0.5, "bernoulli")
    x = _host(paddle.nn.functional.dropout(paddle.ones([N]), 0.25))
    assert set(np.unique(x)) == {0, np.float64(np.float32(1 / 0.75))}
    _near((x == 0).mean(), 0.25, (0.1875 / N) ** 0.5, "dropped")
    order = _host(paddle.randperm(N))
    assert np.array_equal(np.sort(order), np.arange(N))
    _near(np.corrcoef(order, np.arange(N))[0, 1], 0, N**-0.5, "permutation")


def check_in_place(device: str) -> None:
    """normal_ and uniform_ fill a tensor that is there."""
    paddle.set_device(device)
    z = paddle.full([N], 9.0)
    z.normal_(1.0, 2.0)
    _near(_host(z).mean(), 1, 2 * N**-0.5, "mean of normal_")
    _near(((_host(z) - 1) ** 2).mean(), 4, 4 * (2 / N) ** 0.5, "variance of normal_")
    z.uniform_(-1.0, 3.0)
    assert _host(z).min() >= -1 and _host(z).max() < 3
    _near(_host(z).mean(), 1, (16 / 12 / N) ** 0.5, "mean of uniform_")


def check_seeds(device: str) -> None:
    """A seed repeats its numbers, the next draw differs, another seed differs, an op's own seed stands alone."""
    paddle.set_device(device)
    draws = []
    for seed in (7, 7, 8):
        paddle.seed(seed)
        draws.append([_host(paddle.randn([1001])) for _ in range(2)])
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0][0], draws[0][1])
    assert abs(np.corrcoef(draws[0][0], draws[2][0])[0, 1]) < 0.2
    fixed = [_host(paddle.uniform([1001], seed=5)) for _ in range(2)]
    assert np.array_equal(*fixed)
    short = _host(paddle.uniform([10], seed=5))
    assert np.array_equal(short, fixed[0][:10]) or device == "cpu"


# Each check, and the ops of which it is the one test.
CHECKS: dict[Callable[[str], None], tuple[str, ...]] = {
    check_gaussian: (),
    check_half_gaussian: (),
    check_uniform: (),
    check_integers: (),
    check_others: ("exponential", "truncated_gaussian_random"),
    check_in_place: ("gaussian_inplace", "uniform_inplace"),
    check_seeds: (),
}
