"""conv2d and its gradients as products of matrices in which a row of B is the image itself, shifted.

An image is copied once, with its zero margin, into planes: for stride s, plane (a, b) holds the rows a, a + s, … and
the columns b, b + s, … Each tap of the kernel then reads one plane, shifted by a constant; and the whole output is
one flat row of H_out lines as wide as a plane (`pitch`), whose last columns are computed in vain and left out.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from jitconv.variants.simd import VECTORS, lanes
from jitconv.variants.tiled.dots import dot_products
from jitconv.variants.tiled.product import copy, inner, pack, product

BLOCK = 1 << 15  # numbers of the output that are computed before they are copied out: they fit the second-level cache
LONG_SUM = 1024  # numbers of the output that are summed up together in the gradient of the weights


class Planes(NamedTuple):
    """The layout of an image's planes: phases (a, b), and the lines and pitch of each plane."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    phases: tuple[int, int]
    lines: int
    pitch: int


@inner
def layout(weight, size, geometry):
    """The planes for a kernel and an output of `size` lines and columns; geometry: stride, padding, dilation."""
    stride, padding, dilation = geometry
    reach_h, reach_w = (weight.shape[2] - 1) * dilation[0], (weight.shape[3] - 1) * dilation[1]
    phases = min(stride[0], reach_h + 1), min(stride[1], reach_w + 1)
    return Planes(stride, padding, dilation, phases, size[0] + reach_h // stride[0], size[1] + reach_w // stride[1])


@inner
def plane_size(planes):
    return planes.lines * planes.pitch


@inner
def padded_length(length, array):
    """`length`, and room for a whole register tile behind it."""
    step = VECTORS * lanes(array)
    return (length + step - 1) // step * step + step


@inner
def lines_at_once(rows, pitch, lines):
    """How many output lines of all channels fit BLOCK."""
    return min(lines, max(1, BLOCK // (rows * pitch)))


@inner
def fill(image, planes, out, images, index):
    """Copy an image, (C, H, W), into planes (C, a, b, images, line, column) at `index`, zeros around it."""
    C, H, W = image.shape
    s_h, s_w = planes.stride
    zero = out.dtype.type(0)
    pixels = image.reshape(-1)
    for c in range(C):
        for a in range(planes.phases[0]):
            for b in range(planes.phases[1]):
                plane = (c * planes.phases[0] + a) * planes.phases[1] + b
                start = (plane * images + index) * plane_size(planes)
                before = planes.padding[1] - b
                first = min(planes.pitch, max(0, (before + s_w - 1) // s_w))
                last = max(first, min(planes.pitch, (W - 1 + before) // s_w + 1))
                for line in range(planes.lines):
                    row = out[start + line * planes.pitch : start + (line + 1) * planes.pitch]
                    m = line * s_h + a - planes.padding[0]
                    if m < 0 or m >= H:
                        row[:] = 0
                        continue
                    row[:first] = 0
                    row[last:] = 0
                    source = (c * H + m) * W + first * s_w - before
                    if s_w == 1:
                        copy(pixels, source, row, first, last - first, zero)
                    else:
                        for q in range(last - first):
                            row[first + q] = pixels[source + q * s_w]


@inner
def tap_offsets(weight, planes, images):
    """For each tap (c, i, j) of a kernel: where its plane of the first of `images` begins, and its shift in it."""
    _, C, K_h, K_w = weight.shape
    s_h, s_w = planes.stride
    offsets = np.empty(C * K_h * K_w, np.int64)
    at = 0
    for c in range(C):
        for i in range(K_h):
            for j in range(K_w):
                y, x = i * planes.dilation[0], j * planes.dilation[1]
                plane = (c * planes.phases[0] + y % s_h) * planes.phases[1] + x % s_w
                offsets[at] = plane * images * plane_size(planes) + y // s_h * planes.pitch + x // s_w
                at += 1
    return offsets


@inner
def empty_planes(channels, planes, images, like):
    """Room for the planes of some images, and zeros behind them that a register tile may read."""
    numbers = channels * planes.phases[0] * planes.phases[1] * images * plane_size(planes)
    return np.zeros(padded_length(numbers, like), like.dtype)


def conv2d(workers, x, weight, bias, stride, padding, dilation, out):
    """z = W · (shifted images) + b, image by image; False if a weight is not finite, and met the zero margin."""
    N = x.shape[0]
    C_out, C_group = weight.shape[:2]
    groups = x.shape[1] // C_group
    filters = C_out // groups
    panels = np.empty(weight.size, weight.dtype)
    matrix = weight.reshape(C_out, weight.size // C_out)
    finite = True
    for g in range(groups):
        part = slice(g * filters, (g + 1) * filters)
        finite = pack(matrix[part], panels[g * filters * matrix.shape[1] :]) and finite
    if not finite:
        return False
    items = N * groups
    for worker in prange(workers):
        begin, end = worker * items // workers, (worker + 1) * items // workers
        _convolve(begin, end, x, weight, panels, bias, (stride, padding, dilation), out)
    return True


@inner
def _convolve(first, last, x, weight, panels, bias, geometry, out):
    planes = layout(weight, out.shape[2:], geometry)
    C_out, C_group = weight.shape[:2]
    groups = x.shape[1] // C_group
    F, K = C_out // groups, weight.size // C_out
    H_out, W_out = out.shape[2:]
    pitch = planes.pitch
    image = empty_planes(C_group, planes, 1, x)
    lines = lines_at_once(F, pitch, H_out)
    z_pitch = padded_length(lines * pitch, x)
    z = np.empty(F * z_pitch, x.dtype)
    flat = out.reshape(-1)
    offsets = tap_offsets(weight, planes, 1)
    for item in range(first, last):
        n, g = item // groups, item % groups
        fill(x[n, g * C_group : (g + 1) * C_group], planes, image, 1, 0)
        for top in range(0, H_out, lines):
            rows = min(lines, H_out - top)
            columns = (rows - 1) * pitch + W_out
            product(panels[g * F * K :], F, image[top * pitch :], offsets, columns, z, z_pitch, False, True)
            for f in range(F):
                c_out = g * F + f
                plane = ((n * C_out + c_out) * H_out + top) * W_out
                for row in range(rows):
                    copy(z, f * z_pitch + row * pitch, flat, plane + row * W_out, W_out, bias[c_out])


def conv2d_grad_weight(workers, grad, x, stride, padding, dilation, out):
    """∂W = Σ_n ∂z · (shifted images)ᵀ; False if the result is not finite: a number met the margin's zeros."""
    N = x.shape[0]
    parts = np.zeros((workers, out.size), out.dtype)
    for worker in prange(workers):
        begin, end = worker * N // workers, (worker + 1) * N // workers
        _correlate(begin, end, grad, x, out, (stride, padding, dilation), parts[worker])
    flat = out.reshape(-1)
    check = flat.dtype.type(0)
    for i in range(flat.shape[0]):
        total = parts[0, i]
        for worker in range(1, workers):
            total += parts[worker, i]
        flat[i] = total
        check += total * 0
    return check == 0


@inner
def _correlate(begin, end, grad, x, weight, geometry, total):
    """Small images side by side, so that a sum is long enough to be worth its tile."""
    planes = layout(weight, grad.shape[2:], geometry)
    C_out, C_group = weight.shape[:2]
    groups = x.shape[1] // C_group
    F, K = C_out // groups, weight.size // C_out
    H_out, W_out = grad.shape[2:]
    images = max(1, min(end - begin, LONG_SUM // plane_size(planes)))
    image = empty_planes(C_group, planes, images, x)
    pitch = images * plane_size(planes)
    lines = np.zeros(F * pitch, x.dtype)
    offsets, rows_at = tap_offsets(weight, planes, images), np.arange(F) * pitch
    for g in range(groups):
        for first in range(begin, end, images):
            count = min(images, end - first)
            for n in range(count):
                fill(x[first + n, g * C_group : (g + 1) * C_group], planes, image, images, n)
                place = n * plane_size(planes)
                spread_lines(grad[first + n, g * F : (g + 1) * F], lines, place, pitch, planes.pitch)
            length = (count - 1) * plane_size(planes) + (H_out - 1) * planes.pitch + W_out
            dot_products(lines, rows_at, image, offsets, length, total[g * F * K :], K)


@inner
def spread_lines(image, out, place, size, pitch):
    """Copy channels, (C, H, W), into `out`, `size` apart from `place` on, their lines `pitch` apart."""
    C, H, W = image.shape
    pixels, zero = image.reshape(-1), out.dtype.type(0)
    for c in range(C):
        for m in range(H):
            copy(pixels, (c * H + m) * W, out, c * size + place + m * pitch, W, zero)


def conv2d_grad_input(workers, grad, weight, stride, padding, dilation, out):
    """Each plane of ∂x = its taps of Wᵀ · (shifted ∂z); False if a weight is not finite, and met the zero margin."""
    groups = out.shape[1] // weight.shape[1]
    panels = np.empty(weight.size, weight.dtype)
    if not _pack_phases(weight, groups, layout(weight, grad.shape[2:], (stride, padding, dilation)), panels):
        return False
    items = out.shape[0] * groups
    for worker in prange(workers):
        begin, end = worker * items // workers, (worker + 1) * items // workers
        _scatter(begin, end, grad, weight, panels, (stride, padding, dilation), out)
    return True


@inner
def phase_taps(weight, planes, a, b):
    """The taps (i, j) that read plane (a, b), and by how much each shifts it."""
    taps = np.empty((weight.shape[2] * weight.shape[3], 3), np.int64)
    count = 0
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            y, x = i * planes.dilation[0], j * planes.dilation[1]
            if y % planes.stride[0] == a and x % planes.stride[1] == b:
                taps[count] = i, j, y // planes.stride[0] * planes.pitch + x // planes.stride[1]
                count += 1
    return taps[:count]


@inner
def _pack_phases(weight, groups, planes, panels):
    """Write Wᵀ, (C_group, filters × taps) for each group and plane, as panels; return whether all of it is finite."""
    C_group, F = weight.shape[1], weight.shape[0] // groups
    finite, at = True, 0
    for g in range(groups):
        for a in range(planes.phases[0]):
            for b in range(planes.phases[1]):
                taps = phase_taps(weight, planes, a, b)
                T = taps.shape[0]
                if T == 0:
                    continue
                matrix = np.empty((C_group, F * T), weight.dtype)
                for f in range(F):
                    for t in range(T):
                        for c in range(C_group):
                            matrix[c, f * T + t] = weight[g * F + f, c, taps[t, 0], taps[t, 1]]
                finite = pack(matrix, panels[at:]) and finite
                at += matrix.size
    return finite


@inner
def _scatter(begin, end, grad, weight, panels, geometry, out):
    planes = layout(weight, grad.shape[2:], geometry)
    C_group = weight.shape[1]
    groups = out.shape[1] // C_group
    F = weight.shape[0] // groups
    margin = plane_size(planes)  # zeros before and behind each filter's gradient: no shift is longer
    size = padded_length(2 * margin, grad)
    lines = np.zeros(F * size, grad.dtype)
    at_once = lines_at_once(C_group, planes.pitch, planes.lines)
    z_pitch = padded_length(at_once * planes.pitch, grad)
    z = np.empty(C_group * z_pitch, grad.dtype)
    for item in range(begin, end):
        n, g = item // groups, item % groups
        image = out[n, g * C_group : (g + 1) * C_group]
        if planes.stride != (1, 1):
            image[:] = 0  # what no window reaches stays so
        spread_lines(grad[n, g * F : (g + 1) * F], lines, margin, size, planes.pitch)
        at = g * (weight.size // groups)
        for a in range(planes.phases[0]):
            for b in range(planes.phases[1]):
                taps = phase_taps(weight, planes, a, b)
                if taps.shape[0] == 0:
                    continue
                offsets = (np.arange(F).reshape(F, 1) * size + margin - taps[:, 2]).reshape(-1)
                for top in range(0, planes.lines, at_once):
                    rows = min(at_once, planes.lines - top)
                    source = lines[top * planes.pitch :]
                    product(panels[at:], C_group, source, offsets, rows * planes.pitch, z, z_pitch, False, True)
                    _write_plane(z, z_pitch, (a, b), top, rows, planes, image)
                at += C_group * offsets.shape[0]


@inner
def _write_plane(z, z_pitch, phase, top, rows, planes, image):
    """Copy some lines of plane (a, b) to the rows and columns of the image that it stands for, (C, H, W)."""
    C, H, W = image.shape
    s_h, s_w = planes.stride
    before = planes.padding[1] - phase[1]
    start = min(planes.pitch, max(0, (before + s_w - 1) // s_w))
    stop = max(start, min(planes.pitch, (W - 1 + before) // s_w + 1))
    pixels, zero = image.reshape(-1), z.dtype.type(0)
    for c in range(C):
        for row in range(rows):
            m = (top + row) * s_h + phase[0] - planes.padding[0]
            if m < 0 or m >= H:
                continue
            source, target = c * z_pitch + row * planes.pitch, (c * H + m) * W - before
            if s_w == 1:
                copy(z, source + start, pixels, target + start, stop - start, zero)
            else:
                for q in range(start, stop):
                    pixels[target + q * s_w] = z[source + q]
