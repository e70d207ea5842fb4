"""The gradient of conv2d for the weight, on blocked images: ∂W[o, c, tap] = Σ ∂z[o, pixel] · x[c, what it meets].

A register tile holds one tap of all input channels of a block × the output channels in the lanes. Pixels whose tap is
outside the image are left out. Every worker has its own pairs of blocks, so nothing is added up across workers.
"""

from typing import Any, NamedTuple

import numpy as np

from jitconv.variants.compiling import inner
from jitconv.variants.simd import lanes, lanes_of, pointer
from jitconv.variants.tiled import layout
from jitconv.variants.tiled.geometry import Axis, forward, met
from jitconv.variants.tiled.kernel import Tiled
from jitconv.variants.tiled.layout import TO_BLOCKED, blocks_of
from jitconv.variants.tiled.microkernel import TileShape, fma_pixels, load_add_pixels, store_pixels, zeros_of
from jitconv.variants.tiled.product import share, transpose_matrix
from jitconv.variants.workers import each_worker

BLOCK_PIXELS = 128  # about so many products are added up on their own, which bounds the rounding error,
BLOCKS = 32  # and then so many of those sums, before they are added to all others


class Sums(NamedTuple):
    """The sizes of a weight's gradient, for groups of images together; distances in numbers."""

    images: int
    groups: int
    outputs: int  # channels of a group
    inputs: int
    x_plane: int
    x_line: int  # from what a line of the output meets to what the next one does
    x_pixel: int
    z_plane: int
    z_line: int
    lines: int
    band: int  # lines at once, whose numbers stay in the first-level cache for all taps
    across: int  # columns of them at once
    width: int  # columns of the output
    taps: int  # of the filter


class Taps(NamedTuple):
    """For each row and column of the filter, three numbers.

    The first and last + 1 line (column) of the output that meets it on the image, and where in x that of the output's
    line (column) 0 would be.
    """

    rows: Any
    columns: Any


def grad_weight(start, workers, shape, x, z, sums, taps, out):
    """out[group, o, c, tap] = the gradient, from blocked x and ∂z, all flat; shape: lanes × 1."""
    each_worker(start, workers, _grad_weight, (shape, x, z, sums, taps, out))


@inner
def _grad_weight(worker, workers, shape, x, z, sums, taps, out):
    vlen, columns, pointers = lanes(x), len(taps.columns) // 3, Taps(pointer(taps.rows), pointer(taps.columns))
    outputs, inputs = (sums.outputs + vlen - 1) // vlen, (sums.inputs + vlen - 1) // vlen
    begin, end = share(sums.groups * outputs * inputs, worker, workers, 1)
    bands, pieces = (sums.lines + sums.band - 1) // sums.band, (sums.width + sums.across - 1) // sums.across
    parts, size = sums.images * bands * pieces, sums.taps * vlen * vlen
    total, partial = np.empty(size, x.dtype), np.empty(size, x.dtype)
    for index in range(begin, end):
        group, (o, c) = index // (outputs * inputs), divmod(index % (outputs * inputs), inputs)
        total[:] = 0
        for first in range(0, parts, BLOCKS):
            block = total
            if first > 0:
                block = partial
                block[:] = 0
            for part in range(first, min(first + BLOCKS, parts)):
                image, top = part // (bands * pieces) * sums.groups + group, part // pieces % bands * sums.band
                left = part % pieces * sums.across
                at = (image * inputs + c) * sums.x_plane, (image * outputs + o) * sums.z_plane
                some = (top, min(top + sums.band, sums.lines)), (left, min(left + sums.across, sums.width))
                for tap in range(sums.taps):
                    which = tap // columns, tap % columns, tap
                    _add_tap(shape, pointer(x), pointer(z), sums, pointers, at, some, which, pointer(block))
            if first > 0:
                for i in range(size):
                    total[i] += block[i]
        o, c = o * vlen, c * vlen
        channels = min(vlen, sums.outputs - o), min(vlen, sums.inputs - c)
        i = (group * sums.outputs + o) * sums.inputs + c
        transpose_matrix(
            total, channels[1] * sums.taps, channels[0], vlen, out[i * sums.taps :], sums.inputs * sums.taps
        )


@inner
def _add_tap(shape, x, z, sums, taps, at, area, tap, total):
    """total[c, tap, o] += Σ ∂z[o, pixel] · x[c, what the tap meets there], over some lines and columns."""
    vlen, row, column = lanes(x), 3 * tap[0], 3 * tap[1]
    first, last = max(area[0][0], taps.rows[row]), min(area[0][1], taps.rows[row + 1])
    left, right = max(area[1][0], taps.columns[column]), min(area[1][1], taps.columns[column + 1])
    if first >= last or left >= right:
        return
    tile, ld = zeros_of(shape, x), sums.taps * vlen
    for line in range(first, last):
        i = at[0] + taps.rows[row + 2] + line * sums.x_line + taps.columns[column + 2]
        j = at[1] + line * sums.z_line
        for q in range(left, right):
            tile = fma_pixels(shape, tile, x, i + q * sums.x_pixel, 1, z, j + q * vlen, 0, 0)
    tile = load_add_pixels(tile, total, tap[2] * vlen, ld, 0, vlen)
    store_pixels(tile, total, tap[2] * vlen, ld, 0, vlen)


GRAD_WEIGHT = Tiled(grad_weight, None)


class GradWeight:
    """conv2d_grad_weight for these shapes; geometry: stride, padding, dilation."""

    def __init__(self, grad_shape: Any, x_shape: Any, weight_shape: Any, dtype: Any, geometry: Any) -> None:
        (O, inputs, *kernel), lanes, self.every = weight_shape, lanes_of(dtype), (1, 1)
        if kernel == [1, 1] and geometry[1] == (0, 0):  # an image is one line, of the pixels that meet the filter
            self.every, geometry = geometry[0], ((1, 1), (0, 0), (1, 1))
            x_shape, grad_shape = ((*shape[:2], 1, grad_shape[2] * grad_shape[3]) for shape in (x_shape, grad_shape))
        N, C, H, W = x_shape
        self.N, self.dtype, self.shape = N, np.dtype(dtype), TileShape(lanes, 1)
        self.channels, self.groups = (inputs, O * inputs // C), C // inputs
        self.pixels, out = (H * W, grad_shape[2] * grad_shape[3]), grad_shape[2:]
        axes = [forward((H, W)[k], out[k], kernel[k], *(pair[k] for pair in geometry)) for k in (0, 1)]
        stride, pieces = geometry[0], max(1, round(out[1] / BLOCK_PIXELS))
        self.sums = Sums(
            N, self.groups, self.channels[1], inputs, H * W * lanes, stride[0] * W * lanes, stride[1] * lanes,
            self.pixels[1] * lanes, out[1] * lanes, out[0], max(1, BLOCK_PIXELS // out[1]),
            max(1, -(-out[1] // pieces)), out[1], kernel[0] * kernel[1],
        )  # fmt: skip
        self.taps = Taps(_ranges(axes[0], W * lanes), _ranges(axes[1], lanes))

    def __call__(self, grad: Any, x: Any, *args: Any) -> None:
        if self.every != (1, 1):
            some = x[:, :, :: self.every[0], :: self.every[1]]
            x = layout.workspace("met", some.size, self.dtype).reshape(some.shape)
            np.copyto(x, some)
        arrays = []
        for name, array, channels, pixels in zip("xz", (x, grad), self.channels, self.pixels, strict=True):
            size = self.N * self.groups * blocks_of(channels, self.dtype) * pixels * lanes_of(self.dtype)
            arrays.append(layout.workspace(name, size, self.dtype))
            TO_BLOCKED(array.reshape(-1), channels, pixels, arrays[-1])
        GRAD_WEIGHT(self.shape, *arrays, self.sums, self.taps, args[-1].reshape(-1))


def _ranges(axis: Axis, step: int) -> Any:
    ranges = zip(met(axis, 0, axis.length), axis.offsets, strict=True)
    return np.array([(*some, offset * step) for some, offset in ranges], np.int64).reshape(-1)
