"""Products of one or several streams where one launch can do more than one: into new tensors, or to addresses."""

from __future__ import annotations

import math

from paddle import Tensor

from sd3par import device
from sd3par.config import require
from sd3par.errors import ConfigError
from sd3par.kernels import linear_hopper
from sd3par.kernels.linear import Product, linear_gelu_reference, linear_reference
from sd3par.kernels.linear_hopper import Rectangle
from sd3par.kernels.runtime import check_like, empty, takes

# Of both streams together. Measured on H200 with 1536 columns: with 2714 rows the pair in one launch takes 0.85 to 1.02
# of what cuBLASLt takes for one after the other, with 1357 rows 0.72 to 0.92, with 4429 rows 1.02 to 1.07.
# What did not help at 4429 rows, one row at 1024 x 1024, in a recorded step of SD3-medium (single measurements of one
# run, which ended in an illegal instruction later on, not explained): cuBLASLt 16.41 ms; the pair 16.83, with a tile's
# line of the table asked for a tile ahead; the pair with its last round of tiles dealt out along K, sums meeting in
# memory, 18.9. Pairs were launched while the kernel before ended (programmatic dependent launch), which changed nothing
# for the dealt-out pair (18.84 without), nor for norms and attention beside cuBLASLt (16.46). On a hot card at 690 W a
# pair of the MLP's products ran at 1.61 to 1.62 GHz, cuBLASLt's at 1.46 to 1.48 and still faster: the pair's tensor
# cores wait more. cuBLASLt offers 8 algorithms for each of these products, all of which are timed.
# Clusters of two blocks that share what they read of the weight (TMA's multicast, by changes to Gluon's PTX: commit
# 12a5b40, not kept): a block's products of 4429 rows took 1.04 to 1.05 of cuBLASLt's time instead of 1.10, of 8858 rows
# 1.05 instead of 1.11, of 2714 rows 0.95 either way; K 6144 alone, by tiles of 128 x 128, 0.93 to 0.97 with 4429 and
# 8858 rows. Results stored beside the next tile's first products (480bcd4, not kept either) changed nothing more.
# To a peer's memory over NVLink on two H200s: with large products' parts for the other card by cuBLASLt a step of mp 2
# took 18.70 to 19.02 ms where this kernel takes 18.64, of sp 2 17.6 to 17.75 where it takes 17.36; with tiles for the
# other card before its own 18.85 (mp 2; single measurements by a script).
MOST_ROWS = 2816


def flat(product: Product) -> Product:
    """x: [..., K] -> [M, K]."""
    return product._replace(x=product.x.flatten(0, -2))


def _rows(x: Tensor) -> int:
    """x: [..., K] -> the number of its rows, in a twentieth of the time that Tensor.size takes."""
    return math.prod(x.shape[:-1])


def worth_a_pair(products: list[Product]) -> bool:
    """Returns whether one launch does these faster than one for each."""
    if len(products) != 2 or not takes(products[0].x):
        return False
    small = sum(_rows(one.x) for one in products) <= MOST_ROWS
    return small and linear_hopper.fits(list(map(flat, products)))


def linear_pair_triton(products: list[Product], gelu: bool) -> list[Tensor]:
    """Two products, x: [R, T, K] each, that are `worth_a_pair` -> [R, T, N] each, or their GELU, its tanh form."""
    outs = [empty([*one.x.shape[:-1], one.weight.shape[-1]], one.x) for one in products]
    rectangles = [
        Rectangle(number, 0, _rows(out), 0, out.shape[-1], out.data_ptr(), out.shape[-1])
        for number, out in enumerate(outs)
    ]
    linear_hopper.linear_hopper(list(map(flat, products)), rectangles, gelu)
    return outs


def linear_pair_reference(products: list[Product], gelu: bool) -> list[Tensor]:
    """The same, one after the other."""
    linear = linear_gelu_reference if gelu else linear_reference
    return [linear(*one) for one in products]


def linear_to(products: list[Product], rectangles: list[Rectangle]) -> None:
    """Computes rectangles of products, x: [M, K] each, and stores them at their addresses.

    Two products a launch where the kernel for Hopper takes them, which computes for itself while it stores to peers;
    else one of cuBLASLt's for each rectangle.
    """
    for start in range(0, len(products), 2):
        pair = products[start : start + 2]
        cut = [
            one._replace(stream=one.stream - start)
            for one in rectangles
            if one.rows and start <= one.stream < start + len(pair)
        ]
        if not cut:  # of no tokens
            continue
        if linear_hopper.fits(pair) and all(map(linear_hopper.is_whole, cut)):
            linear_hopper.linear_hopper(pair, cut, False)
        else:
            _one_by_one(pair, cut)


def linear_into(product: Product, out: Tensor, gelu: bool = False) -> None:
    """x: [..., K] -> out: [..., N], without gaps: the product, or its GELU, its tanh form, in memory that is there."""
    from sd3par.kernels.nvgpu import products  # late: its package asks for compilers

    x, weight, bias = flat(product)
    columns = weight.shape[1]
    check_like(x, [*product.x.shape[:-1], columns], out=out)
    if bias is None or not (out.is_contiguous() and x.strides[1] == 1):
        given = f"bias {'none' if bias is None else bias.shape}, strides {x.strides} and {out.strides}"
        raise ConfigError("product", given, "a bias, and no gaps")
    products.linear_into(x, weight, bias, gelu, out.data_ptr(), columns, device.stream_handle())


def _one_by_one(products: list[Product], rectangles: list[Rectangle]) -> None:
    from sd3par.kernels.nvgpu.products import linear_into  # late: its package asks for compilers

    for number, row, rows, column, columns, address, stride in rectangles:
        x, weight, bias = products[number]
        inside = row + rows <= x.shape[0] and column + columns <= weight.shape[1] and columns <= stride
        require(inside, "rectangle", f"{rows} x {columns} from ({row}, {column})", "a part of its product")
        if bias is None:
            raise ConfigError("bias", bias, f"[{weight.shape[1]}]")
        taken = (x[row : row + rows], weight[:, column : column + columns], bias[column : column + columns])
        linear_into(*taken, False, address, stride, device.stream_handle())
