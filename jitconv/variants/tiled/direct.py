"""Convolution with channels in the lanes: activations (N, C/lanes, H, W, lanes), taps outside the image left out.

A register tile is some pixels of a line × some vectors of output channels. For every tap of the filter and every input
channel it loads the vectors' weights once, and multiplies them with the channel's number of each pixel. What a tile
adds up is listed in tables, made when the convolution is bound (geometry.py): so one driver, compiled once for each
shape of tile, serves every size, stride, padding and dilation, and the gradient for the input too.

Images may lie as (N, C, H, W) too. Of x that is a matter of distances. An output goes by way of a band of lines in
blocked layout, which stays in the cache, and is transposed from there.

Input channels come a block at a time, and a chunk of blocks for all pixels of a band: its weights stay in the
second-level cache while those of the next are fetched, and partial sums in the output. Where weights are few, several
filter tiles pass a band together.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jitconv.variants.compiling import inner
from jitconv.variants.simd import lanes, pointer
from jitconv.variants.tiled.microkernel import (
    channels_of,
    clamp,
    fma_pixels,
    fma_some_pixels,
    load_add_pixels,
    out_ld_of,
    prefetch_line,
    prefetch_pixels,
    store_pixels,
    vectors_of,
    x_ld_of,
    zeros_of,
)
from jitconv.variants.tiled.product import share, transpose_matrix
from jitconv.variants.workers import each_worker

UNROLL = 4  # terms of a sum: enough work that the loop over them is cheap, and its end foreseen
TILE, TAP = 11, 5  # numbers of a line of the tables


class Tables(NamedTuple):
    """What each tile adds up; flat, TILE numbers for each tile of an image, TAP for each tap that one meets.

    tiles: where it begins in x and in the output; the first and last + 1 of its taps that meet all its pixels, all but
    the first one, all but the last, some; how many pixels of it there are.
    taps: where it begins in x and in the weights, how many terms it has, the first and last + 1 pixel that it meets.
    blocks: where each block of input channels begins in x, and the most terms that a tap has in it.
    """

    tiles: Any
    taps: Any
    blocks: Any


class Arrays(NamedTuple):
    """All flat; a residual of no size is none, and so is a band of no size, which is each worker's own."""

    x: Any
    weights: Any
    bias: Any
    residual: Any
    band: Any
    out: Any


class Launch(NamedTuple):
    """The sizes of a convolution of `images` with `groups` of filters each, and distances in numbers."""

    images: int
    groups: int
    filters: int  # register tiles side by side in the output channels of a group
    outputs: int  # channels of a group in those tiles
    pixels: int  # of an output channel
    lines: int  # of the output; where it has only one, each tile counts as a line
    width: int  # pixels of a line
    across: int  # tiles in a line
    x_image: int  # from an image, or a group of one, to the next
    x_ld: int  # from a pixel of a tile to the next
    x_term: int  # from a term of a tap to the next
    out_image: int
    vector_ld: int  # from a vector's channels to the next one's, in the output or the band
    out_ld: int
    block: int  # the weights of a block of input channels: of a filter tile they follow each other
    chunk: int  # blocks of input channels that all pixels of a band pass together
    flush: int  # blocks whose terms are added up on their own, which bounds the rounding error
    band: int  # lines, those of an image after those of the one before
    together: int  # filter tiles that pass a band one after the other
    low: float
    high: float


def convolve(start, workers, shape, arrays, tables, launch):
    """out = min(max(bias + Σ weights · x + residual, low), high)"""
    each_worker(start, workers, _convolve, (shape, arrays, tables, launch))


@inner
def _convolve(worker, workers, shape, arrays, tables, launch):
    """The worker's part of all lines of all filters, so that it reads the weights of most filters alone."""
    x, weights, bias, residual, band, out = arrays
    own = pointer(out)
    if band.size > 0:  # a band for each worker: the others have nothing to do
        size = launch.vector_ld * vectors_of(shape)
        workers = min(workers, band.size // size)
        own = pointer(band[min(worker, workers - 1) * size :])
    blocks, filters, lines = len(tables.blocks) // 2, launch.groups * launch.filters, launch.images * launch.lines
    some = Arrays(pointer(x), pointer(weights), pointer(bias), pointer(residual), own, pointer(out))
    places = Tables(pointer(tables.tiles), pointer(tables.taps), pointer(tables.blocks))
    at_once = launch.together * lines  # lines of filter tiles: what is shared out
    begin, end = share(filters * lines, min(worker, workers), workers, 1)
    for index in range(begin // at_once, (end + at_once - 1) // at_once):
        tiles = index * launch.together, min((index + 1) * launch.together, filters)
        count, before = tiles[1] - tiles[0], index * at_once
        first = min((max(begin - before, 0) + count - 1) // count, lines)
        last = min((end - before + count - 1) // count, lines)
        for top in range(first, last, launch.band):
            area = top, min(top + launch.band, last)
            for tile in range(tiles[0], tiles[1]):
                _band(shape, some, places, launch, tile, area, (blocks, residual.size > 0, band.size > 0))


@inner
def _band(shape, arrays, tables, launch, filters, lines, how):
    """All sums of a filter tile at a band of lines; how: blocks, whether there is a residual, and a band."""
    (blocks, with_residual, by_band), lane = how, lanes(arrays.x)
    group, tile = divmod(filters, launch.filters)
    for block in range(0, blocks, launch.chunk):
        chunk = block, min(block + launch.chunk, blocks)
        for index in range(lines[0] * launch.across, lines[1] * launch.across):
            n, place = divmod(index, launch.lines * launch.across)
            image = n * launch.groups + group
            out = image * launch.out_image + tile * vectors_of(shape) * launch.vector_ld
            if by_band:
                out = (n * launch.lines - lines[0]) * launch.width * lane
            at = image * launch.x_image, filters * blocks * launch.block, out, filters * vectors_of(shape) * lane
            tile_of(shape, arrays, tables, launch, place, at, (chunk, blocks, with_residual))
    if by_band:
        for v in range(vectors_of(shape)):
            channel = (tile * vectors_of(shape) + v) * lane
            _from_band(arrays, launch, v, group, channel, min(lane, launch.outputs - channel), lines)


@inner
def _from_band(arrays, launch, v, group, channel, channels, lines):
    """Copy some channels, one vector of a band, to where they belong in (N, C, H, W)."""
    lane, line = lanes(arrays.band), lines[0]
    while line < lines[1] and channels > 0:
        n, row = divmod(line, launch.lines)
        some = min(launch.lines - row, lines[1] - line)
        pixels = min((row + some) * launch.width, launch.pixels) - row * launch.width
        i = v * launch.vector_ld + (line - lines[0]) * launch.width * lane
        j = (n * launch.groups + group) * launch.out_image + channel * launch.pixels + row * launch.width
        transpose_matrix(arrays.band, i, lane, arrays.out, j, launch.pixels, pixels, channels)
        line += some


@partial(inner, forceinline=True)
def tile_of(shape, arrays, tables, launch, tile_index, at, blocks):
    """Add a chunk of blocks to one tile.

    at: where its image, weights, output plane and biases begin; blocks: the chunk, how many blocks there are, and
    whether a residual is added.
    """
    (x, weights, bias, residual, out, _), (tiles, taps, starts), (chunk, count, rest) = arrays, tables, blocks
    line = tile_index * TILE
    o, pixels, ld = at[2] + tiles[line + 1], tiles[line + 10], out_ld_of(shape, launch.out_ld)
    plane = launch.vector_ld
    begun, pending = chunk[0] > 0, 0
    tile = zeros_of(shape, x) if begun else channels_of(shape, bias, at[3])
    # What is asked for is as far ahead as the next chunk's weights, a quarter of its lines for each tile.
    x_ld = x_ld_of(shape, launch.x_ld)
    steps = x_ld, launch.x_term, launch.chunk * launch.block + tile_index % UNROLL * vectors_of(shape) * lanes(x)
    prefetch_pixels(tile, out, o, ld, plane)
    for block in range(chunk[0], chunk[1]):
        if pending == launch.flush:
            if begun:
                tile = load_add_pixels(tile, out, o, ld, plane, pixels)
            store_pixels(tile, out, o, ld, plane, pixels)
            tile, begun, pending = zeros_of(shape, x), True, 0
        i, j, most = at[0] + tiles[line] + starts[2 * block], at[1] + block * launch.block, starts[2 * block + 1]
        tile = _all_pixels(shape, tile, x, i, weights, j, taps, (tiles[line + 2], tiles[line + 3]), most, steps)
        tile = _but_the_first(shape, tile, x, i, weights, j, taps, (tiles[line + 4], tiles[line + 5]), most, steps)
        tile = _but_the_last(shape, tile, x, i, weights, j, taps, (tiles[line + 6], tiles[line + 7]), most, steps)
        tile = _some_pixels(shape, tile, x, i, weights, j, taps, (tiles[line + 8], tiles[line + 9]), most, steps)
        pending += 1
    if begun:
        tile = load_add_pixels(tile, out, o, ld, plane, pixels)
    if chunk[1] == count:
        if rest:
            tile = load_add_pixels(tile, residual, o, ld, plane, pixels)
        if launch.low > -np.inf or launch.high < np.inf:
            tile = clamp(tile, launch.low, launch.high)
    store_pixels(tile, out, o, ld, plane, pixels)


def _over_taps(above, below):
    @partial(inner, forceinline=True)
    def add_up(shape, tile, x, x_at, weights, w_at, taps, some, most, steps):
        """Add some taps, which meet all pixels but `above` first and `below` last ones."""
        (x_ld, x_term, ahead), step = steps, vectors_of(shape) * lanes(x)
        if most == 1:  # no loop over the terms of a tap
            for tap in range(some[0], some[1]):
                i, j = x_at + taps[tap * TAP], w_at + taps[tap * TAP + 1]
                tile = fma_pixels(shape, tile, x, i, x_ld, weights, j, above, below)
            return tile
        for tap in range(some[0], some[1]):
            i, j, terms = x_at + taps[tap * TAP], w_at + taps[tap * TAP + 1], min(taps[tap * TAP + 2], most)
            for c in range(0, terms - UNROLL + 1, UNROLL):
                a, b = i + c * x_term, j + c * step
                prefetch_line(weights, b + ahead)
                prefetch_line(weights, b + ahead + lanes(x))
                tile = fma_pixels(shape, tile, x, a, x_ld, weights, b, above, below)
                tile = fma_pixels(shape, tile, x, a + x_term, x_ld, weights, b + step, above, below)
                tile = fma_pixels(shape, tile, x, a + 2 * x_term, x_ld, weights, b + 2 * step, above, below)
                tile = fma_pixels(shape, tile, x, a + 3 * x_term, x_ld, weights, b + 3 * step, above, below)
            for c in range(terms // UNROLL * UNROLL, terms):
                tile = fma_pixels(shape, tile, x, i + c * x_term, x_ld, weights, j + c * step, above, below)
        return tile

    return add_up


_all_pixels, _but_the_first, _but_the_last = _over_taps(0, 0), _over_taps(1, 0), _over_taps(0, 1)


@partial(inner, forceinline=True)
def _some_pixels(shape, tile, x, x_at, weights, w_at, taps, some, most, steps):
    """Add some taps, which meet the pixels that their lines say."""
    (x_ld, x_term, _), step = steps, vectors_of(shape) * lanes(x)
    for tap in range(some[0], some[1]):
        i, j, terms = x_at + taps[tap * TAP], w_at + taps[tap * TAP + 1], min(taps[tap * TAP + 2], most)
        first, last = taps[tap * TAP + 3], taps[tap * TAP + 4]
        for c in range(terms):
            tile = fma_some_pixels(shape, tile, x, i + c * x_term, x_ld, weights, j + c * step, first, last)
    return tile
