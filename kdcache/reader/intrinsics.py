# ruff: noqa: ARG001  (numba reads the arguments of an intrinsic for their number only)
"""Functions for compiled code that numba has no Python form of.

They work on addresses, so that a caller can walk through rows of pixels without bounds checks.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 32
"""Bytes that one step of `weighted_sum` reads and writes."""

WEIGHT_BITS = 22
"""Fractional bits of a filter's weights. Pillow has as many: a weight of 1 is 1 << 22."""

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_BYTES = ir.VectorType(_I8, LANES)
_NUMBERS = ir.VectorType(_I32, LANES)


@intrinsic
def call_c(typing_context: Any, address: Any, arguments: Any) -> Any:
    """Call the C function at an address with a tuple of int64; return its int32.

    numba does not cache a function that refers to a C function. It does cache one that receives
    the address, which saves several seconds in each process.
    """
    signature = types.int32(types.uintp, arguments)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        count = len(signature.args[1])
        kind = ir.FunctionType(_I32, [_I64] * count)
        function = builder.inttoptr(values[0], kind.as_pointer())
        return builder.call(function, cgutils.unpack_tuple(builder, values[1], count))

    return signature, generate


def _copy(kind: ir.IntType) -> Any:
    """Return a function that copies a number of the given type, at any alignment."""

    @intrinsic
    def copy(typing_context: Any, source: Any, destination: Any) -> Any:
        signature = types.void(types.int64, types.int64)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            read, written = (builder.inttoptr(value, kind.as_pointer()) for value in values)
            builder.store(builder.load(read, align=1), written, align=1)
            return context.get_dummy_value()

        return signature, generate

    return copy


copy_1 = _copy(_I8)
"""Copy one byte from an address to another."""

copy_4 = _copy(_I32)
"""Copy four bytes from an address to another."""


def _weighted_sum(*, may_overflow: bool) -> Any:
    """Return a function that adds up weighted bytes of `LANES` adjacent columns.

    Its vectors are as wide as four of AVX2's, so the compiler keeps the sums in registers.

    Args:
        may_overflow: whether some weights are negative, so that a sum may lie outside [0, 255].
    """

    @intrinsic
    def add_up(
        typing_context: Any,
        source: Any,
        step: Any,
        weights: Any,
        count: Any,
        destination: Any,
    ) -> Any:
        signature = types.void(*[types.int64] * 5)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            source, step, weights, count, destination = values
            before = builder.block
            loop, after = (builder.append_basic_block(name) for name in ("taps", "sum"))
            builder.branch(loop)
            builder.position_at_end(loop)
            tap, read, weight_at = (builder.phi(_I64) for _ in range(3))
            total = builder.phi(_NUMBERS)
            pixels = builder.load(builder.inttoptr(read, _BYTES.as_pointer()), align=1)
            weight = builder.load(builder.inttoptr(weight_at, _I32.as_pointer()), align=4)
            product = builder.mul(builder.zext(pixels, _NUMBERS), _repeated(builder, weight))
            added = builder.add(total, product)
            following = builder.add(tap, _I64(1))
            for phi, first, later in (
                (tap, _I64(0), following),
                (read, source, builder.add(read, step)),
                (weight_at, weights, builder.add(weight_at, _I64(4))),
                (total, _all(1 << (WEIGHT_BITS - 1)), added),
            ):
                phi.add_incoming(first, before)
                phi.add_incoming(later, loop)
            builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
            builder.position_at_end(after)
            rounded = builder.ashr(added, _all(WEIGHT_BITS))
            if may_overflow:
                for bound, beyond in ((0, "<"), (255, ">")):
                    is_beyond = builder.icmp_signed(beyond, rounded, _all(bound))
                    rounded = builder.select(is_beyond, _all(bound), rounded)
            written = builder.inttoptr(destination, _BYTES.as_pointer())
            builder.store(builder.trunc(rounded, _BYTES), written, align=1)
            return context.get_dummy_value()

        return signature, generate

    return add_up


def _all(number: int) -> ir.Constant:
    return ir.Constant(_NUMBERS, [number] * LANES)


def _repeated(builder: Any, number: Any) -> Any:
    undefined = ir.Constant(_NUMBERS, ir.Undefined)
    return builder.shuffle_vector(
        builder.insert_element(undefined, number, _I32(0)), undefined, _all(0)
    )


weighted_sum = _weighted_sum(may_overflow=False)
"""Write sum(weights[t] * source[t * step + lane]) for `LANES` bytes, rounded to whole levels.

Takes five int64: the address of the first byte, the bytes between two taps, the address of int32
weights >= 0 with `WEIGHT_BITS` fractional bits and a sum of 1, the number of taps (at least 1), and
the address of the output."""

weighted_sum_clipped = _weighted_sum(may_overflow=True)
"""The same for weights of any sign, with the sums clipped to [0, 255]."""


@intrinsic
def mean_of_squares(
    typing_context: Any,
    upper: Any,
    lower: Any,
    destination: Any,
) -> Any:
    """Write the means of `LANES` squares of 2 x 2 bytes, rounded to whole levels, halves up.

    Takes three int64: the addresses of the first byte in the upper and in the lower row, and of the
    output. It reads twice as many bytes from each row as it writes.
    """
    signature = types.void(types.int64, types.int64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        wide = ir.VectorType(_I8, 2 * LANES)
        words = ir.VectorType(ir.IntType(16), LANES)
        total = ir.Constant(words, [2] * LANES)
        for address in values[:2]:
            row = builder.load(builder.inttoptr(address, wide.as_pointer()), align=1)
            for first in (0, 1):
                every_second = ir.Constant(_NUMBERS, list(range(first, 2 * LANES, 2)))
                column = builder.shuffle_vector(row, ir.Constant(wide, ir.Undefined), every_second)
                total = builder.add(total, builder.zext(column, words))
        mean = builder.lshr(total, ir.Constant(words, [2] * LANES))
        written = builder.inttoptr(values[2], _BYTES.as_pointer())
        builder.store(builder.trunc(mean, _BYTES), written, align=1)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def rgb_of_planes(
    typing_context: Any,
    luma: Any,
    blue: Any,
    red: Any,
    destination: Any,
) -> Any:
    """Convert `LANES` pixels from YCbCr to RGB, with the integers of libjpeg (JFIF).

    Takes four int64: the addresses of luma, blue and red chroma, and of the output, where 3 *
    `LANES` bytes are written.
    """
    signature = types.void(*[types.int64] * 4)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        planes = [
            builder.zext(
                builder.load(builder.inttoptr(address, _BYTES.as_pointer()), align=1), _NUMBERS
            )
            for address in values[:3]
        ]
        chroma = [builder.sub(plane, _all(128)) for plane in planes[1:]]
        levels = []
        for of_blue, of_red in ((0, 91881), (-22554, -46802), (116130, 0)):
            total = _all(1 << 15)
            for plane, factor in zip(chroma, (of_blue, of_red), strict=True):
                if factor != 0:
                    total = builder.add(total, builder.mul(plane, _all(factor)))
            level = builder.add(planes[0], builder.ashr(total, _all(16)))
            for bound, beyond in ((0, "<"), (255, ">")):
                is_beyond = builder.icmp_signed(beyond, level, _all(bound))
                level = builder.select(is_beyond, _all(bound), level)
            levels.append(builder.trunc(level, _BYTES))
        pair = ir.Constant(ir.VectorType(_I32, 2 * LANES), list(range(2 * LANES)))
        undefined = ir.Constant(_BYTES, ir.Undefined)
        both = [
            builder.shuffle_vector(levels[0], levels[1], pair),
            builder.shuffle_vector(levels[2], undefined, pair),
        ]
        order = [LANES * channel + pixel for pixel in range(LANES) for channel in range(3)]
        mixed = builder.shuffle_vector(*both, ir.Constant(ir.VectorType(_I32, 3 * LANES), order))
        kind = ir.VectorType(_I8, 3 * LANES)
        builder.store(mixed, builder.inttoptr(values[3], kind.as_pointer()), align=1)
        return context.get_dummy_value()

    return signature, generate
