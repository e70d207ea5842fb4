"""conv2d and its gradient for the weights as products in which row k of B is the image, shifted to one tap."""

import numpy as np

from jitconv.variants.simd import MR
from jitconv.variants.tiled.dots import Runs, dot_products
from jitconv.variants.tiled.product import (
    FEW_ROWS,
    NONE,
    ONE,
    Factor,
    Operand,
    Places,
    Target,
    clear,
    copy,
    factor,
    finite,
    inner,
    product,
    rows_from,
    steps,
    workspace,
)
from jitconv.variants.tiled.relu import rectify
from jitconv.variants.tiled.shifts import (
    AT_ONCE,
    Geometry,
    Planes,
    blocking,
    plane_size,
    shares,
    shift_images,
    total_size,
)
from jitconv.variants.workers import each_worker

LONG_SUM = 2304  # pixels that are summed up together in the gradient of the weights


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


def conv2d(team, workers, relu, x, weight, bias, stride, padding, dilation, out):
    """z = W · (shifted images) + b, with `relu` max(0, z); False if a weight is not finite: it would meet padding."""
    if not finite(weight):
        return False
    C_out, geometry = weight.shape[0], Geometry(stride, padding, dilation)
    kernels = factor(weight.reshape(-1), C_out, weight.size // C_out)
    each_worker(team, workers, _convolve, (relu, x, weight, kernels, bias, geometry, out))
    return True


@inner
def _convolve(worker, workers, relu, x, weight, kernels, bias, geometry, out):
    N, C_out, H_out, W_out = out.shape
    C_group, pixels, flat = weight.shape[1], H_out * W_out, out.reshape(-1)
    groups = x.shape[1] // C_group
    F = C_out // groups
    images, filters = shares(worker, workers, N, F, MR)
    at_once, lines = blocking(images[1] - images[0], H_out, W_out, AT_ONCE)
    planes = layout(weight, geometry, at_once, lines, W_out)
    block, offsets = np.empty(total_size(C_group, planes, x), x.dtype), tap_offsets(weight, geometry, planes)
    direct = at_once == 1 or F <= FEW_ROWS
    z, work = np.empty(0 if direct else F * at_once * pixels, x.dtype), workspace(x)
    for g in range(groups):
        part, start = rows_from(kernels, g * F, F), bias[g * F : (g + 1) * F]
        for first in range(images[0], images[1], at_once):
            count = min(at_once, images[1] - first)
            for top in range(0, H_out, lines):
                line = top * geometry.stride[0] - geometry.padding[0]
                shift_images(x, first, count, (g * C_group, (g + 1) * C_group), line, geometry.stride, planes, block)
                run = min(lines, H_out - top) * W_out
                b = Operand(block, offsets, Places(run, plane_size(planes)), NONE)
                target = Target(
                    flat[(first * C_out + g * F) * pixels + top * W_out :], pixels, Places(run, C_out * pixels)
                )
                if not direct:
                    target = Target(z, count * run, Places(count * run, NONE))
                product(part, filters, b, (NONE, count * run), target, start, work)
                if relu:
                    rectify(target, filters, (NONE, count * run))
            if not direct:
                for n in range(count):
                    for f in range(filters[0], filters[1]):
                        source, place = (f * count + n) * pixels, ((first + n) * C_out + g * F + f) * pixels
                        copy(z, source, flat, place, pixels)


def conv2d_grad_weight_by_dots(team, workers, grad, x, stride, padding, dilation, out):
    """∂W by dot products; False as the other."""
    return _add_up(team, workers, None, grad, x, Geometry(stride, padding, dilation), out)


def conv2d_grad_weight(team, workers, grad, x, stride, padding, dilation, out):
    """∂W = Σ_n ∂z · (shifted images)ᵀ; False if the result is not finite: a number met the zeros around an image."""
    return _add_up(team, workers, ONE, grad, x, Geometry(stride, padding, dilation), out)


@inner
def _add_up(team, workers, strips, grad, x, geometry, out):
    flat, others = out.reshape(-1), np.zeros((workers - 1, out.size), out.dtype)
    clear(flat, 0, flat.size)
    each_worker(team, workers, _correlate, (strips, grad, x, out, geometry, flat, others))
    for i in range(workers - 1):
        for k in range(flat.size):
            flat[k] += others[i, k]
    return finite(flat)


@inner
def _correlate(worker, workers, strips, grad, x, weight, geometry, flat, others):
    """The worker's part of ∂W; by dot products if strips is None, which Numba knows as it compiles."""
    total = flat if worker == 0 or x.shape[0] < workers else others[worker - 1]
    N, C_out, H_out, W_out = grad.shape
    C_group, pixels = weight.shape[1], H_out * W_out
    groups = x.shape[1] // C_group
    F, K = C_out // groups, weight.size // C_out
    images, filters = shares(worker, workers, N, F, MR)
    if filters[0] == filters[1]:
        return
    at_once, lines = blocking(images[1] - images[0], H_out, W_out, LONG_SUM)
    planes = layout(weight, geometry, at_once, lines, W_out)
    block, offsets = np.empty(total_size(C_group, planes, x), x.dtype), tap_offsets(weight, geometry, planes)
    if strips is not None:
        nothing, work = np.empty(0, x.dtype), workspace(x)
    for g in range(groups):
        result = total[g * F * K :]
        for first in range(images[0], images[1], at_once):
            count = min(at_once, images[1] - first)
            for top in range(0, H_out, lines):
                line = top * geometry.stride[0] - geometry.padding[0]
                shift_images(x, first, count, (g * C_group, (g + 1) * C_group), line, geometry.stride, planes, block)
                runs = Runs(count, min(lines, H_out - top) * W_out, C_out * pixels, plane_size(planes))
                rows_at = steps(F, (first * C_out + g * F) * pixels + top * W_out, pixels)
                if strips is not None:
                    places = _side_by_side(runs)
                    a = Factor(grad.reshape(-1)[rows_at[0] :], places, pixels, F)
                    b = Operand(block, offsets, Places(runs.length, plane_size(planes)), ONE)
                    product(a, filters, b, (NONE, K), Target(result, K, Places(K, NONE)), nothing, work)
                else:
                    rows_at = rows_at[filters[0] : filters[1]]
                    dot_products(grad.reshape(-1), rows_at, block, offsets, runs, result[filters[0] * K :], K)


@inner
def _side_by_side(runs):
    """Where the terms of a sum lie, those of a run after the ones of the run before."""
    offsets = np.empty(runs.times * runs.length, np.int64)
    for n in range(runs.times):
        for i in range(runs.length):
            offsets[n * runs.length + i] = n * runs.a_step + i
    return offsets
