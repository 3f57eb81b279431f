"""Triton kernels against their references in Triton's interpreter, and as far as the compiler; which of them runs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import paddle
import pytest

from sd3par import ConfigError, kernels
from sd3par.kernels import runtime
from sd3par.kernels.adaln import Stream, adaln_triton
from sd3par.kernels.attention import MAX_HEAD_DIM, Scattered, attention_triton
from sd3par.kernels.gated_sum import gated_sum_triton
from sd3par.kernels.group_norm_silu import group_norm_silu_triton
from sd3par.kernels.guidance_euler import guidance_euler_triton
from sd3par.kernels.patch_embed import patch_embed_triton
from sd3par.kernels.qkv import split_heads_triton
from tests import tolerances

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason=f"needs Triton: pip install 'triton=={runtime.TESTED}.*'"
)


def run(module: str) -> dict:
    """Returns what a module of this folder prints, from a process of its own."""
    result = subprocess.run([sys.executable, "-m", f"tests.kernels.{module}"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@needs_triton
def test_kernels_equal_their_references() -> None:
    errors = run("interpreted")
    assert errors.pop("torch is loaded") == 0
    assert len(errors) > 25
    assert {name: error for name, error in errors.items() if not error <= tolerances.MODULE} == {}


@needs_triton
def test_kernels_compile_for_every_gpu_of_interest() -> None:
    found = run("compiled")
    assert found.pop("torch") is False
    variants = {"attention": 3, "adaln": 6, "gated_sum": 2, "meet": 2, "conv3x3": 7, "group_norm_partial": 2,
                "group_norm_strip": 3}  # fmt: skip
    peers = [[38, 2, 1], [38, 2, 1], [38, 2, 1], [19, 2, 1], *4 * [[1, 1, 1]]]
    shared_at_most = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
    hopper, launches = found.pop("hopper"), found["launches sm_90"]
    linear, tiles = found.pop("linear"), [launches.pop() for _ in range(32)]
    assert len(linear) == 32 and tiles == ([[18, 1, 1], [12, 1, 1]] * 2 + [[15, 1, 1], [10, 1, 1]] * 2) * 4
    assert all(stores == ["st.global.v4.b32"] for *_, stores, _ in linear)
    clusters = [[0] * 5] * 4 + [[1, *some, 5, 1] for some in ((4, 6), (2, 6), (4, 12), (2, 8))]
    assert [uses for *_, uses in linear] == clusters * 4
    assert len(hopper) == 4 and launches[-8:] == 2 * [[96, 1, 1], [96, 1, 1], [128, 1, 1], [128, 1, 1]]
    del launches[-8:]
    for cubin, shared, said, *_ in [*hopper, *linear]:
        assert cubin > 0 and shared <= shared_at_most[90]
        assert "0 bytes spill stores, 0 bytes spill loads" in said
        assert "wgmma" not in said  # its warning that products wait for each other
    for capability, most in shared_at_most.items():
        launches = found.pop(f"launches sm_{capability}")
        convolutions = [[8, 1, 1], [32, 1, 1], [128, 1, 1], [512, 1, 1], [2, 1, 1], [8, 1, 1], [2, 1, 1]]
        norms, others = [[370, 2, 1], [370, 2, 1], [37, 2, 1], [37, 2, 1]], [[111, 1, 1], [5, 1, 1], [1, 2, 3]]
        group_norm = [[8, 1, 1], [4, 1, 1], [8, 1, 1]] + 3 * [[38, 1, 1], [10, 1, 1], [1, 1, 1], [48, 1, 1]]
        assert launches == [[8, 24, 1], [6, 24, 1], [8, 24, 1], *norms, *others, *group_norm, *convolutions, *peers]
        made = {name: sizes for name, sizes in found.items() if name.endswith(f"sm_{capability}")}
        assert len(made) == 16
        for name, sizes in made.items():
            assert len(sizes) == variants.get(name.split()[0], 1), name
            assert all(cubin > 0 and shared <= most for cubin, shared in sizes), name


@pytest.mark.parametrize("first", [0, 1, 5, 8, 9])
def test_attention_of_two_segments_is_that_of_one(first: int) -> None:
    qkv = paddle.randn([2, 9, 3, 2, 8])
    memory = [paddle.full([2, count + 4, 3, 2, 8], 1e4) for count in (first, 9 - first)]
    segments = [full[:, 2:-2] for full in memory]
    for segment, part in zip(segments, (qkv[:, :first], qkv[:, first:]), strict=True):
        segment.copy_(part, True)
    (whole,) = kernels.attention([qkv])
    both = kernels.attention(segments)
    assert [x.shape for x in both] == [[2, first, 16], [2, 9 - first, 16]]
    assert float((paddle.concat(both, axis=1) - whole).abs().max()) <= tolerances.MODULE
    (alone,) = kernels.attention([qkv[:, :8]])
    assert float((alone - whole[:, :8]).abs().max()) > 100 * tolerances.MODULE  # one key more shows


def test_which_segments_tma_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("sd3par.kernels.attention_hopper")
    monkeypatch.setattr(module, "architecture", lambda: 90)
    x = paddle.zeros([2, 9, 3, 4, 64], dtype="bfloat16")
    assert module.fits([x]) and module.fits([x[:, 2:7], x])
    wide = paddle.zeros([2, 9, 3, 4, 80], dtype="bfloat16")
    others = {
        "half of the heads": x[:, :, :, :2],
        "another head dim": paddle.zeros([2, 9, 3, 4, 32], dtype="bfloat16"),
        "a part of each head": wide[..., :64],
        "an address that 16 does not divide": paddle.zeros([6913 * 2], dtype="bfloat16")[1:13825].view(
            [2, 9, 3, 4, 64]
        ),
    }
    assert {name: module.fits([x, other]) for name, other in others.items()} == dict.fromkeys(others, False)
    monkeypatch.setattr(module, "architecture", lambda: 100)
    assert not module.fits([x])


def test_the_cpu_runs_references_and_says_why() -> None:
    assert "references" in kernels.why_not_triton("cpu")
    assert not runtime.takes(paddle.zeros([1], dtype="bfloat16"))
    assert runtime.kind_of(paddle.zeros([1]).cpu()) == "cpu"


def test_empty_is_like_another() -> None:
    x = paddle.zeros([2, 3], dtype="bfloat16")
    made = runtime.empty([4, 0, 5], x)
    assert (made.shape, made.dtype, made.stop_gradient) == ([4, 0, 5], x.dtype, True)
    assert made.place._equals(x.place)


def test_kernels_go_to_another_stream_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paddle.base.core, "_get_current_stream", lambda index: SimpleNamespace(raw_stream=5))
    with runtime.on_stream(7):
        with pytest.raises(ValueError), runtime.on_stream(8):
            assert runtime._stream(0) == 8
            raise ValueError
        assert runtime._stream(0) == 7
    assert runtime._stream(0) == 5


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch):
    runtime.why_not.cache_clear()
    yield monkeypatch
    runtime.why_not.cache_clear()


def test_missing_triton_has_a_remedy(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(runtime, "triton", None)
    assert "pip install" in runtime.why_not("nvgpu")


def test_kernels_import_without_triton() -> None:
    script = (
        "import sys; sys.modules['triton'] = None; from sd3par import kernels; print(kernels.why_not_triton('gpu'))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Triton is not installed" in result.stdout


@needs_triton
def test_other_triton_is_named(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(runtime.triton, "__version__", "3.1.0")
    assert runtime.why_not("nvgpu").startswith("Triton 3.1.0; tested: ")


@needs_triton
def test_a_driver_that_fails_turns_triton_off(fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("no C compiler")

    fresh.setattr(runtime, "_activate", fail)
    assert runtime.why_not("nvgpu") == "RuntimeError: no C compiler"
    assert "no C compiler" in caplog.text


def zeros(*shape: int) -> paddle.Tensor:
    return paddle.zeros(shape)


def norm(x: paddle.Tensor, *modulations: tuple, branch: object = None, gate: object = None) -> object:
    return adaln_triton([Stream(x, branch, gate, modulations)])


TO = Scattered(paddle.zeros([2], dtype="int64"), 1, 16, 8)
MOD, WEIGHT, QKV = zeros(1, 8), zeros(8), zeros(1, 2, 3, 1, 8)
PATCH, PLACES, TOKENS = zeros(8, 4, 2, 2), zeros(3, 8), zeros(1, 3, 8)
BAD = {
    "attention without three parts": (lambda: attention_triton([zeros(1, 2, 4, 1, 8)]), "segments"),
    "attention with too large heads": (lambda: attention_triton([zeros(1, 2, 3, 1, MAX_HEAD_DIM + 1)]), "head_dim"),
    "attention with strided heads": (lambda: attention_triton([QKV, zeros(1, 2, 3, 1, 16)[..., ::2]]), "segments"),
    "attention of nothing": (lambda: attention_triton([]), "segments"),
    "attention of three segments": (lambda: attention_triton([QKV] * 3), "segments"),
    "attention of other rows": (lambda: attention_triton([QKV, zeros(2, 2, 3, 1, 8)]), "segments"),
    "attention of other heads": (lambda: attention_triton([QKV, zeros(1, 2, 3, 2, 8)]), "segments"),
    "attention of another dtype": (lambda: attention_triton([QKV, QKV.astype("float64")]), "segments"),
    "attention of two segments to one's addresses": (lambda: attention_triton([QKV, QKV], [TO]), "outs"),
    "attention to too few shards": (lambda: attention_triton([zeros(1, 3, 3, 1, 8)], [TO]), "outs"),
    "attention to no shard": (lambda: attention_triton([QKV], [TO._replace(addresses=TO.addresses[:0])]), "outs"),
    "attention to shards without tokens": (lambda: attention_triton([QKV[:, :0]], [TO._replace(size=0)]), "outs"),
    "attention to short addresses": (lambda: attention_triton([QKV], [TO._replace(addresses=zeros(2))]), "outs"),
    "attention to addresses on the CPU": (lambda: kernels.attention([QKV], [TO]), "outs"),
    "adaln of a vector": (lambda: norm(zeros(8), (MOD, MOD)), "x"),
    "adaln with another row count": (lambda: norm(zeros(2, 3, 8), (MOD, MOD)), "scale"),
    "adaln with another dtype": (lambda: norm(TOKENS, (MOD, MOD.astype("float64"))), "shift"),
    "adaln with another branch": (lambda: norm(TOKENS, (MOD, MOD), branch=zeros(1, 2, 8)), "branch"),
    "adaln with another gate": (lambda: norm(TOKENS, (MOD, MOD), branch=TOKENS, gate=WEIGHT), "gate"),
    "adaln with another second shift": (lambda: norm(TOKENS, (MOD, MOD), (MOD, WEIGHT)), "shift"),
    "adaln with three modulations": (lambda: norm(TOKENS, *[(MOD, MOD)] * 3), "modulations"),
    "adaln of three streams": (lambda: adaln_triton([Stream(TOKENS, None, None, ((MOD, MOD),))] * 3), "streams"),
    "adaln of streams of other rows": (lambda: adaln_triton([Stream(TOKENS, None, None, ((MOD, MOD),)),
                                                             Stream(zeros(2, 3, 8), None, None, ((MOD, MOD),))]), "x"),
    "adaln of a branch in parts beside a whole one": (lambda: adaln_triton([
        Stream(TOKENS, TOKENS, None, ((MOD, MOD),)), Stream(TOKENS, zeros(2, 1, 3, 8), None, ((MOD, MOD),))]),
        "branch"),
    "gated_sum with another gate": (lambda: gated_sum_triton(PLACES[None], MOD, PLACES[None], WEIGHT, None), "gate2"),
    "split_heads of a width that does not divide": (lambda: split_heads_triton(zeros(1, 2, 25), 8, WEIGHT, WEIGHT),
                                                    "packed"),
    "split_heads with another weight": (lambda: split_heads_triton(zeros(1, 2, 24), 8, WEIGHT, MOD), "norm_k"),
    "patches of other channels": (lambda: patch_embed_triton(zeros(1, 3, 12), PATCH, WEIGHT, PLACES, 1), "latents"),
    "patches in double precision": (lambda: patch_embed_triton(zeros(1, 3, 16).astype("float64"), PATCH, WEIGHT, PLACES,
                                                               1), "latents"),
    "patches of other positions": (lambda: patch_embed_triton(zeros(1, 4, 16), PATCH, WEIGHT, PLACES, 1), "positions"),
    "patches for other rows": (lambda: patch_embed_triton(zeros(2, 3, 16), PATCH, WEIGHT, PLACES, 3), "rows"),
    "group norm of uneven groups": (lambda: group_norm_silu_triton(zeros(1, 2, 2, 8), 3, WEIGHT, WEIGHT, 1.0, True),
                                    "x"),
    "group norm with another bias": (lambda: group_norm_silu_triton(zeros(1, 2, 2, 8), 2, WEIGHT, MOD, 1.0, True),
                                     "bias"),
    "guidance of other latents": (lambda: guidance_euler_triton(zeros(1, 8), None, zeros(2, 8), 1.0, zeros(1)[0]),
                                  "cond"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_wrong_tensors_are_named(case: str) -> None:
    call, field = BAD[case]
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.field == field
