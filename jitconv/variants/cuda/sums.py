"""The gradients of biases for `cuda-tiled`: sums over a whole batch, of which there are few for so many threads.

Each sum is shared out to the threads of several blocks, which add up their shares in shared memory; the sums of the
blocks are added up afterwards.
"""

from typing import Any

from numba import cuda

from jitconv.variants.cuda import grid
from jitconv.variants.cuda.grid import MOST_PLACES, divide, number
from jitconv.variants.cuda.launch import Kernel, empty_like, size
from jitconv.variants.cuda.sizes import ALIGNMENT, LANES, RESIDENT, ROWS, ceil_div
from jitconv.variants.cuda.teams import (
    THREADS_OF_BLOCK,
    block_sum,
    column_sum,
    lane_of_row,
    row_of_block,
    thread_of_block,
)

FEWEST = 8  # terms of a thread that are worth another block


def _channel_sums(grad, parts):
    """parts[s, c] = Σ of the s-th share of grad[:, c, :], where grad is (N, C, P); a block a sum"""
    shared = cuda.shared.array((ROWS, LANES), grad.dtype, alignment=ALIGNMENT)
    N, C, P = grad.shape
    c, share, shares = cuda.blockIdx.x, cuda.blockIdx.y, cuda.gridDim.y
    part = number(grad, 0)
    for e in range(share * THREADS_OF_BLOCK + thread_of_block(), N * P, shares * THREADS_OF_BLOCK):
        n, p = divide(e, P)
        part += grad[n, c, p]
    total = block_sum(shared, part)
    if thread_of_block() == 0:
        parts[share, c] = total


def _column_sums(grad, parts):
    """parts[s, j] = Σ of the s-th share of grad[:, j], where grad is (N, O); a block has LANES columns"""
    shared = cuda.shared.array((ROWS, LANES), grad.dtype, alignment=ALIGNMENT)
    row, share, shares = row_of_block(), cuda.blockIdx.y, cuda.gridDim.y
    j = cuda.blockIdx.x * LANES + lane_of_row()
    part = number(grad, 0)
    if j < grad.shape[1]:
        for n in range(share * ROWS + row, grad.shape[0], shares * ROWS):
            part += grad[n, j]
    total = column_sum(shared, part)
    if row == 0 and j < grad.shape[1]:
        parts[share, j] = total


channel_sums, column_sums = Kernel(_channel_sums), Kernel(_column_sums)


def conv2d_grad_bias(grad: Any, out: Any) -> None:
    """∂b[c_out] = Σ_n Σ_row Σ_col ∂z[n, c_out, row, col]"""
    N, C, H, W = grad.shape
    if N * H * W > MOST_PLACES:
        grid.VARIANT.ops["conv2d_grad_bias"](grad, out)
    else:
        in_shares(channel_sums, C, N * H * W // THREADS_OF_BLOCK, out, grad.reshape(N, C, H * W))


def linear_grad_bias(grad: Any, out: Any) -> None:
    """∂b[j] = Σ_n ∂z[n, j]"""
    in_shares(column_sums, ceil_div(size(out), LANES), grad.shape[0] // ROWS, out, grad)


def in_shares(kernel: Kernel, blocks: int, terms: int, out: Any, *args: Any) -> None:
    """Fill out, a sum an element, through a kernel (*args, parts), parts: (shares, *out.shape).

    So many blocks have so many terms a thread; where those are few blocks for a GPU, shares of the terms get blocks of
    their own.
    """
    shares = max(1, min(RESIDENT // blocks, terms // FEWEST))
    parts = out[None] if shares == 1 else empty_like(out, (shares, *out.shape))
    kernel.launch((blocks, shares, 1), THREADS_OF_BLOCK, *args, parts)
    if shares > 1:
        blocks = ceil_div(size(out), LANES)
        column_sums.launch((blocks, 1, 1), THREADS_OF_BLOCK, parts.reshape(shares, -1), out.reshape(1, -1))
