"""The gradient of conv2d for the weight: ∂W[o, c, tap] = Σ ∂z[o, pixel] · x[c, what it meets].

A register tile holds one tap of some input channels × some vectors of output channels: ∂z is blocked, so that they lie
side by side, and x is read where it lies, (N, C, H, W), one number of each channel for a pixel. Pixels whose tap is
outside the image are left out. Every worker has its own panels of the weight, so nothing is added up across workers.
"""

from typing import Any, NamedTuple

import numpy as np

from jitconv.variants.compiling import inner
from jitconv.variants.simd import lanes, lanes_of, pointer
from jitconv.variants.tiled import layout
from jitconv.variants.tiled.geometry import Axis, forward, met
from jitconv.variants.tiled.kernel import Tiled
from jitconv.variants.tiled.layout import TO_BLOCKED, blocks_of
from jitconv.variants.tiled.microkernel import (
    TileShape,
    fma_vectors,
    load_add_pixels,
    store_pixels,
    vectors_of,
    zeros_of,
)
from jitconv.variants.tiled.product import share, transpose_matrix
from jitconv.variants.workers import each_worker

BLOCK_PIXELS = 128  # about so many products are added up on their own, which bounds the rounding error,
BLOCKS = 32  # and then so many of those sums, before they are added to all others
TILES = 2  # register tiles of input channels that pass a band of ∂z while it is in the first-level cache


class Sums(NamedTuple):
    """The sizes of a weight's gradient, for groups of images together; distances in numbers."""

    images: int
    groups: int
    outputs: int  # channels of a group
    inputs: int
    rows: int  # input channels of a register tile
    x_plane: int
    x_line: int  # from what a line of the output meets to what the next one does
    x_pixel: int
    z_plane: int  # of a vector of channels
    z_line: int
    lines: int
    band: int  # lines at once, whose numbers stay in the first-level cache for all taps
    across: int  # columns of them at once
    width: int  # columns of the output
    taps: int  # of the filter
    columns: int  # of them


class Taps(NamedTuple):
    """For each row and column of the filter, three numbers.

    The first and last + 1 line (column) of the output that meets it on the image, and where in x that of the output's
    line (column) 0 would be.
    """

    rows: Any
    columns: Any


def grad_weight(start, workers, shape, x, z, sums, taps, out):
    """out[group, o, c, tap] = the gradient, from x and blocked ∂z, all flat; shape: input channels × output vectors."""
    each_worker(start, workers, _grad_weight, (shape, x, z, sums, taps, out))


@inner
def _grad_weight(worker, workers, shape, x, z, sums, taps, out):
    """The worker's part of all panels: output channels of one register tile × input channels of TILES."""
    width, depth = vectors_of(shape) * lanes(x), TILES * sums.rows
    pointers = Taps(pointer(taps.rows), pointer(taps.columns))
    across, down = (sums.outputs + width - 1) // width, (sums.inputs + depth - 1) // depth
    begin, end = share(sums.groups * across * down, worker, workers, 1)
    parts = sums.images * _bands(sums) * _pieces(sums)
    total, partial = np.empty(depth * sums.taps * width, x.dtype), np.empty(depth * sums.taps * width, x.dtype)
    for index in range(begin, end):
        group, (o, c) = index // (across * down), divmod(index % (across * down), down)
        panel = group, o * width, c * depth
        total[:] = 0  # all there is, where there are no images
        for first in range(0, parts, BLOCKS):
            block = total if first == 0 else partial
            if first > 0:
                partial[:] = 0
            for part in range(first, min(first + BLOCKS, parts)):
                _add_part(shape, pointer(x), pointer(z), sums, pointers, panel, part, pointer(block))
            if first > 0:
                for i in range(total.size):
                    total[i] += block[i]
        _store_panel(total, sums, panel, width, out)


@inner
def _bands(sums):
    return (sums.lines + sums.band - 1) // sums.band


@inner
def _pieces(sums):
    return (sums.width + sums.across - 1) // sums.across


@inner
def _channels(sums, panel, tile):
    """The first input channel that a tile of a panel adds, and the first it computes: the last tile is full too."""
    c = panel[2] + tile * sums.rows
    return c, max(0, min(c, sums.inputs - sums.rows))


@inner
def _add_part(shape, x, z, sums, taps, panel, part, total):
    """total[c, tap, o] += the sums of a panel over some lines and columns of an image."""
    (group, o, _), vlen, columns, bands, pieces = panel, lanes(x), sums.columns, _bands(sums), _pieces(sums)
    image, top, left = part // (bands * pieces), part // pieces % bands * sums.band, part % pieces * sums.across
    area = (top, min(top + sums.band, sums.lines)), (left, min(left + sums.across, sums.width))
    image, blocks = image * sums.groups + group, (sums.outputs + vlen - 1) // vlen
    z_vector = sums.z_plane if o // vlen + vectors_of(shape) <= blocks else 0  # one too many repeats the last
    for tile in range(TILES):
        c, start = _channels(sums, panel, tile)
        if c < sums.inputs:
            at = (image * sums.inputs + start) * sums.x_plane, (image * blocks + o // vlen) * sums.z_plane
            for tap in range(sums.taps):
                which = tap // columns, tap % columns, tile * sums.rows * sums.taps + tap
                _add_tap(shape, x, z, sums, taps, (*at, z_vector), area, which, total)


@inner
def _add_tap(shape, x, z, sums, taps, at, area, tap, total):
    """total[c, tap, o] += Σ ∂z[o, pixel] · x[c, what the tap meets there], for the channels of a register tile."""
    vlen, width, row, column = lanes(x), vectors_of(shape) * lanes(x), 3 * tap[0], 3 * tap[1]
    first, last = max(area[0][0], taps.rows[row]), min(area[0][1], taps.rows[row + 1])
    left, right = max(area[1][0], taps.columns[column]), min(area[1][1], taps.columns[column + 1])
    if first >= last or left >= right:
        return
    tile = zeros_of(shape, x)
    for line in range(first, last):
        i = at[0] + taps.rows[row + 2] + line * sums.x_line + taps.columns[column + 2]
        j = at[1] + line * sums.z_line
        for q in range(left, right):
            tile = fma_vectors(shape, tile, x, i + q * sums.x_pixel, sums.x_plane, z, j + q * vlen, at[2])
    tile = load_add_pixels(tile, total, tap[2] * width, sums.taps * width, vlen, sums.rows)
    store_pixels(tile, total, tap[2] * width, sums.taps * width, vlen, sums.rows)


@inner
def _store_panel(total, sums, panel, width, out):
    """out[group, o, c, tap] = total[c, tap, o] for the channels of a panel."""
    group, o, _ = panel
    for tile in range(TILES):
        c, start = _channels(sums, panel, tile)
        added = start + sums.rows - c  # channels that no tile before has
        if added > 0:
            i, j = ((tile + 1) * sums.rows - added) * width, (group * sums.outputs + o) * sums.inputs + c
            rows, columns = added * sums.taps, min(width, sums.outputs - o)
            transpose_matrix(total, i * sums.taps, width, out, j * sums.taps, sums.inputs * sums.taps, rows, columns)


GRAD_WEIGHT = Tiled(grad_weight, None)


class GradWeight:
    """conv2d_grad_weight for half a register of channels or more; geometry: stride, padding, dilation."""

    def __init__(self, grad_shape: Any, x_shape: Any, weight_shape: Any, dtype: Any, geometry: Any) -> None:
        (N, C, H, W), (O, inputs, *kernel), out, lanes = x_shape, weight_shape, grad_shape[2:], lanes_of(dtype)
        if kernel == [1, 1] and geometry[0] == (1, 1) and geometry[1] == (0, 0):
            H, W, out = 1, H * W, (1, out[0] * out[1])  # an image is one line
        self.dtype, self.outputs, self.pixels = np.dtype(dtype), O * inputs // C, out[0] * out[1]
        self.shape = TileShape(lanes // 2, min(2, blocks_of(self.outputs, dtype)))
        self.size = N * C // inputs * blocks_of(self.outputs, dtype) * self.pixels * lanes
        axes = [forward((H, W)[k], out[k], kernel[k], *(pair[k] for pair in geometry)) for k in (0, 1)]
        stride, pieces = geometry[0], max(1, round(out[1] / BLOCK_PIXELS))
        self.sums = Sums(
            N, C // inputs, self.outputs, inputs, self.shape.pixels, H * W, stride[0] * W, stride[1],
            self.pixels * lanes, out[1] * lanes, out[0], max(1, BLOCK_PIXELS // out[1]),
            max(1, -(-out[1] // pieces)), out[1], kernel[0] * kernel[1], kernel[1],
        )  # fmt: skip
        self.taps = Taps(_ranges(axes[0], W), _ranges(axes[1], 1))

    def __call__(self, grad: Any, x: Any, *args: Any) -> None:
        z = layout.workspace("z", self.size, self.dtype)
        TO_BLOCKED(grad.reshape(-1), self.outputs, self.pixels, z)
        GRAD_WEIGHT(self.shape, x.reshape(-1), z, self.sums, self.taps, args[-1].reshape(-1))


def _ranges(axis: Axis, step: int) -> Any:
    ranges = zip(met(axis, 0, axis.length), axis.offsets, strict=True)
    return np.array([(*some, offset * step) for some, offset in ranges], np.int64).reshape(-1)
