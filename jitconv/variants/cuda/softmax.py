"""softmax, log_softmax and cross_entropy for `cuda-tiled`: bound by memory, so samples are read as few times as may be.

Many classes of one sample are shared out to the threads of a team, few are a single thread's. One pass over the sample
finds the largest class and the sum of exponentials, a second one writes the results; what it reads again is still in
the nearest cache, into which the samples that are at work at one time fit.
"""

import math
from collections.abc import Callable
from typing import Any

from numba import cuda

from jitconv.variants.cuda import grid
from jitconv.variants.cuda.grid import MOST_PLACES, number
from jitconv.variants.cuda.launch import Kernel, device
from jitconv.variants.cuda.sizes import ALIGNMENT, FEWEST_CLASSES, LANES, ROWS, ceil_div
from jitconv.variants.cuda.teams import ALONE, COLUMN, ROW, THREADS_OF_BLOCK, Team, larger


@device
def exp_below(x, value, top):
    """exp(value − top); 0 for a value of −∞, below a top of −∞ too, which a larger class may yet replace"""
    return number(x, 0) if value == -math.inf else math.exp(value - top)


def _kernels(team: Team) -> dict[str, Kernel]:
    """Return the kernels for samples whose classes such teams share, by the names of their ops."""
    size, place, team_max, team_sum = team.size, team.place, team.max, team.sum

    @device
    def exp_sum(x, parts, n, d, first, C):
        """top = max_c x[n, c, d], and Σ_c exp(x[n, c, d] − top); the sum so far shrinks when the maximum grows"""
        top, total = number(x, -math.inf), number(x, 0)
        for c in range(first, C, size):
            before, top = top, larger(x[n, c, d], top)
            total = total * exp_below(x, before, top) + exp_below(x, x[n, c, d], top)
        of_team = team_max(parts, top)
        return of_team, team_sum(parts, total * exp_below(x, top, of_team))

    @device
    def log_exp_sum(x, parts, n, d, first, C):
        """top as above, and the sum's logarithm; NaN where all classes are −∞"""
        top, total = exp_sum(x, parts, n, d, first, C)
        return top, math.log(total) if total > 0 else number(x, math.nan)

    def softmax(x, out):
        parts = cuda.shared.array((ROWS, LANES), x.dtype, alignment=ALIGNMENT)
        n, d, first, C = place(x)
        top, total = exp_sum(x, parts, n, d, first, C)
        for c in range(first, C, size):
            out[n, c, d] = math.exp(x[n, c, d] - top) / total

    def softmax_grad_input(grad, z, out):
        parts = cuda.shared.array((ROWS, LANES), grad.dtype, alignment=ALIGNMENT)
        n, d, first, C = place(grad)
        part = number(grad, 0)
        for c in range(first, C, size):
            part += grad[n, c, d] * z[n, c, d]
        total = team_sum(parts, part)
        for c in range(first, C, size):
            out[n, c, d] = z[n, c, d] * (grad[n, c, d] - total)

    def log_softmax(x, out):
        parts = cuda.shared.array((ROWS, LANES), x.dtype, alignment=ALIGNMENT)
        n, d, first, C = place(x)
        top, log_total = log_exp_sum(x, parts, n, d, first, C)
        for c in range(first, C, size):
            out[n, c, d] = x[n, c, d] - top - log_total

    def log_softmax_grad_input(grad, z, out):
        parts = cuda.shared.array((ROWS, LANES), grad.dtype, alignment=ALIGNMENT)
        n, d, first, C = place(grad)
        part = number(grad, 0)
        for c in range(first, C, size):
            part += grad[n, c, d]
        total = team_sum(parts, part)
        for c in range(first, C, size):
            out[n, c, d] = grad[n, c, d] - math.exp(z[n, c, d]) * total

    def cross_entropy(x, target, weight, ignore_index, smoothing, losses, weights, log_p):
        parts = cuda.shared.array((ROWS, LANES), x.dtype, alignment=ALIGNMENT)
        n, d, first, C = place(x)
        top, log_total = log_exp_sum(x, parts, n, d, first, C)
        part = number(x, 0)
        for c in range(first, C, size):
            log_p[n, c, d] = x[n, c, d] - top - log_total
            part -= weight[c] * log_p[n, c, d]
        spread = team_sum(parts, part)  # which also waits until all have written what one reads now
        if first == 0 and C > 0:
            grid.loss_at(log_p, target, weight, ignore_index, 0, losses, weights, n, d)
            if smoothing > 0 and target[n, d] != ignore_index:
                losses[n, d] += smoothing * (spread / number(x, C) - losses[n, d])

    def cross_entropy_grad_input(grad, log_p, target, weight, ignore_index, smoothing, out):
        parts = cuda.shared.array((ROWS, LANES), log_p.dtype, alignment=ALIGNMENT)
        n, d, first, C = place(log_p)
        part = number(log_p, 0)
        for c in range(first, C, size):
            part += grid.pull_at(log_p, target, weight, smoothing, n, c, d)
        total = team_sum(parts, part)
        for c in range(first, C, size):
            slope = math.exp(log_p[n, c, d]) * total - grid.pull_at(log_p, target, weight, smoothing, n, c, d)
            out[n, c, d] = grad[n, d] * slope if target[n, d] != ignore_index else number(log_p, 0)

    kernels = (
        softmax, softmax_grad_input, log_softmax, log_softmax_grad_input, cross_entropy, cross_entropy_grad_input,
    )  # fmt: skip
    return {kernel.__name__: Kernel(kernel) for kernel in kernels}


KERNELS = {team: _kernels(team) for team in (ROW, COLUMN, ALONE)}


def _op(name: str) -> Callable[..., None]:
    """Return the op; samples too many to count in 32 bits are left to `cuda`."""

    def run(*args: Any) -> None:
        N, C, D = args[name == "cross_entropy_grad_input"].shape
        team = ALONE if C < FEWEST_CLASSES else ROW if D == 1 else COLUMN
        if N * D > MOST_PLACES:
            grid.VARIANT.ops[name](*args)
        else:
            KERNELS[team][name].launch((ceil_div(N * D, team.samples), 1, 1), THREADS_OF_BLOCK, *args)

    return run


OPS = {name: _op(name) for name in KERNELS[ALONE]}
