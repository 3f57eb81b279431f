"""Every kernel in Triton's interpreter, fp32, against its reference in fp64: python -m tests.kernels.interpreted

Prints one JSON object: case -> largest error. Sizes are odd, views have strides, and what lies in memory behind the
last token, key or column is poison.
"""

from __future__ import annotations

from tests.kernels.interpreter import install

install()

import json  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from functools import partial  # noqa: E402

import numpy as np  # noqa: E402
import paddle  # noqa: E402
from paddle import Tensor  # noqa: E402

from sd3par.kernels.adaln import Copies, Stream, adaln_reference, adaln_triton  # noqa: E402
from sd3par.kernels.attention import Scattered, Tiles, attention_reference, attention_triton  # noqa: E402
from sd3par.kernels.conv import Tiles as ConvTiles  # noqa: E402
from sd3par.kernels.conv import (  # noqa: E402
    conv3x3_reference,
    conv3x3_triton,
    fold,
    upsample_conv3x3_reference,
    upsample_conv3x3_triton,
)
from sd3par.kernels.gated_sum import gated_sum_reference, gated_sum_triton  # noqa: E402
from sd3par.kernels.group_norm_silu import group_norm_silu_reference, group_norm_silu_triton  # noqa: E402
from sd3par.kernels.group_norm_strips import (  # noqa: E402
    Strip,
    group_norm_silu_strip_reference,
    group_norm_silu_strip_triton,
    merge_strips,
    pack_strip_reference,
    pack_strip_triton,
)
from sd3par.kernels.guidance_euler import guidance_euler_reference, guidance_euler_triton  # noqa: E402
from sd3par.kernels.meet import hear_triton, meet_triton, tell_triton  # noqa: E402
from sd3par.kernels.patch_embed import Tile, patch_embed_reference, patch_embed_triton  # noqa: E402
from sd3par.kernels.qkv import split_heads_reference, split_heads_triton  # noqa: E402
from tests.arrays import array  # noqa: E402

SMALL = Tiles(32, 16, 4, 2)
Case = tuple[str, object, object]


def tensor(name: str, *shape: int) -> Tensor:
    return paddle.to_tensor(array(name, shape))


def inside(x: Tensor, poison: float) -> Tensor:
    """Returns a view with the values of x in a larger tensor that is `poison` everywhere else."""
    wide = np.full([size + 3 for size in x.shape], poison, np.float32)
    box = tuple(slice(1, 1 + size) for size in x.shape)
    wide[box] = x.numpy()
    return paddle.to_tensor(wide)[box]


def wide(x: object) -> object:
    return x.astype("float64") if isinstance(x, Tensor) and x.dtype == paddle.float32 else x


def pair(name: str, kernel: Callable[..., object], reference: Callable[..., object], *arguments: object) -> Case:
    return name, kernel(*arguments), reference(*(wide(argument) for argument in arguments))


def attention_cases() -> Iterator[Case]:
    """Rows, tokens of each segment, heads, head_dim; every view lies in poison, so that a read outside of it shows."""
    shapes = [(2, (37,), 2, 48), (1, (1,), 1, 64), (2, (64,), 1, 16), (1, (45,), 2, 8), (2, (37, 21), 2, 32),
              (1, (32, 16), 3, 64), (1, (1, 33), 1, 16), (2, (19, 0), 1, 16), (1, (0, 19), 1, 16)]  # fmt: skip
    for rows, tokens, heads, head_dim in shapes:
        name = f"attention ({rows}, {tokens}, {heads}, {head_dim})"
        segments = [tensor(f"qkv {i} {name}", rows, count, 3, heads, head_dim) for i, count in enumerate(tokens)]
        want = attention_reference([wide(x) for x in segments])
        for poison in (float("nan"), 1e4):
            got = attention_triton([inside(x, poison) for x in segments], tiles=SMALL)
            for part, (one, exact) in enumerate(zip(got, want, strict=True)):
                yield f"{name} part {part} in {poison}", one, exact
    segments = [tensor(f"qkv long {count}", 1, count, 3, 1, 64) for count in (1024, 65)]
    both = zip(attention_triton(segments), attention_reference([wide(x) for x in segments]), strict=True)
    for count, (got, exact) in zip((1024, 65), both, strict=True):
        yield f"attention {count} of 1089 tokens, own tiles", got, exact


def scattered_cases() -> Iterator[Case]:
    """Shards that are some heads' columns of larger buffers, of which all else stays: sizes straddle query blocks."""
    shapes = [(1, (37,), 2, 48, (37,)), (2, (70,), 2, 16, (23,)), (2, (37, 21), 2, 32, (40, 7)),
              (1, (33, 1), 3, 64, (5, 1)), (2, (0, 45), 1, 8, (1, 16)), (1, (64, 32), 1, 16, (32, 31))]  # fmt: skip
    for rows, tokens, heads, head_dim, sizes in shapes:
        name = f"scattered attention ({rows}, {tokens}, {heads}, {head_dim}) by {sizes}"
        segments = [tensor(f"qkv {i} {name}", rows, count, 3, heads, head_dim) for i, count in enumerate(tokens)]
        want = attention_reference([wide(x) for x in segments])
        width, before = heads * head_dim, 8
        shards = [
            [paddle.full([rows + 1, size + 2, width + 2 * before], 7.0) for _ in range(-(-count // size))]
            for count, size in zip(tokens, sizes, strict=True)
        ]
        outs = []
        for size, some in zip(sizes, shards, strict=True):
            row_stride, token_stride = (size + 2) * (width + 2 * before), width + 2 * before
            first = [x.data_ptr() + x.element_size() * (token_stride + before) for x in some]
            outs.append(Scattered(paddle.to_tensor(first, dtype="int64"), size, row_stride, token_stride))
        left = attention_triton([inside(x, float("nan")) for x in segments], outs, SMALL)
        yield f"{name} returns nothing", paddle.ones([len(left)]), paddle.zeros([0])
        for part, (exact, size, some) in enumerate(zip(want, sizes, shards, strict=True)):
            for i, shard in enumerate(some):
                whole = paddle.full(shard.shape, 7.0, dtype="float64")
                held = exact[:, i * size : (i + 1) * size]
                whole[:rows, 1 : 1 + held.shape[1], before : before + width] = held
                yield f"{name} part {part} shard {i}", shard, whole
    x = tensor("qkv of two rows", 2, 37, 3, 2, 16)
    (want,) = attention_reference([wide(x)])
    for order in ((0, 1), (1, 0)):  # each row to memory of its own, where the second lies before the first, too
        rows_of = [paddle.full([37, 32], 7.0) for _ in order]
        first, second = (rows_of[i].data_ptr() for i in order)
        place = paddle.to_tensor([first], dtype="int64")
        attention_triton([x], [Scattered(place, 37, (second - first) // x.element_size(), 32)], SMALL)
        for row, i in enumerate(order):
            yield f"row {row} of attention to memory {order}", rows_of[i], want[row]


def norm_cases() -> Iterator[Case]:
    """Every pair of streams that a block makes, and each stream alone; views lie in poison."""
    for rows, tokens, dim in [(2, 5, 48), (1, 3, 1536), (3, 1, 7), (1, 5, 2432)]:
        name = f"({rows}, {tokens}, {dim})"
        x, branch, context = (
            tensor(f"{what} {name}", rows, count, dim)
            for what, count in (("x", tokens), ("branch", tokens), ("context", 2))
        )
        shift, scale, gate, shift2, scale2, gate2 = tensor("mod" + name, rows, 6, dim).unbind(1)
        view, added, once = inside(x + 3.0, float("nan")), inside(branch, float("nan")), ((scale, shift),)
        twice = (*once, (scale2, shift2))
        text = Stream(context, inside(2.0 * context, float("nan")), gate2, ((shift2, scale2),))
        streams = {"bare": Stream(view, None, None, once), "gated": Stream(view, added, gate, once),
                   "twice": Stream(view, added, gate, twice), "gated already": Stream(view, added, None, twice),
                   "bare, twice": Stream(view, None, None, twice)}  # fmt: skip
        for case, stream in streams.items():
            yield from stream_cases(f"adaln {name} {case}", [stream])
            yield from stream_cases(f"adaln {name} {case} and text", [stream, text])
        yield from stream_cases(f"adaln {name} bare and bare", [streams["bare"], text._replace(branch=None, gate=None)])
        want = gated_sum_reference(*map(wide, (view, gate, branch, scale)))
        gated_sum_triton(view, gate, branch, scale, None)
        yield f"gated_sum {name}, in place", view, want


def shared_norm_cases() -> Iterator[Case]:
    """Branches in parts; norms and gated sums that go to places in larger buffers, of which all else stays."""
    for rows, tokens, dim, parts in [(2, 3, 48, 2), (1, 2, 1536, 3)]:
        name = f"shared ({rows}, {tokens}, {dim}, {parts})"
        x, c = tensor(f"x {name}", rows, tokens, dim), tensor(f"c {name}", rows, 1, dim)
        shift, scale, gate, gate2 = tensor(f"mod {name}", rows, 4, dim).unbind(1)
        branches = [tensor(f"branch {name} {one.shape[1]}", parts, *one.shape) for one in (x, c)]
        streams = [
            Stream(x, inside(branches[0], float("nan")), gate, ((scale, shift), (gate, scale))),
            Stream(c, branches[1], gate2, ((shift, scale),)),
        ]
        want = adaln_reference(exact_of(streams))
        whole, before = tokens + 4, 2 * dim
        rooms = [[paddle.full([rows, whole, dim], 7.0) for _ in range(parts)] for _ in range(3)]
        copies = [Copies(places_of(room, before), whole * dim) for room in rooms]
        sums = adaln_triton(streams, [copies[:2], copies[2:]])
        exact = [want[0][1], want[0][2], want[1][1]]
        for which, (room, norm) in enumerate(zip(rooms, exact, strict=True)):
            filled = paddle.full([rows, whole, dim], 7.0, dtype="float64")
            filled[:, 2 : 2 + norm.shape[1]] = norm
            for copy, one in enumerate(room):
                yield f"{name} norm {which} copy {copy}", one, filled
        for which, (got, expected) in enumerate(zip(sums, want, strict=True)):
            yield f"{name} sum {which}", got[0], expected[0]
        own = [room[0][:, 2 : 2 + tokens] for room in rooms[:2]]
        for x_ in (*own, *rooms[2]):
            paddle.assign(paddle.full(x_.shape, 7.0), x_)
        adaln_triton(streams, [own, copies[2:]])  # a stream into tensors, the other one to copies
        for which, (got, norm) in enumerate(
            zip((*own, *(one[:, 2:3] for one in rooms[2])), [*exact[:2], *[exact[2]] * parts], strict=True)
        ):
            yield f"{name} norm {which} beside copies", got, norm
        shards = [paddle.full([rows, 2, dim], 7.0) for _ in range(2)]
        gated_sum_triton(x, gate, x + 1.0, gate2, Scattered(places_of(shards, 0), 2, 2 * dim, dim))
        added = gated_sum_reference(*map(wide, (x, gate, x + 1.0, gate2)))
        yield f"{name} gated sum", paddle.concat(shards, axis=1)[:, :tokens], added


def places_of(buffers: list[paddle.Tensor], numbers: int) -> paddle.Tensor:
    """Returns the addresses, [n] int64, of number `numbers` of each buffer."""
    return paddle.to_tensor([x.data_ptr() + numbers * x.element_size() for x in buffers], dtype="int64")


def meeting_cases() -> Iterator[Case]:
    """Process 1 of 3: the others were here once, and the second time; it tells all three."""
    told = paddle.zeros([3], dtype="int32")
    flags = paddle.to_tensor([1, 0, 2, 0], dtype="int32")
    targets = paddle.to_tensor([told.data_ptr(), flags.data_ptr() + 4, told.data_ptr() + 8], dtype="int64")
    for turn in (1, 2):
        flags[0] = turn
        meet_triton(flags, targets, limit_s=0)
        yield f"meeting {turn}, own flags", flags, paddle.to_tensor([turn, turn, 2, turn])
        yield f"meeting {turn}, others' flags", told, paddle.to_tensor([turn, 0, turn])
    meet_triton(flags, targets, limit_s=0, most=3)
    yield "meeting 3, to which nobody comes", flags, paddle.to_tensor([2, 3, 2, 3])


def telling_cases() -> Iterator[Case]:
    """Process 1 of 3 tells all twice, and hears of the second time of the others once it is there; its own is."""
    told = paddle.zeros([3], dtype="int32")
    flags = paddle.to_tensor([1, 0, 1, 0, 0], dtype="int32")
    targets = paddle.to_tensor([told.data_ptr(), flags.data_ptr() + 4, told.data_ptr() + 8], dtype="int64")
    tell_triton(flags, targets, 0)
    tell_triton(flags, targets, 0)
    yield "told twice, own flags", flags, paddle.to_tensor([1, 2, 1, 2, 0])
    yield "told twice, others' flags", told, paddle.to_tensor([2, 0, 2])
    for turn in (1, 2):
        flags[0] = flags[2] = turn
        hear_triton(flags, limit_s=0)
        yield f"heard {turn}", flags, paddle.to_tensor([turn, 2, turn, 2, turn])


def exact_of(streams: list[Stream]) -> list[Stream]:
    """Returns the same streams in fp64."""
    return [
        Stream(*map(wide, stream[:3]), tuple((wide(scale), wide(shift)) for scale, shift in stream.modulations))
        for stream in streams
    ]


def stream_cases(name: str, streams: list[Stream]) -> Iterator[Case]:
    for which, (got, want) in enumerate(zip(adaln_triton(streams), adaln_reference(exact_of(streams)), strict=True)):
        for part, (one, other) in enumerate(zip(got, want, strict=True)):
            yield f"{name}, stream {which} part {part}", one, other


def other_cases() -> Iterator[Case]:
    for rows, tokens, heads, dim in [(2, 3, 3, 64), (1, 2, 5, 24)]:
        packed = tensor(f"packed{heads}", rows, tokens, 3 * heads * dim)
        norms = [1.0 + tensor(f"norm{i}{dim}", dim) for i in range(2)]
        want = split_heads_reference(*map(wide, (packed, dim, *norms)))
        given = inside(packed, float("nan"))
        yield f"split_heads ({heads}, {dim})", split_heads_triton(given, dim, *norms), want
    latents, cond, uncond = (tensor(name, 2, 37, 31) for name in ("latents", "cond", "uncond"))
    delta = paddle.to_tensor([0.5, -0.25])[1]
    for name, other in (("guided", uncond), ("unguided", None)):
        want = guidance_euler_reference(*map(wide, (latents, other, cond, 7.0, delta)))
        given = latents.clone()
        got = guidance_euler_triton(given, other, cond, 7.0, delta)
        yield f"guidance_euler {name}", got, want
        yield f"guidance_euler {name}, in place", given, want


def patch_cases() -> Iterator[Case]:
    """Patches of other tokens and of poison behind them; the weight's order of channels is not the patches'."""
    for images, tokens, channels, dim, rows in [(1, 37, 16, 48, 2), (2, 5, 3, 40, 2), (2, 33, 4, 64, 6)]:
        latents = inside(tensor(f"latents{channels}", images, tokens, 4 * channels), float("nan"))
        weight, bias = tensor(f"patch{channels}", dim, channels, 2, 2) * 0.2, tensor(f"bias{dim}", dim)
        arguments = (latents, weight, bias, inside(tensor(f"positions{dim}", tokens, dim), float("nan")))
        want = patch_embed_reference(*map(wide, arguments), rows)
        for tile in (Tile(16, 32, 4), Tile(64, 16, 4, times=2, stages=3)):
            got = patch_embed_triton(*arguments, rows, tile)
            yield f"patch_embed {images} {tokens} {channels} {dim} {tile}", got, want


def group_norm_cases() -> Iterator[Case]:
    """Means of ten deviations; tiles of several programs each, one of which ends early."""
    for images, height, width, channels, groups in [(2, 7, 5, 32, 8), (1, 9, 4, 64, 64), (2, 1, 1, 16, 4)]:
        x = tensor(f"map{channels}", images, height, width, channels) + 10.0
        x[:, :, :, : channels // 2] *= 0.3
        weight, bias = (tensor(f"group norm {name}{channels}", channels) for name in ("weight", "bias"))
        for silu in (True, False):
            arguments = (x, groups, weight, bias, 1e-6, silu)
            want = group_norm_silu_reference(*(wide(argument) for argument in arguments))
            for tile, parts in ((256, 6), (128, 512), (4096, 2)):
                name = f"group_norm_silu {list(x.shape)} {silu} in tiles of {tile}, {parts} parts"
                yield name, group_norm_silu_triton(*arguments, tile=tile, parts=parts), want


def strip_cases() -> Iterator[Case]:
    """Strips that are not alike high, of one line too, on every rank, against the norm of the whole map."""
    for images, width, channels, groups, lines in [
        (2, 5, 32, 8, (3, 2, 2)), (1, 4, 64, 64, (1, 1)), (1, 2, 16, 4, (2, 1, 1, 1, 1))
    ]:  # fmt: skip
        x = tensor(f"strips{channels}", images, sum(lines), width, channels) + 10.0
        x[:, :, :, : channels // 2] *= 0.3
        weight, bias = (tensor(f"group norm {name}{channels}", channels) for name in ("weight", "bias"))
        want = group_norm_silu_reference(*map(wide, (x, groups, weight, bias)), 1e-6, True)
        want = paddle.nn.functional.pad(want, [0, 0, 1, 1], data_format="NHWC")
        strips = x.split(list(lines), axis=1)
        for name, dtype, pack, apply in (
            ("reference", "float64", pack_strip_reference, group_norm_silu_strip_reference),
            ("tiles of 64", "float32", partial(pack_strip_triton, tile=64, parts=3),
             partial(group_norm_silu_strip_triton, tile=64)),
            ("own tiles", "float32", pack_strip_triton, group_norm_silu_strip_triton),
        ):  # fmt: skip
            messages = paddle.stack([pack(strip.astype(dtype), groups) for strip in strips])
            scale, shift = weight.astype(dtype), bias.astype(dtype)
            for rank, strip in enumerate(strips):
                first = sum(lines[:rank])
                got = apply(strip.astype(dtype), messages, Strip(rank, lines), groups, scale, shift, 1e-6)
                part = f"strip {rank} of {list(x.shape)}, {name}"
                yield f"group_norm_silu_strip {part}", got, want[:, first : first + lines[rank] + 2]
        # In half precision a message begins with the bits of fp32 numbers.
        half = [strip.astype("float16") for strip in strips]
        messages = paddle.stack([pack_strip_triton(strip, groups) for strip in half])
        parts = paddle.concat(half, axis=1).astype("float64").reshape([images, -1, groups, channels // groups])
        mean = parts.mean([1, 3])
        deviation = (parts - mean[:, None, :, None]).square().mean([1, 3]).sqrt()
        got = merge_strips(messages, Strip(0, lines), images, groups, 0.0)
        yield f"merge_strips {list(x.shape)}", got, paddle.stack([mean, 1.0 / deviation], axis=1)
        edges = messages[:, -2 * images * width * channels :].reshape([-1, 2, images, width, channels])
        for rank, strip in enumerate(half):
            for edge, line in ((0, 0), (1, -1)):
                yield f"pack_strip {list(x.shape)}, edge {edge} of strip {rank}", edges[rank, edge], strip[:, line]


def conv_cases() -> Iterator[Case]:
    """Lines that end within a tile, outputs that do, programs that share tiles; against another layout and order."""
    for shape, outputs, tiles in [
        ((2, 3, 21, 16), 16, ConvTiles(16, 16, 16, 4, 2)),
        ((1, 4, 37, 64), 64, ConvTiles(32, 32, 32, 4, 2)),
        ((1, 4, 37, 128), 64, ConvTiles(32, 64, 64, 4, 2, 3)),
        ((1, 5, 17, 64), 3, None),
    ]:
        x, filters = tensor(f"map{shape}", *shape), 0.05 * tensor(f"filters{outputs}", outputs, 3, 3, shape[-1])
        bias, residual = tensor(f"bias{outputs}", outputs), tensor(f"residual{shape}", *shape[:3], outputs)
        for case, given in (("", None), (" with a residual", residual)):
            yield pair(
                f"conv3x3 {shape} {outputs}{case}", partial(conv3x3_triton, tiles=tiles), conv3x3_reference, x, filters,
                bias, given,
            )  # fmt: skip
        got = upsample_conv3x3_triton(x, fold(filters), bias, tiles)
        large = x.astype("float64").repeat_interleave(2, axis=1).repeat_interleave(2, axis=2)
        yield f"upsample_conv3x3 {shape} {outputs}", got, conv3x3_reference(large, wide(filters), wide(bias), None)
        folded = upsample_conv3x3_reference(x, fold(filters), bias)
        yield f"upsample_conv3x3_reference {shape} {outputs}", folded, got
        yield from halo_cases(x, filters, bias, tiles)


def halo_cases(x: Tensor, filters: Tensor, bias: Tensor, tiles: ConvTiles | None) -> Iterator[Case]:
    """The lines between the first and the last of what comes of the whole map, which need no zeros above and below."""
    name, residual = (
        f"{list(x.shape)} {filters.shape[0]} with a halo",
        tensor(f"halo{x.shape}", *x.shape[:3], bias.size),
    )
    exact = [wide(one) for one in (x, filters, bias)]
    within = residual[:, 1:-1].contiguous()
    for case, given in (("", None), (", residual", within)):
        want = conv3x3_reference(*exact, None if given is None else wide(residual))[:, 1:-1]
        yield f"conv3x3 {name}{case}", conv3x3_triton(x, filters, bias, given, tiles, halo=True), want
        yield f"conv3x3_reference {name}{case}", conv3x3_reference(*exact, wide(given), True), want
    want = upsample_conv3x3_reference(exact[0], fold(filters).astype("float64"), exact[2])[:, 2:-2]
    yield f"upsample_conv3x3 {name}", upsample_conv3x3_triton(x, fold(filters), bias, tiles, halo=True), want
    got = upsample_conv3x3_reference(exact[0], fold(filters).astype("float64"), exact[2], True)
    yield f"upsample_conv3x3_reference {name}", got, want


def main() -> None:
    paddle.set_device("cpu")
    errors = {"torch is loaded": float("torch" in sys.modules)}
    every = (attention_cases, scattered_cases, norm_cases, shared_norm_cases, meeting_cases, telling_cases, other_cases,
             patch_cases, group_norm_cases, strip_cases, conv_cases)  # fmt: skip
    for cases in (some() for some in every):
        for name, got, want in cases:
            error = (
                np.abs(got.numpy().astype(np.float64) - want.numpy()).max(initial=0.0)
                if got.shape == want.shape
                else np.nan
            )
            errors[name] = float(error)
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
