"""Shifted copies of images, in which what one tap of a kernel meets is one run of numbers.

What tap (i, j) meets is an image again: its lines begin at line i·d of the input, its columns at column j·d, both a
stride apart. `shift` copies a channel once for each j, in lines as wide as the output, so that another i is an offset
by whole lines. Small images lie side by side, large ones are cut into bands.
"""

from typing import Any, NamedTuple

from jitconv.variants.simd import NR_VECTORS, copy_every_second, lanes
from jitconv.variants.tiled.product import NONE, clear, copy, inner, share

AT_ONCE = 1024  # pixels of the output that are computed together, about


class Geometry(NamedTuple):
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


class Planes(NamedTuple):
    """The layout of shifted copies, (C, phases, columns, images, lines, width): `columns` says where each begins."""

    phases: int
    columns: Any
    images: int
    lines: int
    width: int


@inner
def plane_size(planes):
    return planes.lines * planes.width


@inner
def total_size(channels, planes, like):
    """The numbers in all planes, and a register tile behind them that may be read."""
    return channels * planes.phases * planes.columns.size * planes.images * plane_size(planes) + NR_VECTORS * lanes(
        like
    )


@inner
def inside(first, step, size, count):
    """Which of the numbers first, first + step, …, `count` of them, are in range(size)."""
    start = min(count, max(0, (step - 1 - first) // step))
    return start, max(start, min(count, (size - 1 - first) // step + 1))


@inner
def shift(image, first, step, planes, out, index):
    """Copy an image, (C, H, W), to the planes of number `index`, zeros around it.

    Line m, column q of plane (c, a, t) is image[c, first + a + m·step[0], columns[t] + q·step[1]].
    """
    C, H, W = image.shape
    pixels, width, size = image.reshape(-1), planes.width, plane_size(planes)
    at, in_one = index * size, step == (1, 1) and width == W  # then lines that follow each other do so in both
    for c in range(C):
        for a in range(planes.phases):
            top, bottom = inside(first + a, step[0], H, planes.lines)
            for t in range(planes.columns.size):
                left, right = inside(planes.columns[t], step[1], W, width)
                clear(out, at, at + top * width)
                clear(out, at + bottom * width, at + size)
                if in_one and top < bottom:
                    source = (c * H + first + a + top) * W + planes.columns[t] + left
                    copy(pixels, source, out, at + top * width + left, (bottom - top - 1) * width + right - left)
                for m in range(top, bottom):
                    line, source = at + m * width, (c * H + first + a + m * step[0]) * W + planes.columns[t]
                    clear(out, line, line + left)
                    clear(out, line + right, line + width)
                    if in_one:
                        continue
                    if step[1] == 1:
                        copy(pixels, source + left, out, line + left, right - left)
                    elif step[1] == 2:
                        for q in range(left, right, lanes(out)):
                            copy_every_second(pixels, source + 2 * q, out, line + q, right - q)
                    else:
                        for q in range(left, right):
                            out[line + q] = pixels[source + q * step[1]]
                at += planes.images * size


@inner
def shift_images(images, first, count, channels, line, step, planes, out):
    """Copy some channels of images first, first + 1, … to the planes, side by side; their lines begin at `line`."""
    for n in range(count):
        shift(images[first + n, channels[0] : channels[1]], line, step, planes, out, n)


@inner
def blocking(N, lines, width, pixels):
    """How many images, and how many lines of each, have about so many pixels together."""
    bands = max(1, lines * width // pixels)
    return max(1, min(N, pixels // max(1, lines * width))), max(1, (lines + bands - 1) // bands)


@inner
def shares(worker, workers, N, channels, step):
    """The images and channels of a worker: some of the images, or if they are few, some of the channels of each."""
    if workers <= N:
        return share(N, worker, workers, 1), (NONE, channels)
    return (NONE, N), share(channels, worker, workers, step)
