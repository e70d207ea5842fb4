"""The gradient of conv2d for the weight, on blocked images: ∂W[o, c, tap] = Σ ∂z[o, pixel] · x[c, what it meets].

A register tile holds one tap of all input channels of a block × the output channels in the lanes. Pixels whose tap is
outside the image are left out. Every worker has its own pairs of blocks, so nothing is added up across workers.
"""

from typing import Any, NamedTuple

import numpy as np

from jitconv.variants.compiling import inner
from jitconv.variants.simd import lanes, lanes_of
from jitconv.variants.tiled import layout
from jitconv.variants.tiled.geometry import Axis, forward, met
from jitconv.variants.tiled.kernel import Tiled
from jitconv.variants.tiled.layout import TO_BLOCKED, blocks_of
from jitconv.variants.tiled.microkernel import TileShape, fma_pixels, load_add_pixels, store_pixels, zeros_of
from jitconv.variants.tiled.product import share, transpose_matrix
from jitconv.variants.workers import each_worker

PIXELS = 128  # about so many products are added up on their own, which bounds the rounding error,
PARTS = 32  # and then so many of those sums, before they are added to all others


class Sums(NamedTuple):
    """The sizes of a weight's gradient, for groups of images together; distances in numbers.

    rows, columns: for each row and column of the filter the first and last + 1 line (column) of the output that meets
    it on the image, and where that of the output's line (column) 0 would be in x.
    """

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
    rows: Any
    columns: Any


def grad_weight(team, workers, shape, x, z, sums, out):
    """out[group, o, c, tap] = the gradient, from blocked x and ∂z, all flat; shape: lanes × 1."""
    each_worker(team, workers, _grad_weight, (shape, x, z, sums, out))


@inner
def _grad_weight(worker, workers, shape, x, z, sums, out):
    lane, taps = lanes(x), len(sums.rows) // 3 * (len(sums.columns) // 3)
    outputs, inputs = (sums.outputs + lane - 1) // lane, (sums.inputs + lane - 1) // lane
    begin, end = share(sums.groups * outputs * inputs, worker, workers, 1)
    bands, pieces = (sums.lines + sums.band - 1) // sums.band, (sums.width + sums.across - 1) // sums.across
    parts, size = sums.images * bands * pieces, taps * lane * lane
    total, later = np.empty(size, x.dtype), np.empty(size, x.dtype)
    for index in range(begin, end):
        group, (o, c) = index // (outputs * inputs), divmod(index % (outputs * inputs), inputs)
        total[:] = 0
        for first in range(0, parts, PARTS):
            block = total
            if first > 0:
                block = later
                block[:] = 0
            for part in range(first, min(first + PARTS, parts)):
                image, top = part // (bands * pieces) * sums.groups + group, part // pieces % bands * sums.band
                left = part % pieces * sums.across
                at = (image * inputs + c) * sums.x_plane, (image * outputs + o) * sums.z_plane
                area = (top, min(top + sums.band, sums.lines)), (left, min(left + sums.across, sums.width))
                for tap in range(taps):
                    _add_tap(shape, x, z, sums, at, area, tap, block)
            if first > 0:
                for i in range(size):
                    total[i] += block[i]
        o, c = o * lane, c * lane
        some, i = (
            (min(lane, sums.outputs - o), min(lane, sums.inputs - c)),
            (group * sums.outputs + o) * sums.inputs + c,
        )
        transpose_matrix(total, some[1] * taps, some[0], lane, out[i * taps :], sums.inputs * taps)


@inner
def _add_tap(shape, x, z, sums, at, area, tap, total):
    """total[c, tap, o] += Σ ∂z[o, pixel] · x[c, what the tap meets there], over some lines and columns."""
    lane, across = lanes(x), len(sums.columns) // 3
    row, column = 3 * (tap // across), 3 * (tap % across)
    first, last = max(area[0][0], sums.rows[row]), min(area[0][1], sums.rows[row + 1])
    left, right = max(area[1][0], sums.columns[column]), min(area[1][1], sums.columns[column + 1])
    if first >= last or left >= right:
        return
    tile, ld = zeros_of(shape, x), len(sums.rows) // 3 * across * lane
    for line in range(first, last):
        i = at[0] + sums.rows[row + 2] + line * sums.x_line + sums.columns[column + 2]
        j = at[1] + line * sums.z_line
        for q in range(left, right):
            tile = fma_pixels(shape, tile, x, i + q * sums.x_pixel, 1, z, j + q * lane, 0, 0)
    tile = load_add_pixels(tile, total, tap * lane, ld, 0, lane)
    store_pixels(tile, total, tap * lane, ld, 0, lane)


GRAD_WEIGHT = Tiled(grad_weight, None)


class GradWeight:
    """conv2d_grad_weight for these shapes; geometry: stride, padding, dilation."""

    def __init__(self, grad_shape: Any, x_shape: Any, weight_shape: Any, dtype: Any, geometry: Any) -> None:
        (N, C, H, W), (O, inputs, *kernel), lanes = x_shape, weight_shape, lanes_of(dtype)
        self.N, self.dtype, self.shape = N, np.dtype(dtype), TileShape(lanes, 1)
        self.channels, self.groups = (inputs, O * inputs // C), C // inputs
        self.pixels, out = (H * W, grad_shape[2] * grad_shape[3]), grad_shape[2:]
        axes = [forward((H, W)[k], out[k], kernel[k], *(pair[k] for pair in geometry)) for k in (0, 1)]
        stride, pieces = geometry[0], max(1, round(out[1] / PIXELS))
        self.sums = Sums(
            N, self.groups, self.channels[1], inputs, H * W * lanes, stride[0] * W * lanes, stride[1] * lanes,
            self.pixels[1] * lanes, out[1] * lanes, out[0], max(1, PIXELS // out[1]),
            max(1, -(-out[1] // pieces)), out[1], _ranges(axes[0], W * lanes), _ranges(axes[1], lanes),
        )  # fmt: skip

    def __call__(self, grad: Any, x: Any, *args: Any) -> None:
        arrays = []
        for name, array, channels, pixels in zip("xz", (x, grad), self.channels, self.pixels, strict=True):
            size = self.N * self.groups * blocks_of(channels, self.dtype) * pixels * lanes_of(self.dtype)
            arrays.append(layout.workspace(name, size, self.dtype))
            TO_BLOCKED(array.reshape(-1), channels, pixels, arrays[-1])
        GRAD_WEIGHT(self.shape, *arrays, self.sums, args[-1].reshape(-1))


def _ranges(axis: Axis, step: int) -> Any:
    ranges = zip(met(axis, 0, axis.length), axis.offsets, strict=True)
    return np.array([(*some, offset * step) for some, offset in ranges], np.int64).reshape(-1)
