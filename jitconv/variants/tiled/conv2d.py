"""conv2d and its gradients as products in which row k of B is the image itself, shifted to one tap of the kernel.

An image is copied once, with its zero margin, into planes: for stride s, plane (a, b) holds the rows a, a + s, … and
the columns b, b + s, … Each tap (c, i, j) then reads one plane, shifted by a constant, `offsets[k]`. Small images are
laid side by side and computed as one.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from jitconv.variants.simd import DOT_ROWS, ROWS, VECTORS, lanes
from jitconv.variants.tiled.dots import dot_products
from jitconv.variants.tiled.product import (
    DEPTH,
    NONE,
    ONE,
    Operand,
    Panels,
    Places,
    copy,
    finite,
    inner,
    pack,
    panel_height,
    product,
    share,
)

SIDE_BY_SIDE = 768  # pixels of the output that are computed at once, if images are that small
LONG_SUM = 2304  # pixels that are summed up together in the gradient of the weights
MANY_FILTERS = 192  # from here on, that gradient copies strips of the image: they are used often enough


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
def empty_planes(channels, planes, images, like):
    """Room for the planes of some images, and a register tile behind them that may be read."""
    numbers = channels * planes.phases[0] * planes.phases[1] * images * plane_size(planes)
    return np.empty(numbers + VECTORS * lanes(like), like.dtype)


@inner
def inside(phase, padding, stride, size, length):
    """Which of a plane's `length` lines (or columns) lie inside an image of `size`: l·stride + phase − padding."""
    before = padding - phase
    start = min(length, max(0, (before + stride - 1) // stride))
    return start, max(start, min(length, (size - 1 + before) // stride + 1))


@inner
def fill(image, planes, out, images, index):
    """Copy an image, (C, H, W), into planes (C, a, b, images, line, column) at `index`, zeros around it."""
    C, H, W = image.shape
    (s_h, s_w), (p_h, p_w), pitch = planes.stride, planes.padding, planes.pitch
    pixels = image.reshape(-1)
    for c in range(C):
        for a in range(planes.phases[0]):
            top, bottom = inside(a, p_h, s_h, H, planes.lines)
            for b in range(planes.phases[1]):
                first, last = inside(b, p_w, s_w, W, pitch)
                plane = (c * planes.phases[0] + a) * planes.phases[1] + b
                start = (plane * images + index) * plane_size(planes)
                out[start : start + top * pitch] = 0
                out[start + bottom * pitch : start + plane_size(planes)] = 0
                for line in range(top, bottom):
                    row = out[start + line * pitch : start + (line + 1) * pitch]
                    row[:first] = 0
                    row[last:] = 0
                    source = (c * H + line * s_h + a - p_h) * W + first * s_w + b - p_w
                    if s_w == 1:
                        copy(pixels, source, row, first, last - first)
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
def shares(worker, workers, N, channels, step):
    """The images and channels of a worker: some of the images, or if they are few, some of the channels of each."""
    if workers <= N:
        return share(N, worker, workers, 1), (NONE, channels)
    return (NONE, N), share(channels, worker, workers, step)


def conv2d(workers, x, weight, bias, stride, padding, dilation, out):
    """z = W · (shifted images) + b; False if a weight is not finite, and would meet the zero margin."""
    if not finite(weight):
        return False
    C_out, C_group = weight.shape[:2]
    panels = pack(weight.reshape(C_out, weight.size // C_out), x.shape[1] // C_group)
    for worker in prange(workers):
        _convolve(worker, workers, x, weight, panels, bias, (stride, padding, dilation), out)
    return True


@inner
def _convolve(worker, workers, x, weight, panels, bias, geometry, out):
    planes = layout(weight, out.shape[2:], geometry)
    C_out, C_group = weight.shape[:2]
    groups = x.shape[1] // C_group
    F, K = C_out // groups, weight.size // C_out
    H_out, W_out = out.shape[2:]
    pixels, flat = H_out * W_out, out.reshape(-1)
    images, filters = shares(worker, workers, x.shape[0], F, ROWS)
    at_once = max(1, min(images[1] - images[0], SIDE_BY_SIDE // pixels))
    block = empty_planes(C_group, planes, at_once, x)
    places = Places(W_out, H_out, planes.pitch, plane_size(planes))
    b = Operand(block, tap_offsets(weight, planes, at_once), places, NONE)
    z, pitch = np.empty(F * at_once * pixels if at_once > 1 else 0, x.dtype), at_once * pixels
    for g in range(groups):
        part = Panels(panels[g * F * K :], F, K)
        for first in range(images[0], images[1], at_once):
            count = min(at_once, images[1] - first)
            for n in range(count):
                fill(x[first + n, g * C_group : (g + 1) * C_group], planes, block, at_once, n)
            target = z if at_once > 1 else flat[(first * C_out + g * F) * pixels :]
            for f in range(filters[0], filters[1]):
                target[f * pitch : f * pitch + count * pixels] = bias[g * F + f]
            product(part, filters, b, (NONE, count * pixels), target, pitch, ONE)
            if at_once > 1:
                for n in range(count):
                    for f in range(filters[0], filters[1]):
                        place = ((first + n) * C_out + g * F + f) * pixels
                        copy(z, f * pitch + n * pixels, flat, place, pixels)


def conv2d_grad_weight(workers, grad, x, stride, padding, dilation, out):
    """∂W = Σ_n ∂z · (shifted images)ᵀ; False if the result is not finite: a number met the margin's zeros."""
    flat, others = out.reshape(-1), np.zeros((workers - 1, out.size), out.dtype)
    flat[:] = 0
    for worker in prange(workers):
        total = flat if worker == 0 or x.shape[0] < workers else others[worker - 1]
        _correlate(worker, workers, grad, x, out, (stride, padding, dilation), total)
    for i in range(workers - 1):
        flat += others[i]
    return finite(flat)


@inner
def _correlate(worker, workers, grad, x, weight, geometry, total):
    planes = layout(weight, grad.shape[2:], geometry)
    size = plane_size(planes)
    C_out, C_group = weight.shape[:2]
    groups = x.shape[1] // C_group
    F, K = C_out // groups, weight.size // C_out
    H_out, W_out = grad.shape[2:]
    pixels = H_out * W_out
    images, filters = shares(worker, workers, x.shape[0], F, max(ROWS, DOT_ROWS))
    at_once = max(1, min(images[1] - images[0], LONG_SUM // pixels))
    block, offsets = empty_planes(C_group, planes, at_once, x), tap_offsets(weight, planes, at_once)
    strips = F >= MANY_FILTERS
    pitch, apart = (W_out, pixels) if strips else (planes.pitch, size)
    lines = np.zeros(F * at_once * apart, x.dtype)
    for g in range(groups):
        result = total[g * F * K :]
        for first in range(images[0], images[1], at_once):
            count = min(at_once, images[1] - first)
            for n in range(count):
                fill(x[first + n, g * C_group : (g + 1) * C_group], planes, block, at_once, n)
                spread_lines(grad[first + n, g * F : (g + 1) * F], lines, n * apart, count * apart, pitch)
            if strips:
                a = Panels(pack(lines[: F * count * apart].reshape(F, count * apart), 1), F, count * apart)
                b = Operand(block, offsets, Places(W_out, H_out, planes.pitch, size), ONE)
                product(a, filters, b, (NONE, K), result, K, ONE)
            elif filters[0] < filters[1]:
                rows_at = np.arange(filters[0], filters[1]) * count * apart
                length = (count - 1) * size + (H_out - 1) * pitch + W_out
                dot_products(lines, rows_at, block, offsets, length, result[filters[0] * K :], K)


@inner
def spread_lines(image, out, place, apart, pitch):
    """Copy channels, (C, H, W), into `out`, `apart` from each other from `place` on, their lines `pitch` apart."""
    C, H, W = image.shape
    pixels = image.reshape(-1)
    for c in range(C):
        if pitch == W:
            copy(pixels, c * H * W, out, c * apart + place, H * W)
        else:
            for m in range(H):
                copy(pixels, (c * H + m) * W, out, c * apart + place + m * pitch, W)


def conv2d_grad_input(workers, grad, weight, stride, padding, dilation, out):
    """Each plane of ∂x = its taps of Wᵀ · (shifted ∂z); False if a weight is not finite, and would meet zeros."""
    if not finite(weight):
        return False
    planes = layout(weight, grad.shape[2:], (stride, padding, dilation))
    panels = _pack_phases(weight, out.shape[1] // weight.shape[1], planes)
    for worker in prange(workers):
        _scatter(worker, workers, grad, weight, panels, (stride, padding, dilation), out)
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
def _pack_phases(weight, groups, planes):
    """The panels of Wᵀ, (C_group, filters × taps), for each group and each plane's taps, one after the other."""
    C_group, F = weight.shape[1], weight.shape[0] // groups
    numbers, at = np.empty(weight.size, weight.dtype), 0
    for g in range(groups):
        for a in range(planes.phases[0]):
            for b in range(planes.phases[1]):
                taps = phase_taps(weight, planes, a, b)
                T = taps.shape[0]
                for k in range(0, F * T, DEPTH):
                    top = 0
                    while top < C_group:
                        height = panel_height(C_group - top)
                        for t in range(k, min(k + DEPTH, F * T)):
                            i, j = taps[t % T, 0], taps[t % T, 1]
                            for c in range(top, top + height):
                                numbers[at] = weight[g * F + t // T, c, i, j]
                                at += 1
                        top += height
    return numbers


@inner
def _scatter(worker, workers, grad, weight, panels, geometry, out):
    planes = layout(weight, grad.shape[2:], geometry)
    size, pitch = plane_size(planes), planes.pitch
    C_group, H, W = weight.shape[1], out.shape[2], out.shape[3]
    groups = out.shape[1] // C_group
    F = weight.shape[0] // groups
    images, channels = shares(worker, workers, out.shape[0], C_group, ROWS)
    at_once = max(1, min(images[1] - images[0], SIDE_BY_SIDE // size))
    margin = size - (grad.shape[2] - 1) * pitch - grad.shape[3]  # zeros before the first image: the longest shift
    apart = margin + at_once * size
    spread = np.zeros(F * apart + VECTORS * lanes(grad), grad.dtype)
    direct, flat = at_once == 1 and planes.stride == (1, 1), out.reshape(-1)
    z, z_pitch = np.empty(0 if direct else C_group * at_once * size, grad.dtype), at_once * size
    for g in range(groups):
        for first in range(images[0], images[1], at_once):
            count = min(at_once, images[1] - first)
            for n in range(first, first + count):
                spread_lines(grad[n, g * F : (g + 1) * F], spread, margin + (n - first) * size, apart, pitch)
                if not direct:
                    out[n, g * C_group + channels[0] : g * C_group + channels[1]] = 0
            at = g * (weight.size // groups)
            for a in range(planes.phases[0]):
                top, bottom = inside(a, planes.padding[0], planes.stride[0], H, planes.lines)
                for b in range(planes.phases[1]):
                    left, right = inside(b, planes.padding[1], planes.stride[1], W, pitch)
                    taps = phase_taps(weight, planes, a, b)
                    K, columns = F * taps.shape[0], count * (bottom - top) * (right - left)
                    part = Panels(panels[at:], C_group, K)
                    at += C_group * K
                    if columns == 0 or K == 0:
                        continue
                    start = margin + top * pitch + left
                    offsets = (np.arange(F).reshape(F, 1) * apart + start - taps[:, 2]).reshape(-1)
                    source = Operand(spread, offsets, Places(right - left, bottom - top, pitch, size), NONE)
                    if direct:
                        target = flat[(first * out.shape[1] + g * C_group) * H * W :]
                        product(part, channels, source, (NONE, columns), target, H * W, NONE)
                    else:
                        product(part, channels, source, (NONE, columns), z, z_pitch, NONE)
                        for n in range(count):
                            image, start = out[first + n, g * C_group : (g + 1) * C_group], n * columns // count
                            _write_plane(z[start:], z_pitch, channels, (a, b), planes, source.places, image)


@inner
def _write_plane(z, z_pitch, channels, phase, planes, places, image):
    """Copy plane (a, b) to the rows and columns of the image that it stands for, (C, H, W)."""
    _, H, W = image.shape
    (s_h, s_w), (p_h, p_w), pixels = planes.stride, planes.padding, image.reshape(-1)
    top, _ = inside(phase[0], p_h, s_h, H, planes.lines)
    left, _ = inside(phase[1], p_w, s_w, W, planes.pitch)
    for c in range(channels[0], channels[1]):
        for line in range(places.lines):
            source = c * z_pitch + line * places.width
            row, col = (top + line) * s_h + phase[0] - p_h, left * s_w + phase[1] - p_w
            target = (c * H + row) * W + col
            if s_w == 1:
                copy(z, source, pixels, target, places.width)
            else:
                for q in range(places.width):
                    pixels[target + q * s_w] = z[source + q]
