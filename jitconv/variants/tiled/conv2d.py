"""conv2d and its gradients as products in which row k of B is the image itself, shifted to one tap of the kernel.

What tap (i, j) meets is an image again: its lines begin at line i·d of the input, its columns at column j·d, both a
stride apart. `shift` copies a channel once for each j, in lines as wide as the output, so that another i is an offset
by whole lines, and every row of B one run of numbers. Small images lie side by side, large ones are cut into bands.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from jitconv.variants.simd import ROWS, VECTORS, lanes
from jitconv.variants.tiled.dots import Runs, dot_products
from jitconv.variants.tiled.product import (
    FEW_ROWS,
    NONE,
    ONE,
    Operand,
    Panels,
    Places,
    Target,
    block_of,
    clear,
    copy,
    finite,
    inner,
    pack,
    panel_height,
    product,
    share,
    steps,
)

AT_ONCE = 1024  # pixels of the output that are computed together, about
LONG_SUM = 2304  # pixels that are summed up together in the gradient of the weights
MANY_FILTERS = 192  # from here on, that gradient copies strips of the images: they are used often enough


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
    return channels * planes.phases * planes.columns.size * planes.images * plane_size(planes) + VECTORS * lanes(like)


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
    at = index * size
    for c in range(C):
        for a in range(planes.phases):
            top, bottom = inside(first + a, step[0], H, planes.lines)
            for t in range(planes.columns.size):
                left, right = inside(planes.columns[t], step[1], W, width)
                clear(out, at, at + top * width)
                clear(out, at + bottom * width, at + size)
                for m in range(top, bottom):
                    line, source = at + m * width, (c * H + first + a + m * step[0]) * W + planes.columns[t]
                    clear(out, line, line + left)
                    clear(out, line + right, line + width)
                    if step[1] == 1:
                        copy(pixels, source + left, out, line + left, right - left)
                    else:
                        for q in range(left, right):
                            out[line + q] = pixels[source + q * step[1]]
                at += planes.images * size


@inner
def blocking(N, lines, width, pixels):
    """How many images, and how many lines of each, have about so many pixels together."""
    bands = max(1, lines * width // pixels)
    return max(1, min(N, pixels // max(1, lines * width))), max(1, (lines + bands - 1) // bands)


@inner
def layout(weight, geometry, images, lines, width):
    """The planes of an input for so many lines of an output of this width."""
    reach, stride = (weight.shape[2] - 1) * geometry.dilation[0], geometry.stride[0]
    columns = steps(weight.shape[3], -geometry.padding[1], geometry.dilation[1])
    return Planes(min(stride, reach + 1), columns, images, lines + reach // stride, width)


@inner
def tap_offsets(weight, geometry, planes):
    """For each tap (c, i, j) of a kernel: where its row of B begins in the planes."""
    _, C, K_h, K_w = weight.shape
    offsets = np.empty(C * K_h * K_w, np.int64)
    at = 0
    for c in range(C):
        for i in range(K_h):
            line, phase = divmod(i * geometry.dilation[0], geometry.stride[0])
            for j in range(K_w):
                plane = (c * planes.phases + phase) * K_w + j
                offsets[at] = plane * planes.images * plane_size(planes) + line * planes.width
                at += 1
    return offsets


@inner
def shares(worker, workers, N, channels, step):
    """The images and channels of a worker: some of the images, or if they are few, some of the channels of each."""
    if workers <= N:
        return share(N, worker, workers, 1), (NONE, channels)
    return (NONE, N), share(channels, worker, workers, step)


def conv2d(workers, x, weight, bias, stride, padding, dilation, out):
    """z = W · (shifted images) + b; False if a weight is not finite, and would meet the zeros around an image."""
    if not finite(weight):
        return False
    C_out, C_group = weight.shape[:2]
    panels = pack(weight.reshape(C_out, weight.size // C_out), x.shape[1] // C_group)
    for worker in prange(workers):
        _convolve(worker, workers, x, weight, panels, bias, Geometry(stride, padding, dilation), out)
    return True


@inner
def _convolve(worker, workers, x, weight, panels, bias, geometry, out):
    N, C_out, H_out, W_out = out.shape
    C_group, pixels, flat = weight.shape[1], H_out * W_out, out.reshape(-1)
    groups = x.shape[1] // C_group
    F, K = C_out // groups, weight.size // C_out
    images, filters = shares(worker, workers, N, F, ROWS)
    at_once, lines = blocking(images[1] - images[0], H_out, W_out, AT_ONCE)
    planes = layout(weight, geometry, at_once, lines, W_out)
    block, offsets = np.empty(total_size(C_group, planes, x), x.dtype), tap_offsets(weight, geometry, planes)
    direct = at_once == 1 or F <= FEW_ROWS
    z = np.empty(0 if direct else F * at_once * pixels, x.dtype)
    for g in range(groups):
        part, start = Panels(panels[g * F * K :], F, K), bias[g * F : (g + 1) * F]
        for first in range(images[0], images[1], at_once):
            count = min(at_once, images[1] - first)
            for top in range(0, H_out, lines):
                for n in range(count):
                    image = x[first + n, g * C_group : (g + 1) * C_group]
                    shift(image, top * geometry.stride[0] - geometry.padding[0], geometry.stride, planes, block, n)
                run = min(lines, H_out - top) * W_out
                b = Operand(block, offsets, Places(run, plane_size(planes)), NONE)
                target = Target(
                    flat[(first * C_out + g * F) * pixels + top * W_out :], pixels, Places(run, C_out * pixels)
                )
                if not direct:
                    target = Target(z, count * run, Places(count * run, NONE))
                product(part, filters, b, (NONE, count * run), target, start)
            if not direct:
                for n in range(count):
                    for f in range(filters[0], filters[1]):
                        source, place = (f * count + n) * pixels, ((first + n) * C_out + g * F + f) * pixels
                        copy(z, source, flat, place, pixels)


def conv2d_grad_weight(workers, grad, x, stride, padding, dilation, out):
    """∂W = Σ_n ∂z · (shifted images)ᵀ; False if the result is not finite: a number met the zeros around an image."""
    flat, others = out.reshape(-1), np.zeros((workers - 1, out.size), out.dtype)
    flat[:] = 0
    for worker in prange(workers):
        total = flat if worker == 0 or x.shape[0] < workers else others[worker - 1]
        _correlate(worker, workers, grad, x, out, Geometry(stride, padding, dilation), total)
    for i in range(workers - 1):
        flat += others[i]
    return finite(flat)


@inner
def _correlate(worker, workers, grad, x, weight, geometry, total):
    N, C_out, H_out, W_out = grad.shape
    C_group, pixels = weight.shape[1], H_out * W_out
    groups = x.shape[1] // C_group
    F, K = C_out // groups, weight.size // C_out
    images, filters = shares(worker, workers, N, F, ROWS)
    if filters[0] == filters[1]:
        return
    at_once, lines = blocking(images[1] - images[0], H_out, W_out, LONG_SUM)
    planes = layout(weight, geometry, at_once, lines, W_out)
    block, offsets = np.empty(total_size(C_group, planes, x), x.dtype), tap_offsets(weight, geometry, planes)
    strips = F >= MANY_FILTERS
    lines_of, nothing = np.empty(F * at_once * lines * W_out if strips else 0, x.dtype), np.empty(0, x.dtype)
    for g in range(groups):
        result = total[g * F * K :]
        for first in range(images[0], images[1], at_once):
            count = min(at_once, images[1] - first)
            for top in range(0, H_out, lines):
                for n in range(count):
                    image = x[first + n, g * C_group : (g + 1) * C_group]
                    shift(image, top * geometry.stride[0] - geometry.padding[0], geometry.stride, planes, block, n)
                runs = Runs(count, min(lines, H_out - top) * W_out, C_out * pixels, plane_size(planes))
                rows_at = steps(F, (first * C_out + g * F) * pixels + top * W_out, pixels)
                if strips:
                    a = Panels(
                        pack(_side_by_side(grad.reshape(-1), rows_at, runs, lines_of), 1), F, count * runs.length
                    )
                    b = Operand(block, offsets, Places(runs.length, plane_size(planes)), ONE)
                    product(a, filters, b, (NONE, K), Target(result, K, Places(K, NONE)), nothing)
                else:
                    rows_at = rows_at[filters[0] : filters[1]]
                    dot_products(grad.reshape(-1), rows_at, block, offsets, runs, result[filters[0] * K :], K)


@inner
def _side_by_side(numbers, rows_at, runs, out):
    """The runs of each row, one after the other, as a matrix."""
    length = runs.times * runs.length
    for r in range(rows_at.size):
        for n in range(runs.times):
            copy(numbers, rows_at[r] + n * runs.a_step, out, r * length + n * runs.length, runs.length)
    return out[: rows_at.size * length].reshape(rows_at.size, length)


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


def conv2d_grad_input(workers, grad, weight, stride, padding, dilation, out):
    """Each phase of ∂x = its taps of Wᵀ · (shifted ∂z); False if a weight is not finite, and would meet zeros."""
    if not finite(weight):
        return False
    panels = _pack_phases(weight, out.shape[1] // weight.shape[1], Geometry(stride, padding, dilation))
    for worker in prange(workers):
        _spread(worker, workers, grad, weight, panels, Geometry(stride, padding, dilation), out)
    return True


@inner
def _pack_phases(weight, groups, geometry):
    """The panels of Wᵀ, (C_group, filters × taps), for each group and each phase's taps, one after the other."""
    C_group, F = weight.shape[1], weight.shape[0] // groups
    numbers, at = np.empty(weight.size, weight.dtype), 0
    for g in range(groups):
        for a in range(geometry.stride[0]):
            for b in range(geometry.stride[1]):
                phase = phase_of(weight, geometry, (0, 0), a, b)
                across = phase.columns.size
                taps = phase.rows.size * across
                block = block_of(F * taps)
                for k in range(0, F * taps, block):
                    top = 0
                    while top < C_group:
                        height = panel_height(C_group - top)
                        for t in range(k, min(k + block, F * taps)):
                            f, i, j = g * F + t // taps, phase.rows[t % taps // across], phase.columns[t % across]
                            for c in range(top, top + height):
                                numbers[at] = weight[f, c, i, j]
                                at += 1
                        top += height
    return numbers


@inner
def _spread(worker, workers, grad, weight, panels, geometry, out):
    C_group, (H, W), (s_h, s_w) = weight.shape[1], out.shape[2:], geometry.stride
    groups = out.shape[1] // C_group
    F = weight.shape[0] // groups
    images, channels = shares(worker, workers, out.shape[0], C_group, ROWS)
    room, z_room = 0, 0
    for a in range(s_h):
        for b in range(s_w):
            planes, _, lines = phase_planes(phase_of(weight, geometry, (H, W), a, b), geometry, images[1] - images[0])
            room = max(room, total_size(F, planes, grad))
            z_room = max(z_room, C_group * planes.images * lines * planes.width)
    block, z, start = np.empty(room, grad.dtype), np.empty(z_room, grad.dtype), np.zeros(C_group, grad.dtype)
    at = 0
    for g in range(groups):
        for a in range(s_h):
            for b in range(s_w):
                phase = phase_of(weight, geometry, (H, W), a, b)
                K = F * phase.rows.size * phase.columns.size
                part = Panels(panels[at:], C_group, K)
                at += C_group * K
                _phase(grad, part, g, (a, b), phase, geometry, (images, channels), (block, z, start), out)


@inner
def _phase(grad, panels, g, at, phase, geometry, part, room, out):
    """Compute a worker's part of one phase of group g of ∂x; at: the phase's own numbers (a, b)."""
    (images, channels), (block, z, start), (s_h, s_w) = part, room, geometry.stride
    C_group, F, (H, W) = panels.M, grad.shape[1] // (out.shape[1] // panels.M), out.shape[2:]
    planes, back, lines = phase_planes(phase, geometry, images[1] - images[0])
    reach, across = planes.lines - lines, planes.columns.size
    offsets = np.empty(panels.K, np.int64)
    for k in range(panels.K):
        f, i, j = k // (back.size * across), k // across % back.size, k % across
        plane = (f * across + j) * planes.images
        offsets[k] = plane * plane_size(planes) + (reach - back[i]) * planes.width
    direct = geometry.stride == (1, 1) and (planes.images == 1 or C_group <= FEW_ROWS)
    for first in range(images[0], images[1], planes.images):
        count = min(planes.images, images[1] - first)
        for top in range(0, phase.lines, lines):
            for n in range(count):
                shift(grad[first + n, g * F : (g + 1) * F], phase.top + top - reach, (1, 1), planes, block, n)
            run = min(lines, phase.lines - top) * phase.width
            b = Operand(block, offsets, Places(run, plane_size(planes)), NONE)
            if direct:
                mine = out.reshape(-1)[(first * out.shape[1] + g * C_group) * H * W + top * W :]
                target = Target(mine, H * W, Places(run, out.shape[1] * H * W))
                product(panels, channels, b, (NONE, count * run), target, start)
            else:
                target = Target(z, count * run, Places(count * run, NONE))
                product(panels, channels, b, (NONE, count * run), target, start)
                row = (phase.top + top) * s_h + at[0] - geometry.padding[0]
                col = phase.left * s_w + at[1] - geometry.padding[1]
                for n in range(count):
                    image = out[first + n, g * C_group : (g + 1) * C_group]
                    _write(z[n * run :], count * run, channels, run, phase.width, image, (row, col), geometry.stride)


@inner
def _write(z, pitch, channels, run, width, image, corner, stride):
    """Copy lines of some channels to the rows and columns of the image, (C, H, W), that they stand for."""
    _, H, W = image.shape
    pixels = image.reshape(-1)
    for c in range(channels[0], channels[1]):
        for line in range(run // max(1, width)):
            source, target = c * pitch + line * width, (c * H + corner[0] + line * stride[0]) * W + corner[1]
            if stride[1] == 1:
                copy(z, source, pixels, target, width)
            else:
                for q in range(width):
                    pixels[target + q * stride[1]] = z[source + q]
