"""conv2d and its gradient for the input where images are small: the taps that fall on padding are left out.

Of the multiply-adds of a 3×3 kernel at 7×7, 18 % are by the zeros around the image. Here the images of a batch lie
innermost: then a strip of B is a few pixels of all of them, and a tap that these pixels miss is no row of it. Pixels at
one side of the image follow each other, because they miss the same taps. The gradient is the same sum, taps in reverse.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import literal_unroll

from jitconv.variants.simd import (
    MR,
    NR_VECTORS,
    accumulate,
    copy_vector,
    fma_outer,
    lanes,
    load_add,
    prefetch,
    store,
    zeros,
)
from jitconv.variants.tiled.product import (
    HEIGHTS,
    KC,
    NC,
    NONE,
    ONE,
    SHORT_BLOCK,
    block_of,
    finite,
    inner,
    share,
    steps,
    tile_height,
    transpose_matrix,
)
from jitconv.variants.tiled.relu import relu_at
from jitconv.variants.tiled.workers import each_worker

MANY = 64  # channels and filters, from which on the images are worth turning
SMALL = 400  # pixels of an image: of more, too few lie at its sides


class Kernels(NamedTuple):
    """A[m, (c, t)] = numbers[m · ld + c · apart + taps[t]], with M rows."""

    numbers: Any
    taps: Any
    ld: int
    apart: int
    M: int


class Window(NamedTuple):
    """The taps of a kernel, and the zeros around the image that it moves over."""

    size: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


class Strips(NamedTuple):
    """A line for each strip of B, whose rows are (c, t) for each channel c and each tap t that it meets."""

    taps: Any  # how many it meets
    places: Any  # where each of them begins in a channel of the images
    terms: Any  # where its terms lie in A, those of a few channels: they are added up on their own
    runs: Any  # how many runs of numbers make up a row
    pieces: Any  # the place of each in a channel, that in the row, and its length


class Room(NamedTuple):
    """What is in use: some strips of B, and sums of a few rows of C between blocks of their terms."""

    strips: Any
    kept: Any
    ones: Any


def conv2d(team, workers, relu, x, weight, bias, stride, padding, dilation, out):
    """z = W · (pixels of a batch) + b, with `relu` max(0, z); False for what does not suit, or a weight not finite."""
    if not (suits(x, weight, stride, padding, out.shape[2:]) and finite(weight)):
        return False
    C_out, C, K_h, K_w = weight.shape
    area, groups = K_h * K_w, x.shape[1] // C
    kernels = Kernels(weight.reshape(-1), steps(area, NONE, ONE), C * area, area, C_out // groups)
    each_worker(team, workers, _convolve, (relu, x, kernels, bias, Window((K_h, K_w), padding, dilation), out))
    return True


def conv2d_grad_input(team, workers, grad, weight, stride, padding, dilation, out):
    """∂x = Wᵀ · (pixels of a batch of ∂z); False for what does not suit, or a weight not finite."""
    if not (suits(out, weight, stride, padding, grad.shape[2:]) and finite(weight)):
        return False
    _, C, K_h, K_w = weight.shape
    area, around = K_h * K_w, ((K_h - 1) * dilation[0] - padding[0], (K_w - 1) * dilation[1] - padding[1])
    kernels = Kernels(weight.reshape(-1), steps(area, area - ONE, -ONE), area, C * area, C)
    start = np.zeros(out.shape[1], out.dtype)
    each_worker(team, workers, _convolve, (False, grad, kernels, start, Window((K_h, K_w), around, dilation), out))
    return True


@inner
def suits(x, weight, stride, padding, size):
    """Whether leaving out taps pays: many filters of small images, a batch of them, and padding within a kernel."""
    F, C, K_h, K_w = weight.shape
    if C < MANY or F // (x.shape[1] // C) < MANY or K_h * K_w > SHORT_BLOCK or stride != (1, 1):
        return False
    small = 4 * x.shape[0] >= lanes(x) and size[0] * size[1] <= SMALL
    return small and 0 < padding[0] < K_h and 0 < padding[1] < K_w


@inner
def _even(total, most):
    """The size of even parts of a total, of at most so many."""
    parts = (total + most - 1) // most
    return (total + parts - 1) // parts


@inner
def _convolve(worker, workers, relu, x, kernels, start, window, out):
    """Compute the worker's part of the channels of all images."""
    (N, channels, H, W), (_, C_out, H_out, W_out) = x.shape, out.shape
    numbers, taps, row, apart, M = kernels
    rows, step, groups = share(M, worker, workers, MR), NR_VECTORS * lanes(x), C_out // M
    if rows[0] == rows[1]:
        return
    C, images, source, result = channels // groups, _even(N, step), x.reshape(-1), out.reshape(-1)
    order = _in_order(window, (H, W), (H_out, W_out))
    strips = _divide(order, images, window, (H, W), W_out, kernels, block_of(C * taps.size), step)
    (top, left), width = window.padding, W + 2 * window.padding[1]
    plane, ld = (H + 2 * top) * width * images, strips.taps.size * step
    turned, z = np.zeros(C * plane, x.dtype), np.empty(M * ld, x.dtype)
    room = Room(np.empty(KC * NC, x.dtype), np.empty(MR * NC, x.dtype), np.ones(step, x.dtype))
    for first in range(0, N, images):
        count = min(images, N - first)
        for g in range(groups):
            for c in range(C):
                for line in range(H):
                    i = ((first * channels + g * C + c) * H + line) * W
                    at = c * plane + ((line + top) * width + left) * images
                    transpose_matrix(source[i:], count, W, channels * H * W, turned[at:], images)
            part, m = numbers[g * numbers.size // groups :], g * M
            _multiply(Kernels(part, taps, row, apart, M), rows, strips, turned, (C, plane), z, start[m:], room)
            if relu:
                for i in range(rows[0] * ld, rows[1] * ld):
                    z[i] = relu_at(z, i)
            _turn_back(z, ld, rows, order, images, result[(first * C_out + m) * order.size :], count, C_out)


@inner
def _in_order(window, size, out_size):
    """The pixels of the output, those that miss the same taps side by side: inside, left, above, right, below."""
    (K_h, K_w), (p_h, p_w), (d_h, d_w) = window
    order, count = np.empty(out_size[0] * out_size[1], np.int64), 0
    bottom, right = size[0] + p_h - (K_h - 1) * d_h, size[1] + p_w - (K_w - 1) * d_w
    for side in range(5):
        for line in range(out_size[0]):
            for col in range(out_size[1]):
                if side == (2 if line < p_h else 4 if line >= bottom else 1 if col < p_w else 3 if col >= right else 0):
                    order[count] = line * out_size[1] + col
                    count += 1
    return order


@inner
def _divide(order, images, window, size, W_out, kernels, depth, step):
    """Divide the columns, the images of each pixel in order, into strips; `depth` terms are added up on their own."""
    area, width, columns = kernels.taps.size, size[1] + 2 * window.padding[1], order.size * images
    count, block, K_w = (columns + step - 1) // step, depth // area, window.size[1]
    taps, runs, places = np.empty(count, np.int64), np.empty(count, np.int64), np.empty((count, area), np.int64)
    terms, pieces = np.empty((count, block * area), np.int64), np.empty((count, step, 3), np.int64)
    for s in range(count):
        begin, end = s * step, min((s + 1) * step, columns)
        taps[s] = _met(order[begin // images : (end - 1) // images + 1], window, size, W_out, places[s])
        runs[s] = _runs(order, images, (begin, end), W_out, width, pieces[s])
        for k in range(block * taps[s]):
            terms[s, k] = k // taps[s] * kernels.apart + kernels.taps[places[s, k % taps[s]]]
        for k in range(taps[s]):
            i, j = places[s, k] // K_w * window.dilation[0], places[s, k] % K_w * window.dilation[1]
            places[s, k] = (i * width + j) * images
    return Strips(taps, places, terms, runs, pieces)


@inner
def _met(pixels, window, size, W_out, taps):
    """List the taps that are on the image for some of these pixels of the output; return how many."""
    (K_h, K_w), (p_h, p_w), (d_h, d_w) = window
    count = 0
    for tap in range(K_h * K_w):
        for pixel in pixels:
            line, col = pixel // W_out + tap // K_w * d_h - p_h, pixel % W_out + tap % K_w * d_w - p_w
            if 0 <= line < size[0] and 0 <= col < size[1]:
                taps[count] = tap
                count += 1
                break
    return count


@inner
def _runs(order, images, columns, W_out, width, table):
    """Fill a table of the runs of numbers in a strip: the place of each in a channel, that in a row, and its length."""
    count, j = 0, columns[0]
    while j < columns[1]:
        pixel, n = order[j // images], j % images
        place, run = (pixel // W_out * width + pixel % W_out) * images + n, min(images - n, columns[1] - j)
        if count > 0 and table[count - 1, 0] + table[count - 1, 2] == place:
            table[count - 1, 2] += run
        else:
            table[count, 0], table[count, 1], table[count, 2] = place, j - columns[0], run
            count += 1
        j += run
    return count


@inner
def _multiply(kernels, rows, strips, turned, planes, z, start, room):
    """z[m, j] = start[m] + Σ_k A[m, k] · B[k, j] for m of rows."""
    (C, plane), count, area = planes, strips.taps.size, strips.places.shape[1]
    block = strips.terms.shape[1] // area
    chunk, at_once = KC // (block * area) * block, _even(count, NC // (NR_VECTORS * lanes(z)))
    for first in range(0, count, at_once):
        some = first, min(first + at_once, count)
        for c in range(0, C, chunk):
            channels = c, min(c + chunk, C)
            _copy_strips(strips, some, channels, plane, turned, room.strips)
            m = rows[0]
            while m < rows[1]:
                height = tile_height(rows[1] - m)
                last = m + (rows[1] - m) // height * height
                for each in literal_unroll(HEIGHTS):  # code of its own
                    if each == height:
                        _tiles(each, kernels, (m, last), strips, some, (channels, block), z, start, room)
                m = last


@inner
def _copy_strips(strips, some, channels, plane, turned, room):
    """Copy the rows of some strips that stand for some channels, side by side."""
    (taps, places, _, runs, pieces), lane, step = strips, lanes(room), NR_VECTORS * lanes(room)
    for s in range(some[0], some[1]):
        at, count = (s - some[0]) * KC * step, taps[s]
        for c in range(channels[0], channels[1]):
            for n in range(runs[s]):
                source, target, run = c * plane + pieces[s, n, 0], at + pieces[s, n, 1], pieces[s, n, 2]
                for t in range(count):
                    for v in range(0, run, lane):
                        copy_vector(turned, source + places[s, t] + v, room, target + t * step + v, min(lane, run - v))
            at += count * step


@inner
def _tiles(height, kernels, rows, strips, some, depth, z, start, room):
    """z[m, j] (+)= Σ_k A[m, k] · B[k, j], k of some channels, for the m of tiles of one height, in some strips.

    As in product.py, but each strip has its own terms. Copying rows of A that lie whole pages apart does not pay here.
    """
    (numbers, _, ld, apart, _), (taps, _, terms, _, _), (b, kept, ones) = kernels, strips, room
    (channels, block), step, length, flat = depth, NR_VECTORS * lanes(z), terms.shape[1], terms.reshape(-1)
    z_ld = taps.size * step
    for m in range(rows[0], rows[1], height):
        for c in range(channels[0], channels[1], block):
            n, a, last = min(block, channels[1] - c), m * ld + c * apart, c + block >= channels[1]
            for s in range(some[0], some[1]):
                count, i, at_kept, term = taps[s], m * z_ld + s * step, (s - some[0]) * height * step, s * length
                at, tile = ((s - some[0]) * KC + (c - channels[0]) * count) * step, zeros(z, height, NR_VECTORS)
                if last:
                    prefetch(tile, z, i, z_ld)
                for q in range(n * count):
                    tile = fma_outer(tile, numbers, flat[term + q] + a, ld, b, at + q * step, None)
                if c > channels[0]:
                    tile = load_add(tile, kept, at_kept, step)
                if not last:
                    store(tile, kept, at_kept, step, None)
                elif channels[0] == 0:
                    store(fma_outer(tile, start, m, 1, ones, 0, None), z, i, z_ld, None)
                else:
                    accumulate(tile, z, i, z_ld, None)


@inner
def _turn_back(z, ld, rows, order, images, out, count, channels):
    """Write rows of z, (pixels in order, images), to the channels of the images."""
    lane, apart = lanes(z), channels * order.size
    for m in range(rows[0], rows[1]):
        p = 0
        while p < order.size:
            run = 1  # of pixels side by side in the output
            while p + run < order.size and order[p + run] == order[p] + run:
                run += 1
            i, at = m * ld + p * images, m * order.size + order[p]
            if 2 * run >= lane:
                transpose_matrix(z[i:], run, count, images, out[at:], apart)
            else:
                for n in range(count):
                    for k in range(run):
                        out[at + n * apart + k] = z[i + k * images + n]
            p += run
