"""A convolution and what alone reads it, a depthwise one or max-pooling, band by band of lines.

What lies between the two is one filter tile wide and some lines high, so it stays in the second-level cache, where the
whole of it would not. The lines that two bands read are computed for both.
"""

import abc
import bisect
import os
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jitconv.variants.compiling import inner
from jitconv.variants.elementwise import store
from jitconv.variants.simd import SECOND_LEVEL_CACHE, lanes, lanes_of, pointer
from jitconv.variants.tiled.blocked import Convolution
from jitconv.variants.tiled.direct import Arrays, Tables, tile_of
from jitconv.variants.tiled.kernel import Tiled
from jitconv.variants.tiled.microkernel import vectors_of
from jitconv.variants.tiled.product import share
from jitconv.variants.tiled.windows import maximum
from jitconv.variants.workers import each_worker

BETWEEN = SECOND_LEVEL_CACHE * 7 // 16  # bytes between the two: what they read and write passes beside it


class Between(NamedTuple):
    """What lies between the two, of which each worker has `size` numbers.

    lines: the first and last + 1 of its lines that each line of the output reads; line, plane: numbers of a line, and
    from a vector's channels to the next one's; band: lines of the output at a time, of so many in an image.
    """

    lines: Any
    line: int
    plane: int
    size: int
    band: int
    height: int


class Pooling(NamedTuple):
    """Max-pooling of an image of `width` into `planes` planes; rows, columns, steps as in windows.max_pool2d."""

    width: int
    planes: int
    rows: Any
    columns: Any
    steps: Any
    out: Any


def _bands(second_lines):
    """The worker of a convolution, each band of which second_lines reads before the next one is computed."""

    @inner
    def convolved(worker, workers, shape, convolution, between, scratch, second):
        """A worker's part of the output's lines, band by band, a filter tile at a time."""
        arrays, tables, launch = convolution
        workers = min(workers, scratch.size // between.size)  # the others have nothing to do
        begin, end = share(launch.images * between.height, min(worker, workers), workers, 1)
        own = pointer(scratch[min(worker, workers - 1) * between.size :])
        x, weights, bias = pointer(arrays.x), pointer(arrays.weights), pointer(arrays.bias)
        some = Arrays(x, weights, bias, bias, own, own)
        places = Tables(pointer(tables.tiles), pointer(tables.taps), pointer(tables.blocks))
        blocks, lane, top = len(tables.blocks) // 2, lanes(arrays.x), begin
        while top < end:
            n, line = divmod(top, between.height)
            lines = line, line + min(between.band, end - top, between.height - line)
            first, last = between.lines[2 * line], between.lines[2 * lines[1] - 1]
            for tile in range(launch.filters):
                register = tile * vectors_of(shape)
                at = n * launch.x_image, tile * blocks * launch.block, -first * between.line, register * lane
                for index in range(first * launch.across, last * launch.across):
                    tile_of(shape, some, places, launch, index, at, ((0, blocks), blocks, False))
                for v in range(vectors_of(shape)):
                    second_lines(own, v * between.plane - first * between.line, n, register + v, lines, second)
            top = top + lines[1] - line

    return convolved


@inner
def _depthwise(x, x_at, n, register, lines, second):
    """The output's lines of one register of channels."""
    shape, arrays, tables, launch = second
    some = Arrays(x, pointer(arrays.weights), pointer(arrays.bias), x, pointer(arrays.out), pointer(arrays.out))
    places = Tables(pointer(tables.tiles), pointer(tables.taps), pointer(tables.blocks))
    out = (n * launch.groups + register) * launch.out_image
    at = x_at, register * launch.block, out, register * lanes(x)
    for index in range(lines[0] * launch.across, lines[1] * launch.across):
        tile_of(shape, some, places, launch, index, at, ((0, 1), 1, False))


@inner
def _max_pool(x, x_at, n, register, lines, second):
    """The output's lines of one register of channels."""
    width, planes, rows, columns, steps, out = second
    H_out, W_out, lane = rows.shape[0], columns.shape[0], lanes(x)
    for r in range(lines[0], lines[1]):
        for c in range(W_out):
            window = (rows[r, 0], rows[r, 1]), (columns[c, 0], columns[c, 1])
            value = maximum(x, x_at, width, window, steps, 0)
            store(value, out, (((n * planes + register) * H_out + r) * W_out + c) * lane, lane)


_convolved_depthwise, _convolved_max_pool = _bands(_depthwise), _bands(_max_pool)


def convolve_depthwise(start, workers, shape, convolution, between, scratch, depthwise):
    """out = depthwise convolution of the convolution of x, both as in direct.convolve."""
    each_worker(start, workers, _convolved_depthwise, (shape, convolution, between, scratch, depthwise))


def convolve_max_pool(start, workers, shape, convolution, between, scratch, pooling):
    """out = max-pooling of the convolution of x, which is as in direct.convolve."""
    each_worker(start, workers, _convolved_max_pool, (shape, convolution, between, scratch, pooling))


CONVOLVE_DEPTHWISE, CONVOLVE_MAX_POOL = (
    Tiled(driver, None, recordable=True) for driver in (convolve_depthwise, convolve_max_pool)
)


class Banded(abc.ABC):
    """A bound convolution, and what alone reads it, as one kernel.

    first: bound by_line. rows: the first and last + 1 line between the two that each line of the output reads.
    """

    name: str
    recordable = True

    def __init__(self, first: Convolution, rows: Any) -> None:
        self.first, self.rows = first, np.ascontiguousarray(rows)
        self.betweens = [self._between(part.shape.vectors) for part in first.parts]
        whole = first.sizes.out_size[0] * self.betweens[0].line * first.parts[0].shape.vectors
        self.size = max(between.size for between in self.betweens)  # numbers that a worker needs
        self.workers = max(1, min(os.cpu_count() or 1, whole * first.parts[0].launch.filters // self.size))

    def _between(self, vectors: int) -> Between:
        rows, line = self.rows, self.first.sizes.out_size[1] * lanes_of(self.first.dtype)
        most = BETWEEN // (line * vectors * self.first.dtype.itemsize)
        band = max(1, bisect.bisect_right(range(1, len(rows) + 1), most, key=partial(_reach, rows)))
        plane = (_reach(rows, band) + 1) * line  # one line more: tiles that are not full read on
        return Between(rows.reshape(-1), line, plane, vectors * plane, band, len(rows))

    @abc.abstractmethod
    def calls(self, *args: Any) -> list[Any]:
        """The drivers' calls; the last two arguments: `size` numbers for each worker that is to compute, and `out`."""

    def __call__(self, *args: Any) -> None:
        """Fill the last, `out`; see `calls`."""
        for kernel, arguments in self.calls(*args):
            kernel(*arguments)

    def parts(self, x: Any, packed: Any, bias: Any, scratch: Any) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Yield for each width of filter tiles the registers of channels before it, and a driver's first arguments."""
        register = 0
        for between, (_, call) in zip(self.betweens, self.first.calls(x, packed, bias, None, scratch), strict=True):
            shape, arrays, tables, launch = call
            yield register, (shape, (arrays, tables, launch._replace(vector_ld=between.plane)), between, scratch)
            register += launch.filters * shape.vectors


class ConvolvedDepthwise(Banded):
    """And the depthwise convolution `second`: bound by_line too, of whole registers of channels."""

    name = "depthwise"

    def __init__(self, first: Convolution, second: Convolution, rows: Any) -> None:
        super().__init__(first, rows)
        self.second = second

    def calls(self, x: Any, packed: Any, bias: Any, packed_2: Any, bias_2: Any, scratch: Any, out: Any) -> list[Any]:
        ((_, (second, arrays, tables, launch)),) = self.second.calls(scratch, packed_2, bias_2, None, out)
        result = []
        for register, convolution in self.parts(x, packed, bias, scratch):
            some = arrays._replace(
                weights=arrays.weights[register * launch.block :],
                bias=arrays.bias[register * lanes_of(self.first.dtype) :],
                out=arrays.out[register * launch.out_image :],
            )
            result.append((CONVOLVE_DEPTHWISE, (*convolution, (second, some, tables, launch))))
        return result


class ConvolvedMaxPool(Banded):
    """And max-pooling; rows, columns: its windows, the pixels of each `steps` apart."""

    name = "max_pool2d"

    def __init__(self, first: Convolution, rows: Any, columns: Any, steps: Any) -> None:
        super().__init__(first, rows)
        self.columns, self.steps = columns, steps

    def calls(self, x: Any, packed: Any, bias: Any, scratch: Any, out: Any) -> list[Any]:
        flat, lanes = out.reshape(-1), lanes_of(self.first.dtype)
        plane, width = len(self.rows) * len(self.columns) * lanes, self.first.sizes.out_size[1]
        planes = out.size // (plane * self.first.sizes.N)
        return [
            (
                CONVOLVE_MAX_POOL,
                (*convolution, Pooling(width, planes, self.rows, self.columns, self.steps, flat[register * plane :])),
            )
            for register, convolution in self.parts(x, packed, bias, scratch)
        ]


def _reach(rows: Any, band: int) -> int:
    """The most lines that so many lines of the output read."""
    return int((rows[band - 1 :, 1] - rows[: len(rows) - band + 1, 0]).max())
