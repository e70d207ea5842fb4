"""The gradients of biases for `cuda-tiled`: sums over a whole batch, of which there are few for so many threads.

Each sum is shared out to the threads of several blocks, which add up their shares in shared memory; the sums of the
blocks are added up afterwards. Blocks have ROWS × LANES threads.
"""

from typing import Any

from numba import cuda

from jitconv.variants.cuda import grid
from jitconv.variants.cuda.grid import MOST_PLACES, divide, number
from jitconv.variants.cuda.launch import Kernel, device, empty_like, size
from jitconv.variants.cuda.matmul import add_up
from jitconv.variants.cuda.sizes import ALIGNMENT, BUSY, LANES, ROWS, ceil_div
from jitconv.variants.cuda.softmax import row_sum

FEWEST = 8  # terms of a thread that are worth another block


def _channel_sums(grad, parts):
    """parts[s, c] = Σ of the s-th share of grad[:, c, :], where grad is (N, C, P); a block a sum"""
    shared = cuda.shared.array((ROWS, LANES), grad.dtype, alignment=ALIGNMENT)
    N, C, P = grad.shape
    thread = cuda.threadIdx.x & (ROWS * LANES - 1)
    c = cuda.blockIdx.x
    part = number(grad, 0)
    for e in range(cuda.blockIdx.y * ROWS * LANES + thread, N * P, cuda.gridDim.y * ROWS * LANES):
        n, p = divide(e, P)
        part += grad[n, c, p]
    of_row = row_sum(shared, thread // LANES, thread % LANES, part)
    total = column_sum(shared, thread // LANES, thread % LANES, of_row)
    if thread == 0:
        parts[cuda.blockIdx.y, c] = total


def _column_sums(grad, parts):
    """parts[s, j] = Σ of the s-th share of grad[:, j], where grad is (N, O); a block has LANES columns"""
    shared = cuda.shared.array((ROWS, LANES), grad.dtype, alignment=ALIGNMENT)
    thread = cuda.threadIdx.x & (ROWS * LANES - 1)
    row, lane = thread // LANES, thread % LANES
    j = cuda.blockIdx.x * LANES + lane
    part = number(grad, 0)
    if j < grad.shape[1]:
        for n in range(cuda.blockIdx.y * ROWS + row, grad.shape[0], cuda.gridDim.y * ROWS):
            part += grad[n, j]
    total = column_sum(shared, row, lane, part)
    if row == 0 and j < grad.shape[1]:
        parts[cuda.blockIdx.y, j] = total


@device
def column_sum(shared, row, lane, part):
    """Σ of the parts of all threads of this lane"""
    cuda.syncthreads()
    shared[row, lane] = part
    cuda.syncthreads()
    total = number(shared, 0)
    for each in range(ROWS):
        total += shared[each, lane]
    return total


channel_sums, column_sums = Kernel(_channel_sums), Kernel(_column_sums)


def conv2d_grad_bias(grad: Any, out: Any) -> None:
    """∂b[c_out] = Σ_n Σ_row Σ_col ∂z[n, c_out, row, col]"""
    N, C, H, W = grad.shape
    if N * H * W > MOST_PLACES:
        grid.VARIANT.ops["conv2d_grad_bias"](grad, out)
    else:
        _in_shares(channel_sums, grad.reshape(N, C, H * W), out, C, N * H * W // (ROWS * LANES))


def linear_grad_bias(grad: Any, out: Any) -> None:
    """∂b[j] = Σ_n ∂z[n, j]"""
    _in_shares(column_sums, grad, out, ceil_div(size(out), LANES), grad.shape[0] // ROWS)


def _in_shares(kernel: Kernel, grad: Any, out: Any, blocks: int, terms: int) -> None:
    """Fill out with sums that so many blocks compute with so many terms a thread, or more blocks with fewer terms."""
    shares = max(1, min(BUSY // blocks, terms // FEWEST))
    parts = out[None] if shares == 1 else empty_like(out, (shares, size(out)))
    kernel.launch((blocks, shares, 1), ROWS * LANES, grad, parts)
    if shares > 1:
        add_up(parts, out)
