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
def fill(image, planes, out):
    """Copy the channels of an image, (C, H, W), into planes (C, a, b, line, column), zeros outside the image."""
    C, H, W = image.shape
    s_h, s_w = planes.stride
    zero = out.dtype.type(0)
    pixels = image.reshape(-1)
    start = 0
    for c in range(C):
        for a in range(planes.phases[0]):
            for b in range(planes.phases[1]):
                before = planes.padding[1] - b
                first = max(0, (before + s_w - 1) // s_w)
                last = max(first, min(planes.pitch, (W - 1 + before) // s_w + 1))
                for line in range(planes.lines):
                    row = out[start : start + planes.pitch]
                    start += planes.pitch
                    m = line * s_h + a - planes.padding[0]
                    if m < 0 or m >= H or first >= planes.pitch:
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
    out[start:] = 0


@inner
def tap_offsets(weight, planes):
    """For each tap (c, i, j) of a kernel: where its plane begins, and its shift in it."""
    _, C, K_h, K_w = weight.shape
    s_h, s_w = planes.stride
    offsets = np.empty(C * K_h * K_w, np.int64)
    at = 0
    for c in range(C):
        for i in range(K_h):
            for j in range(K_w):
                y, x = i * planes.dilation[0], j * planes.dilation[1]
                plane = (c * planes.phases[0] + y % s_h) * planes.phases[1] + x % s_w
                offsets[at] = plane * plane_size(planes) + y // s_h * planes.pitch + x // s_w
                at += 1
    return offsets


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
    channels = C_group * planes.phases[0] * planes.phases[1] * plane_size(planes)
    image = np.empty(padded_length(channels, x), x.dtype)
    lines = lines_at_once(F, pitch, H_out)
    z_pitch = padded_length(lines * pitch, x)
    z = np.empty(F * z_pitch, x.dtype)
    flat = out.reshape(-1)
    offsets = tap_offsets(weight, planes)
    for item in range(first, last):
        n, g = item // groups, item % groups
        fill(x[n, g * C_group : (g + 1) * C_group], planes, image)
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
    groups = x.shape[1] // out.shape[1]
    items = N * groups
    parts = np.zeros((workers, out.size), out.dtype)
    for worker in prange(workers):
        begin, end = worker * items // workers, (worker + 1) * items // workers
        _correlate(begin, end, grad, x, out, (stride, padding, dilation), parts[worker])
    flat = out.reshape(-1)
    check = flat[0] * 0
    for i in range(flat.shape[0]):
        total = parts[0, i]
        for worker in range(1, workers):
            total += parts[worker, i]
        flat[i] = total
        check += total * 0
    return check == 0


@inner
def _correlate(first, last, grad, x, weight, geometry, total):
    planes = layout(weight, grad.shape[2:], geometry)
    C_out, C_group = weight.shape[:2]
    groups = x.shape[1] // C_group
    F, K = C_out // groups, weight.size // C_out
    H_out, W_out = grad.shape[2:]
    pitch = planes.pitch
    channels = C_group * planes.phases[0] * planes.phases[1] * plane_size(planes)
    image = np.empty(padded_length(channels, x), x.dtype)
    length = (H_out - 1) * pitch + W_out
    g_pitch = padded_length(length, x)
    lines = np.zeros(F * g_pitch, x.dtype)
    offsets, rows_at = tap_offsets(weight, planes), np.arange(F) * g_pitch
    for item in range(first, last):
        n, g = item // groups, item % groups
        fill(x[n, g * C_group : (g + 1) * C_group], planes, image)
        for f in range(F):
            for row in range(H_out):
                line, source = lines[f * g_pitch + row * pitch :], grad[n, g * F + f, row]
                for col in range(W_out):
                    line[col] = source[col]
        step = lanes(x)
        whole = (length + step - 1) // step * step  # zeros follow on the left, finite numbers on the right
        dot_products(lines, rows_at, image, offsets, whole, total[g * F * K :], K)


def conv2d_grad_input(workers, grad, weight, stride, padding, dilation, out):
    """Each plane of ∂x = its taps of Wᵀ · (shifted ∂z); False if a weight is not finite, and met the zero margin."""
    N = out.shape[0]
    C_out, C_group = weight.shape[:2]
    groups = out.shape[1] // C_group
    if not np.isfinite(weight.sum()):
        return False
    items = N * groups
    for worker in prange(workers):
        begin, end = worker * items // workers, (worker + 1) * items // workers
        _spread(begin, end, grad, weight, (stride, padding, dilation), out)
    return True


@inner
def _phase_taps(weight, g, F, a, b, planes, size):
    """The taps of phase (a, b) as a matrix (C_group, filters × taps), and where the gradient of each begins.

    Each filter's gradient stands `reach` zeros behind the beginning of its `size` numbers.
    """
    _, C_group, K_h, K_w = weight.shape
    s_h, s_w = planes.stride
    reach = (planes.lines - 1) * planes.pitch + planes.pitch
    matrix = np.empty((C_group, F * K_h * K_w), weight.dtype)
    offsets = np.empty(F * K_h * K_w, np.int64)
    k = 0
    for f in range(F):
        for i in range(K_h):
            for j in range(K_w):
                y, x = i * planes.dilation[0], j * planes.dilation[1]
                if y % s_h == a and x % s_w == b:
                    offsets[k] = f * size + reach - (y // s_h * planes.pitch + x // s_w)
                    for c in range(C_group):
                        matrix[c, k] = weight[g * F + f, c, i, j]
                    k += 1
    return matrix[:, :k], offsets[:k]


@inner
def _spread(first, last, grad, weight, geometry, out):
    planes = layout(weight, grad.shape[2:], geometry)
    C_out, C_group = weight.shape[:2]
    groups = out.shape[1] // C_group
    F = C_out // groups
    H_out, W_out = grad.shape[2:]
    H, W = out.shape[2:]
    pitch, s_h, s_w = planes.pitch, planes.stride[0], planes.stride[1]
    reach = planes.lines * pitch
    size = padded_length(reach + plane_size(planes), grad)
    lines = np.zeros(F * size, grad.dtype)
    at_once = lines_at_once(C_group, pitch, planes.lines)
    z_pitch = padded_length(at_once * pitch, grad)
    z = np.empty(C_group * z_pitch, grad.dtype)
    panels = np.empty(C_group * F * weight.shape[2] * weight.shape[3], grad.dtype)
    for g in range(groups):
        for a in range(planes.phases[0]):
            for b in range(planes.phases[1]):
                matrix, offsets = _phase_taps(weight, g, F, a, b, planes, size)
                if offsets.shape[0] > 0:
                    pack(matrix, panels)
                for item in range(first, last):
                    n = item // groups
                    if item % groups != g:
                        continue
                    if a == 0 and b == 0 and (s_h > 1 or s_w > 1):
                        out[n, g * C_group : (g + 1) * C_group] = 0
                    if offsets.shape[0] == 0:
                        continue
                    for f in range(F):
                        for row in range(H_out):
                            line, source = lines[f * size + reach + row * pitch :], grad[n, g * F + f, row]
                            for col in range(W_out):
                                line[col] = source[col]
                    for top in range(0, planes.lines, at_once):
                        rows = min(at_once, planes.lines - top)
                        product(panels, C_group, lines[top * pitch :], offsets, rows * pitch, z, z_pitch, False, True)
                        for c in range(C_group):
                            for row in range(rows):
                                m = (top + row) * s_h + a - planes.padding[0]
                                if m < 0 or m >= H:
                                    continue
                                line = z[c * z_pitch + row * pitch :]
                                target = out[n, g * C_group + c, m]
                                before = planes.padding[1] - b
                                start = max(0, (before + s_w - 1) // s_w)
                                stop = min(pitch, (W - 1 + before) // s_w + 1)
                                for q in range(start, stop):
                                    target[q * s_w - before] = line[q]
