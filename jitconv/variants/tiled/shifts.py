"""Shifted copies of images, in which what one tap of a filter meets is one run of numbers.

What tap (i, j) meets is an image again: its lines begin at line i·d of the input, its columns at column j·d, both a
stride apart. `shift` copies a channel once for each j, in lines as wide as the output, so that another i is an offset
by whole lines. Small images lie side by side, large ones are cut into bands.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jitconv.variants.simd import NR_VECTORS, copy_down, copy_every_second, copy_vector, lanes
from jitconv.variants.tiled.product import NONE, clear, copy, inner, share, steps

AT_ONCE = 1024  # pixels of the output that are computed together, about


class Bands(NamedTuple):
    """The work of a worker: of each group, bands of lines of the images first … last − 1."""

    groups: int
    first: int
    last: int
    images: int  # together in a band, if one has all lines
    height: int
    lines: int  # of a band


class Band(NamedTuple):
    """Lines top, top + 1, … of the output, `lines` of them, of images n, n + 1, …, in the channels of group g."""

    g: int
    n: int
    images: int
    top: int
    lines: int


@inner
def bands_of(groups, images, height, width, pixels):
    """Bands of about so many pixels, for images [first, last) and an output of (height, width)."""
    bands = max(1, height * width // pixels)
    together = max(1, min(images[1] - images[0], pixels // max(1, height * width)))
    return Bands(groups, images[0], images[1], together, height, max(1, (height + bands - 1) // bands))


@inner
def count_of(bands):
    """How many bands there are."""
    each = (bands.height + bands.lines - 1) // bands.lines
    return bands.groups * ((bands.last - bands.first + bands.images - 1) // bands.images) * each


@inner
def band_at(bands, index):
    """Band number `index`."""
    each, batches = (bands.height + bands.lines - 1) // bands.lines, count_of(bands) // bands.groups
    n, top = bands.first + index % batches // each * bands.images, index % each * bands.lines
    return Band(index // batches, n, min(bands.images, bands.last - n), top, min(bands.lines, bands.height - top))


@inner
def shares(worker, workers, N, channels, step):
    """The images and channels of a worker: some of the images, or if they are few, some of the channels of each."""
    if workers <= N:
        return share(N, worker, workers, 1), (NONE, channels)
    return (NONE, N), share(channels, worker, workers, step)


class Planes(NamedTuple):
    """The layout of shifted copies, (C, phases, columns, images, lines, width): `columns` says where each begins.

    phases: the lines that leave one remainder, divided by the stride, lie together, as in a polyphase decomposition.
    """

    phases: int
    columns: Any
    images: int
    lines: int
    width: int


@inner
def planes_of(weight, conv, bands, width):
    """The planes of the input for a band of an output of this width."""
    reach, stride = (weight.shape[2] - 1) * conv.dilation[0], conv.stride[0]
    columns = steps(weight.shape[3], -conv.padding[1], conv.dilation[1])
    return Planes(min(stride, reach + 1), columns, bands.images, bands.lines + reach // stride, width)


@inner
def plane_size(planes):
    return planes.lines * planes.width


@inner
def total_size(channels, planes, like):
    """The numbers in all planes, and a register tile behind them that may be read."""
    copies = channels * planes.phases * planes.columns.size * planes.images
    return copies * plane_size(planes) + NR_VECTORS * lanes(like)


@inner
def tap_offsets(weight, conv, planes):
    """For each tap (c, i, j) of a filter: where in the planes the pixels begin that it meets."""
    _, C, K_h, K_w = weight.shape
    offsets = steps(C * K_h * K_w, NONE, NONE)
    for tap in range(offsets.size):
        line, phase = divmod(tap // K_w % K_h * conv.dilation[0], conv.stride[0])
        plane = (tap // (K_h * K_w) * planes.phases + phase) * K_w + tap % K_w
        offsets[tap] = plane * planes.images * plane_size(planes) + line * planes.width
    return offsets


@inner
def shift_images(x, band, C, line, step, planes, out):
    """Copy the C channels of a band's group and images to the planes; their lines begin at `line` of the input."""
    for n in range(band.images):
        shift(x[band.n + n, band.g * C : (band.g + 1) * C], line, step, planes, out, n)


@inner
def shift(image, line, step, planes, out, index):
    """Copy an image, (C, H, W), to the planes of number `index`, zeros around it.

    Line m, column q of plane (c, a, t) is image[c, line + a + m·step[0], columns[t] + q·step[1]].
    """
    (C, H, W), width, size = image.shape, planes.width, plane_size(planes)
    pixels, dense = image.reshape(-1), step == (1, 1) and width == W  # then lines follow each other in both
    target = index * size
    for channel in range(C * planes.phases):
        c, a = channel // planes.phases, channel % planes.phases
        top, bottom = inside(line + a, step[0], H, planes.lines)
        for column in planes.columns:
            source = (c * H + line + a) * W + column
            left, right = inside(column, step[1], W, width)
            clear(out, target, target + top * width)
            clear(out, target + bottom * width, target + size)
            if dense and top < bottom:
                length = (bottom - top - 1) * width + right - left
                copy(pixels, source + top * width + left, out, target + top * width + left, length)
            else:
                lines, first = (bottom - top, step[0] * W, width), source + top * step[0] * W
                _copy_lines(pixels, first, step[1], out, target + top * width, lines, (left, right))
            for q in range(left + width - right):  # the columns off the image, each down all lines
                at = target + q if q < left else target + q - left + right
                for m in range(top, bottom):
                    out[at + m * width] = 0
            target += planes.images * size


@inner
def inside(first, step, size, count):
    """Which of the numbers first, first + step, …, `count` of them, are in range(size)."""
    start = min(count, max(0, (step - 1 - first) // step))
    return start, max(start, min(count, (size - 1 - first) // step + 1))


@inner
def tap_columns(weight_width, stride, padding, dilation, W, W_out, width):
    """For each run of `width` outputs of a line, and each tap: the column of the input that the first output meets.

    And the first and last + 1 of the run whose column is on the image of width W.
    """
    columns = np.empty(((W_out + width - 1) // width * weight_width, 3), np.int64)
    for index in range(columns.shape[0]):
        run, j = index // weight_width * width, index % weight_width
        columns[index, 0] = run * stride - padding + j * dilation
        columns[index, 1:] = inside(columns[index, 0], stride, W, min(width, W_out - run))
    return columns


@partial(inner, forceinline=True)
def _copy_lines(pixels, source, step, out, target, lines, columns):
    """out[target + m · out_ld + q] = pixels[source + m · ld + q · step] for left ≤ q < right and m < count.

    lines: count, ld and out_ld; columns: left and right. A vector of all lines before the next.
    """
    (count, ld, out_ld), (left, right), vlen = lines, columns, lanes(out)
    if step == 1 and right - left >= vlen:
        for v in range(left, right, vlen):
            q = min(v, right - vlen)  # of the last vector some numbers a second time: cheaper than a mask
            copy_down(pixels, source + q, ld, out, target + q, out_ld, count)
        return
    for q in range(left, right, vlen if step <= 2 else 1):
        for m in range(count):
            i, j = source + m * ld + q * step, target + m * out_ld + q
            if step == 1:
                copy_vector(pixels, i, out, j, right - q)
            elif step == 2:
                copy_every_second(pixels, i, out, j, right - q)
            else:
                out[j] = pixels[i]
