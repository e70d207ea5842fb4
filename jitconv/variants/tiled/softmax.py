"""softmax, log_softmax, cross_entropy and their gradients over the classes c of x: (N, C, D), on vector registers.

A register holds classes of one sample where they lie side by side, D = 1, and else the same class of samples side by
side: then a few registers at a time, because lines that lie far apart in memory are read one by one. Either way a walk
of some steps passes all classes, and the equations read alike.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from jitconv.variants.compiling import EXACT, inner
from jitconv.variants.elementwise import broadcast, exp, load, log, maximum, reduce_add, reduce_max, store, tile_size
from jitconv.variants.jit import serial
from jitconv.variants.simd import REGISTERS, zeros
from jitconv.variants.tiled.product import share
from jitconv.variants.workers import each_worker

cross_entropy_at, loss_at, number = serial.cross_entropy_at, serial.loss_at, serial.number
SAMPLE_REGISTERS = REGISTERS // 8  # registers of samples side by side


def exact(function):
    return inner(function, fastmath=EXACT)


def inlined(function):
    return inner(function, fastmath=EXACT, forceinline=True)


class Walk(NamedTuple):
    """Step k of `steps` begins at first + k·step and finds n − k·less numbers, or as many as a tile holds."""

    first: int
    steps: int
    step: int
    n: int
    less: int


class Labels(NamedTuple):
    """What a loss compares with: scalar.py's arguments of these names."""

    target: Any
    weight: Any
    ignore_index: int
    smoothing: float


@inlined
def walks_of(unit, x, worker, workers):
    """The worker's walks, of those that pass all of x in tiles like `unit`."""
    N, C, D = x.shape
    return share(N if D == 1 else N * ((D + tile_size(unit) - 1) // tile_size(unit)), worker, workers, 1)


@inlined
def walk(unit, x, index):
    (_, C, D), numbers = x.shape, tile_size(unit)
    if D == 1:
        return Walk(index * C, (C + numbers - 1) // numbers, numbers, C, numbers)
    n, d = place(unit, x, index)
    return Walk(n * C * D + d, C, D, D - d, 0)


@inlined
def place(unit, x, index):
    """The sample (n, d) of a walk, of several the first."""
    across = (x.shape[2] + tile_size(unit) - 1) // tile_size(unit)
    return index // across, index % across * tile_size(unit)


@inlined
def load_step(unit, array, way, k, fill):
    return load(unit, array, way.first + k * way.step, way.n - k * way.less, fill)


@inlined
def store_step(tile, array, way, k):
    store(tile, array, way.first + k * way.step, way.n - k * way.less)


@inlined
def top_of(unit, x, way):
    """max_c x[c]; a NaN need not win, because it makes the sum of the exponentials NaN."""
    top = load_step(unit, x, way, 0, -math.inf)
    for k in range(1, way.steps):
        top = maximum(top, load_step(unit, x, way, k, -math.inf))
    return reduce_max(top) if way.less > 0 else top


@inlined
def over_classes(sums, way):
    """The sum over all classes, of one sample in every lane or of each lane's own."""
    return reduce_add(sums) if way.less > 0 else sums


def shared(function):
    """Let workers run function(worker, workers, unit, *args): `unit` is a tile as arrays like `like` are walked."""

    @exact
    def share_out(start, workers, like, args):
        if like.shape[2] == 1:
            each_worker(start, workers, function, (zeros(like, 1, 1), *args))
        else:
            each_worker(start, workers, function, (zeros(like, 1, SAMPLE_REGISTERS), *args))

    return share_out


def softmax(start, workers, x, out):
    _softmax(start, workers, x, (x, out))


@shared
@exact
def _softmax(worker, workers, unit, x, out):
    """z[c] = exp(x[c] − top) / Σ_k exp(x[k] − top)"""
    (first, last), values, target = walks_of(unit, x, worker, workers), x.reshape(-1), out.reshape(-1)
    for index in range(first, last):
        way = walk(unit, x, index)
        top, powers = top_of(unit, values, way), broadcast(unit, 0)
        for k in range(way.steps):
            power = exp(load_step(unit, values, way, k, -math.inf) - top)
            powers = powers + power
            store_step(power, target, way, k)
        share_of_one = broadcast(unit, 1) / over_classes(powers, way)
        for k in range(way.steps):
            store_step(load_step(unit, target, way, k, 0) * share_of_one, target, way, k)


def softmax_grad_input(start, workers, grad, z, out):
    _softmax_grad_input(start, workers, z, (grad, z, out))


@shared
@exact
def _softmax_grad_input(worker, workers, unit, grad, z, out):
    """∂x[c] = z[c] · (∂z[c] − Σ_k ∂z[k] · z[k])"""
    (first, last), slopes, values = walks_of(unit, z, worker, workers), grad.reshape(-1), z.reshape(-1)
    target = out.reshape(-1)
    for index in range(first, last):
        way, products = walk(unit, z, index), broadcast(unit, 0)
        for k in range(way.steps):
            products = products + load_step(unit, slopes, way, k, 0) * load_step(unit, values, way, k, 0)
        mean = over_classes(products, way)
        for k in range(way.steps):
            store_step(load_step(unit, values, way, k, 0) * (load_step(unit, slopes, way, k, 0) - mean), target, way, k)


def log_softmax(start, workers, x, out):
    _shared_log_softmaxes(start, workers, x, (x, out))


@exact
def _log_softmaxes(worker, workers, unit, x, out):
    """Fill the worker's part of `out`; return from which sample on, n·D + d, and up to which."""
    (first, last), values, target = walks_of(unit, x, worker, workers), x.reshape(-1), out.reshape(-1)
    for index in range(first, last):
        _log_softmax(unit, values, walk(unit, x, index), target)
    (n, d), (n_end, d_end) = place(unit, x, first), place(unit, x, last)
    return n * x.shape[2] + d, n_end * x.shape[2] + d_end


_shared_log_softmaxes = shared(_log_softmaxes)


@inlined
def _log_softmax(unit, x, way, out):
    """z[c] = x[c] − top − log Σ_k exp(x[k] − top)"""
    top, powers = top_of(unit, x, way), broadcast(unit, 0)
    for k in range(way.steps):
        powers = powers + exp(load_step(unit, x, way, k, -math.inf) - top)
    log_total = log(over_classes(powers, way))
    for k in range(way.steps):
        store_step(load_step(unit, x, way, k, 0) - top - log_total, out, way, k)


def log_softmax_grad_input(start, workers, grad, z, out):
    _log_softmax_grad_input(start, workers, z, (grad, z, out))


@shared
@exact
def _log_softmax_grad_input(worker, workers, unit, grad, z, out):
    """∂x[c] = ∂z[c] − exp(z[c]) · Σ_k ∂z[k]"""
    (first, last), slopes, values = walks_of(unit, z, worker, workers), grad.reshape(-1), z.reshape(-1)
    target = out.reshape(-1)
    for index in range(first, last):
        way, grads = walk(unit, z, index), broadcast(unit, 0)
        for k in range(way.steps):
            grads = grads + load_step(unit, slopes, way, k, 0)
        whole = over_classes(grads, way)
        for k in range(way.steps):
            store_step(
                load_step(unit, slopes, way, k, 0) - exp(load_step(unit, values, way, k, 0)) * whole, target, way, k
            )


def cross_entropy(start, workers, x, target, weight, ignore_index, smoothing, losses, weights, log_p):
    """log_p = log_softmax(x), and from it the loss and the weight of each sample."""
    labels = Labels(target, weight, ignore_index, smoothing)
    _cross_entropy(start, workers, x, (x, labels, losses, weights, log_p))


def reduced_cross_entropy(start, workers, x, target, weight, ignore_index, smoothing, mean, loss, log_p):
    """log_p = log_softmax(x), and the sum of all losses, with `mean` over that of their weights.

    The sums are float64's, because the samples may be the pixels of many images. Returns whether every target is a
    class or ignored: the loss of another is NaN.
    """
    total, all_classes = weight_of(target, weight, ignore_index)
    losses, labels = np.zeros(target.size), Labels(target, weight, ignore_index, smoothing)
    _losses(start, workers, x, (x, labels, log_p, losses))
    loss[0] = sum_in_pairs(losses) / (total if mean else 1)
    return all_classes


@exact
def sum_in_pairs(numbers):
    """Σ numbers, which it overwrites: halves are added up until one number is left, so log₂(size) roundings meet."""
    size = numbers.size
    while size > 1:
        half = (size + 1) // 2
        for i in range(size - half):
            numbers[i] += numbers[half + i]
        size = half
    return numbers[:1].sum()


@exact
def weight_of(target, weight, ignore_index):
    """Σ w[y] over the samples that are not ignored; and whether every y is a class or `ignore_index`"""
    weights = np.zeros(target.size)
    for i, y in enumerate(target.flat):
        if y != ignore_index:
            if y < 0 or y >= weight.shape[0]:
                return 0.0, False
            weights[i] = weight[y]
    return sum_in_pairs(weights), True


@shared
@exact
def _losses(worker, workers, unit, x, labels, log_p, losses):
    (target, weight, ignore_index, smoothing), D = labels, x.shape[2]
    first, last = _log_softmaxes(worker, workers, unit, x, log_p)
    for sample in range(first, last):
        n, d = divmod(sample, D)
        if target[n, d] != ignore_index:
            losses[sample] = cross_entropy_at(log_p, target, weight, smoothing, n, d)


@shared
@exact
def _cross_entropy(worker, workers, unit, x, labels, losses, weights, log_p):
    (target, weight, ignore_index, smoothing), D = labels, x.shape[2]
    first, last = _log_softmaxes(worker, workers, unit, x, log_p)
    for sample in range(first, last):
        loss_at(log_p, target, weight, ignore_index, smoothing, losses, weights, sample // D, sample % D)


def cross_entropy_grad_input(start, workers, grad, log_p, target, weight, ignore_index, smoothing, out):
    labels = Labels(target, weight, ignore_index, smoothing)
    _cross_entropy_grad_input(start, workers, out, (grad, log_p, labels, out))


def reduced_cross_entropy_grad_input(start, workers, grad, log_p, target, weight, ignore_index, smoothing, mean, out):
    """∂x, if every target is a class or ignored, which it returns: another would lie outside `out`."""
    total, all_classes = weight_of(target, weight, ignore_index)
    if all_classes:
        grads = np.full(target.shape, number(out, grad[0] / (total if mean else 1)))
        labels = Labels(target, weight, ignore_index, smoothing)
        _cross_entropy_grad_input(start, workers, out, (grads, log_p, labels, out))
    return all_classes


@shared
@exact
def _cross_entropy_grad_input(worker, workers, unit, grad, log_p, labels, out):
    """∂x[c] = ∂loss · (exp(log_p[c]) · Σ_k t_k − t_c) with t_c = w[c] · ((1 − ε)·[c = y] + ε/C)"""
    (first, last), logs, slopes = walks_of(unit, out, worker, workers), log_p.reshape(-1), out.reshape(-1)
    target, weight, ignore_index, smoothing = labels
    spread = number(out, smoothing) / number(out, out.shape[1])
    hit, spreads = number(out, 1) - number(out, smoothing), spread * weight.sum()
    pulls, grads = np.zeros(tile_size(unit), out.dtype), np.zeros(tile_size(unit), out.dtype)
    for index in range(first, last):
        way, (n, start) = walk(unit, out, index), place(unit, out, index)
        stop = min(start + tile_size(unit), out.shape[2])
        for d in range(start, stop):
            y = target[n, d]
            pulls[d - start] = hit * weight[y] + spreads if y != ignore_index else 0
            grads[d - start] = grad[n, d]
        _pull(unit, logs, weight, spread, each_lane(unit, pulls, way), way, slopes)
        for d in range(start, stop):
            if target[n, d] != ignore_index:
                out[n, target[n, d], d] -= hit * weight[target[n, d]]
        _scale(each_lane(unit, grads, way), way, slopes)
        for d in range(start, stop):
            if target[n, d] == ignore_index:
                for c in range(out.shape[1]):
                    out[n, c, d] = 0


@inlined
def each_lane(unit, numbers, way):
    """A number for each lane; the first one for all where they are classes of one sample."""
    return broadcast(unit, numbers[0]) if way.less > 0 else load(unit, numbers, 0, numbers.size, 0)


@inlined
def _pull(unit, log_p, weight, spread, whole, way, out):
    """out[c] = exp(log_p[c]) · Σ_k t_k − w[c] · ε/C"""
    spread = broadcast(unit, spread)
    for k in range(way.steps):
        n, power = way.n - k * way.less, exp(load_step(unit, log_p, way, k, 0))
        weights = load(unit, weight, k * way.step, n, 0) if way.less > 0 else broadcast(unit, weight[k])
        store_step(power * whole - spread * weights, out, way, k)


@inlined
def _scale(factor, way, out):
    for k in range(way.steps):
        store_step(load_step(factor, out, way, k, 0) * factor, out, way, k)
