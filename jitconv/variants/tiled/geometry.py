"""Which taps of a filter meet which pixels of an image, as tables for direct.py: made once, when a call is bound."""

import itertools
from typing import Any, NamedTuple

import numpy as np

from jitconv.variants.tiled.direct import Tables

MOST = 0.4  # of a tile's pixels: with so many, the others are computed too, and not stored: a branch costs more


class Axis(NamedTuple):
    """The lines, or columns, of an output: number q is at first + q·spacing, and meets offset + q·step of the input.

    taps: those of the filter's that meet it at all, and for each its offset; size: the input's.
    """

    length: int
    first: int
    spacing: int
    step: int
    taps: tuple[int, ...]
    offsets: tuple[int, ...]
    size: int


def forward(size: int, out_size: int, K: int, stride: int, padding: int, dilation: int) -> Axis:
    """The axis of a convolution's output."""
    taps = tuple(range(K))
    return Axis(out_size, 0, 1, stride, taps, tuple(k * dilation - padding for k in taps), size)


def polyphase(size: int, grad_size: int, K: int, stride: int, padding: int, dilation: int) -> list[Axis]:
    """The axes of the gradient for an input of `size`, one a phase: lines a stride apart meet the same taps of ∂z."""
    axes = []
    for phase in range(stride):
        first = (phase - padding) % stride
        taps = tuple(k for k in range(K) if k * dilation % stride == phase)
        offsets = tuple((first + padding - k * dilation) // stride for k in taps)
        axes.append(Axis(len(range(first, size, stride)), first, stride, 1, taps, offsets, grad_size))
    return axes


def met(axis: Axis, start: int, count: int) -> list[tuple[int, int]]:
    """For each tap: the first and last + 1 of `count` pixels from `start` on that meet it on the image."""
    ranges = []
    for offset in axis.offsets:
        at = offset + start * axis.step
        first = min(count, max(0, -(at // axis.step)))
        last = max(first, min(count, (axis.size - 1 - at) // axis.step + 1))
        ranges.append((first, last))
    return ranges


class Layout(NamedTuple):
    """Distances between numbers of x and of the weights; terms: of a tap.

    channels: where each input channel begins in x and in the weights, of those whose taps are in the tables.
    """

    line: int
    pixel: int
    terms: int
    tap: int  # weights
    channels: tuple[tuple[int, int], ...] = ((0, 0),)


def tables(rows: Axis, columns: Axis, pixels: int, layout: Layout, blocks: Any, out: tuple[int, int]) -> Tables:
    """The tables of an image's tiles, of at most so many pixels; out: from an output line, and pixel, to the next."""
    across = -(-columns.length // pixels)
    width = -(-columns.length // across) if across else 0
    taps: list[tuple[int, ...]] = []
    # Where the taps of each kind begin, and how many are in a row of the filter, twice for each tile: those of
    # its own pixels, and those that may read on into the next line, for pixels that are not stored.
    starts: list[list[tuple[int, int]]] = []
    reaches = []  # of each tile, the last column that a pixel which is not stored reads
    for t in range(across):
        count = min(width, columns.length - t * width)
        ranges = met(columns, t * width, count)
        wider = [(first, pixels if last == count else last) for first, last in ranges]
        reaches.append((t * width + pixels - 1) * columns.step + max(columns.offsets, default=0))
        for exact in (ranges, wider if MOST * pixels <= count else ranges):
            starts.append([])
            for kind in _kinds(exact, pixels):
                starts[-1].append((len(taps), len(layout.channels) * len(kind)))
                for i, channel, tap in itertools.product(range(len(rows.taps)), layout.channels, kind):
                    taps.append(_line(i, rows, columns, layout, channel, *tap))
    tiles = []
    for q in range(rows.length):
        inside = [i for i, (first, last) in enumerate(met(rows, q, 1)) if first < last]
        i0, i1 = (inside[0], inside[-1] + 1) if inside else (0, 0)
        last_line = max((rows.offsets[i] + q * rows.step for i in inside), default=0)
        for t in range(across):
            at = q * rows.step * layout.line + t * width * columns.step * layout.pixel
            to = (rows.first + q * rows.spacing) * out[0] + (columns.first + t * width * columns.spacing) * out[1]
            on_image = last_line * columns.size + reaches[t] < rows.size * columns.size
            some = [start + i * each for start, each in starts[2 * t + on_image] for i in (i0, i1)]
            tiles.append((at, to, *some, min(width, columns.length - t * width)))
    as_numbers = (np.array(lines, np.int64).reshape(-1) for lines in (tiles, taps, blocks))
    return Tables(*as_numbers)


def _kinds(ranges: Any, pixels: int) -> list[list[tuple[int, int, int]]]:
    """The taps of a row that meet all pixels, all but the first, all but the last, and some: with their pixels."""
    kinds: list[list[tuple[int, int, int]]] = [[], [], [], []]
    for j, (first, last) in enumerate(ranges):
        if first < last:
            kinds[{(0, pixels): 0, (1, pixels): 1, (0, pixels - 1): 2}.get((first, last), 3)].append((j, first, last))
    return kinds


def _line(
    i: int, rows: Axis, columns: Axis, layout: Layout, channel: tuple[int, int], j: int, first: int, last: int
) -> tuple[int, ...]:
    at = rows.offsets[i] * layout.line + columns.offsets[j] * layout.pixel
    weights = (i * len(columns.taps) + j) * layout.tap
    return channel[0] + at, channel[1] + weights, layout.terms, first, last
