"""conv2d with pixels in the lanes, and its gradient for the weights, as products: row k of B is what tap k meets."""

import numpy as np

from jitconv.variants.elementwise import load, reduce_add, store, tile_size
from jitconv.variants.rows import Conv
from jitconv.variants.simd import MR, zeros
from jitconv.variants.tiled.dots import Runs, dot_products
from jitconv.variants.tiled.product import (
    FEW_ROWS,
    NONE,
    ONE,
    AMatrix,
    BMatrix,
    CMatrix,
    Columns,
    a_matrix,
    clear,
    copy,
    finite,
    inner,
    product,
    rows_of,
    share,
    steps,
    workspace,
)
from jitconv.variants.tiled.relu import rectify
from jitconv.variants.tiled.shifts import (
    AT_ONCE,
    band_at,
    bands_of,
    count_of,
    plane_size,
    planes_of,
    shares,
    shift_images,
    tap_offsets,
    total_size,
)
from jitconv.variants.workers import each_worker

LONG_SUM = 2304  # pixels that are summed up together in the gradient of the weights
SUMS = 4  # registers of sums that are added up side by side


def conv2d(start, workers, relu, x, weight, bias, stride, padding, dilation, out):
    """z = W · (shifted images) + b, with `relu` max(0, z), if all weights are finite: others would meet padding."""
    all_finite = finite(weight)
    if all_finite:
        each_worker(start, workers, _convolve, (relu, x, weight, bias, Conv(stride, padding, dilation), out))
    return all_finite


@inner
def _convolve(worker, workers, relu, x, weight, bias, conv, out):
    N, C_out, H_out, W_out = out.shape
    C, pixels, flat = weight.shape[1], H_out * W_out, out.reshape(-1)
    groups = x.shape[1] // C
    F, (s_h, _), (p_h, _) = C_out // groups, conv.stride, conv.padding
    images, filters = shares(worker, workers, N, F, MR)
    bands = bands_of(groups, images, H_out, W_out, AT_ONCE)
    planes = planes_of(weight, conv, bands, W_out)
    shifted, offsets = np.empty(total_size(C, planes, x), x.dtype), tap_offsets(weight, conv, planes)
    direct = bands.images == 1 or F <= FEW_ROWS
    z, work = np.empty(0 if direct else F * bands.images * pixels, x.dtype), workspace(x)
    a = a_matrix(weight.reshape(-1), C_out, offsets.size)
    for index in range(count_of(bands)):
        band = band_at(bands, index)
        shift_images(x, band, C, band.top * s_h - p_h, conv.stride, planes, shifted)
        size, first = band.lines * W_out, (band.n * C_out + band.g * F) * pixels + band.top * W_out
        columns = (NONE, band.images * size)
        b = BMatrix(shifted, offsets, Columns(size, plane_size(planes)), NONE)
        c = CMatrix(flat[first:], pixels, Columns(size, C_out * pixels))
        if not direct:
            c = CMatrix(z, columns[1], Columns(columns[1], NONE))
        product(rows_of(a, band.g * F, F), filters, b, columns, c, bias[band.g * F : (band.g + 1) * F], work)
        if relu:
            rectify(c, filters, columns)
        if not direct:
            for f in range(filters[0], filters[1]):
                for n in range(band.images):
                    copy(z, (f * band.images + n) * pixels, flat, first + (n * C_out + f) * pixels, pixels)


def conv2d_grad_weight(start, workers, packed, grad, x, stride, padding, dilation, out):
    """∂W = Σ_n ∂z · (shifted images)ᵀ, by dot products if `packed` is None, which Numba knows as it compiles.

    Returns whether all of it is finite: else a number may have met padding.
    """
    flat, others = out.reshape(-1), np.zeros((workers - 1, out.size), out.dtype)
    clear(flat, 0, flat.size)
    each_worker(start, workers, _correlate, (packed, grad, x, out, Conv(stride, padding, dilation), flat, others))
    for i in range(workers - 1):
        for k in range(flat.size):
            flat[k] += others[i, k]
    return finite(flat)


@inner
def _correlate(worker, workers, packed, grad, x, weight, conv, flat, others):
    """The worker's sums of ∂W."""
    total = flat if worker == 0 or x.shape[0] < workers else others[worker - 1]
    N, C_out, H_out, W_out = grad.shape
    C, pixels, slopes = weight.shape[1], H_out * W_out, grad.reshape(-1)
    groups, (s_h, _), (p_h, _) = x.shape[1] // C, conv.stride, conv.padding
    F, K = C_out // groups, weight.size // C_out
    images, filters = shares(worker, workers, N, F, MR)
    if filters[0] == filters[1]:
        return
    bands = bands_of(groups, images, H_out, W_out, LONG_SUM)
    planes = planes_of(weight, conv, bands, W_out)
    shifted, offsets = np.empty(total_size(C, planes, x), x.dtype), tap_offsets(weight, conv, planes)
    if packed is not None:
        no_start, work = np.empty(0, x.dtype), workspace(x)
    for index in range(count_of(bands)):
        band = band_at(bands, index)
        shift_images(x, band, C, band.top * s_h - p_h, conv.stride, planes, shifted)
        first, result = (band.n * C_out + band.g * F) * pixels + band.top * W_out, total[band.g * F * K :]
        runs = Runs(band.images, band.lines * W_out, C_out * pixels, plane_size(planes))
        if packed is not None:
            a = AMatrix(slopes[first:], _terms(runs), pixels, F)
            b = BMatrix(shifted, offsets, Columns(runs.length, plane_size(planes)), ONE)
            product(a, filters, b, (NONE, K), CMatrix(result, K, Columns(K, NONE)), no_start, work)
        else:
            rows_at = steps(F, first, pixels)[filters[0] : filters[1]]
            dot_products(slopes, rows_at, shifted, offsets, runs, result[filters[0] * K :], K)


@inner
def _terms(runs):
    """Where the terms of a sum lie in A, one run after the other."""
    offsets = steps(runs.times * runs.length, NONE, NONE)
    for k in range(offsets.size):
        offsets[k] = k // runs.length * runs.a_step + k % runs.length
    return offsets


def conv2d_grad_bias(start, workers, grad, out):
    """∂b[c] = Σ_n Σ_p ∂z[n, c, p] over the pixels p of a plane"""
    each_worker(start, workers, _sum_planes, (grad.reshape(grad.shape[0], grad.shape[1], -1), out))


@inner
def _sum_planes(worker, workers, grad, out):
    first, last = share(out.size, worker, workers, 1)
    N, _, P = grad.shape
    for c in range(first, last):
        total = zeros(out, 1, SUMS)
        for n in range(N):
            plane = zeros(out, 1, SUMS)
            for p in range(0, P, tile_size(plane)):
                plane = plane + load(plane, grad[n, c], p, P - p, 0)
            total = total + plane
        store(reduce_add(total), out, c, 1)
