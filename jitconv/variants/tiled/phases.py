"""The gradient of conv2d for its input: conv2d's product with ∂z as the image, for one phase of the input at a time.

With a stride, different lines and columns of the input meet different taps of the kernel.
"""

from typing import Any, NamedTuple

import numpy as np

from jitconv.variants.simd import MR
from jitconv.variants.tiled.product import (
    FEW_ROWS,
    NONE,
    Factor,
    Operand,
    Places,
    Target,
    copy,
    finite,
    inner,
    product,
    workspace,
)
from jitconv.variants.tiled.shifts import (
    AT_ONCE,
    Geometry,
    Planes,
    blocking,
    inside,
    plane_size,
    shares,
    shift_images,
    total_size,
)
from jitconv.variants.workers import each_worker


class Phase(NamedTuple):
    """The lines and columns of an input that meet the same taps of a kernel: they are a stride apart.

    Line m of it is line (top + m) · stride + a − padding of the input, for the phase's own a; columns likewise.
    """

    top: int
    left: int
    lines: int
    width: int
    rows: Any  # of the kernel
    columns: Any


@inner
def taps_of(K, stride, dilation, phase):
    """The taps of a kernel of K that meet a phase of the input."""
    taps, count = np.empty(K, np.int64), 0
    for tap in range(K):
        if tap * dilation % stride == phase:
            taps[count] = tap
            count += 1
    return taps[:count]


@inner
def phase_of(weight, geometry, size, a, b):
    """Phase (a, b) of an input of `size`."""
    (s_h, s_w), (p_h, p_w), (d_h, d_w) = geometry
    top, bottom = inside(a - p_h, s_h, size[0], size[0] + p_h)
    left, right = inside(b - p_w, s_w, size[1], size[1] + p_w)
    rows, columns = taps_of(weight.shape[2], s_h, d_h, a), taps_of(weight.shape[3], s_w, d_w, b)
    return Phase(top, left, bottom - top, right - left, rows, columns)


@inner
def phase_planes(phase, geometry, N):
    """The planes of ∂z for a phase of so many images: of some images, or for a band of lines of one."""
    images, lines = blocking(N, phase.lines, phase.width, AT_ONCE)
    back, columns = np.empty_like(phase.rows), np.empty_like(phase.columns)
    for i in range(back.size):
        back[i] = phase.rows[i] * geometry.dilation[0] // geometry.stride[0]
    for j in range(columns.size):
        columns[j] = phase.left - phase.columns[j] * geometry.dilation[1] // geometry.stride[1]
    return Planes(1, columns, images, lines + (back[-1] if back.size > 0 else 0), phase.width), back, lines


def conv2d_grad_input(team, workers, grad, weight, stride, padding, dilation, out):
    """Each phase of ∂x = its taps of Wᵀ · (shifted ∂z); False if a weight is not finite: it would meet padding."""
    if not finite(weight):
        return False
    each_worker(team, workers, _spread, (grad, weight, Geometry(stride, padding, dilation), out))
    return True


@inner
def _taps(weight, g, F, phase):
    """Wᵀ of a group for a phase's taps, (C_group, F × taps), as it lies."""
    _, C_group, K_h, K_w = weight.shape
    rows, across = phase.rows.size, phase.columns.size
    offsets = np.empty(F * rows * across, np.int64)
    for k in range(offsets.size):
        f, i, j = g * F + k // (rows * across), phase.rows[k // across % rows], phase.columns[k % across]
        offsets[k] = (f * C_group * K_h + i) * K_w + j
    return Factor(weight.reshape(-1), offsets, K_h * K_w, C_group)


@inner
def _spread(worker, workers, grad, weight, geometry, out):
    C_group, (H, W), (s_h, s_w) = weight.shape[1], out.shape[2:], geometry.stride
    groups = out.shape[1] // C_group
    F = weight.shape[0] // groups
    images, channels = shares(worker, workers, out.shape[0], C_group, MR)
    size, z_size = 0, 0
    for a in range(s_h):
        for b in range(s_w):
            planes, _, lines = phase_planes(phase_of(weight, geometry, (H, W), a, b), geometry, images[1] - images[0])
            size = max(size, total_size(F, planes, grad))
            z_size = max(z_size, C_group * planes.images * lines * planes.width)
    block, z, start = np.empty(size, grad.dtype), np.empty(z_size, grad.dtype), np.zeros(C_group, grad.dtype)
    room = block, z, start, workspace(grad)
    for g in range(groups):
        for a in range(s_h):
            for b in range(s_w):
                phase = phase_of(weight, geometry, (H, W), a, b)
                taps = _taps(weight, g, F, phase)
                _phase(grad, taps, g, (a, b), phase, geometry, (images, channels), room, out)


@inner
def _phase(grad, taps, g, at, phase, geometry, part, room, out):
    """Compute a worker's part of one phase of group g of ∂x; at: the phase's own numbers (a, b)."""
    (images, channels), (block, z, start, work), (s_h, s_w) = part, room, geometry.stride
    C_group, F, (H, W) = taps.M, grad.shape[1] // (out.shape[1] // taps.M), out.shape[2:]
    planes, back, lines = phase_planes(phase, geometry, images[1] - images[0])
    reach, across = planes.lines - lines, planes.columns.size
    offsets = np.empty_like(taps.offsets)
    for k in range(offsets.size):
        f, i, j = k // (back.size * across), k // across % back.size, k % across
        plane = (f * across + j) * planes.images
        offsets[k] = plane * plane_size(planes) + (reach - back[i]) * planes.width
    direct = geometry.stride == (1, 1) and (planes.images == 1 or C_group <= FEW_ROWS)
    for first in range(images[0], images[1], planes.images):
        count = min(planes.images, images[1] - first)
        for top in range(0, phase.lines, lines):
            shift_images(grad, first, count, (g * F, (g + 1) * F), phase.top + top - reach, (1, 1), planes, block)
            run = min(lines, phase.lines - top) * phase.width
            b = Operand(block, offsets, Places(run, plane_size(planes)), NONE)
            if direct:
                mine = out.reshape(-1)[(first * out.shape[1] + g * C_group) * H * W + top * W :]
                target = Target(mine, H * W, Places(run, out.shape[1] * H * W))
                product(taps, channels, b, (NONE, count * run), target, start, work)
            else:
                target = Target(z, count * run, Places(count * run, NONE))
                product(taps, channels, b, (NONE, count * run), target, start, work)
                row = (phase.top + top) * s_h + at[0] - geometry.padding[0]
                col = phase.left * s_w + at[1] - geometry.padding[1]
                for n in range(count):
                    image = out[first + n, g * C_group : (g + 1) * C_group]
                    _write(z[n * run :], count * run, channels, run, phase.width, image, (row, col), geometry.stride)


@inner
def _write(z, ld, channels, run, width, image, corner, stride):
    """Copy lines of some channels to the rows and columns of the image, (C, H, W), that they stand for."""
    _, H, W = image.shape
    pixels = image.reshape(-1)
    for c in range(channels[0], channels[1]):
        for line in range(run // max(1, width)):
            source, target = c * ld + line * width, (c * H + corner[0] + line * stride[0]) * W + corner[1]
            if stride[1] == 1:
                copy(z, source, pixels, target, width)
            else:
                for q in range(width):
                    pixels[target + q * stride[1]] = z[source + q]
