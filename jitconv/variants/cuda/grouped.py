"""The gradient of the weights of a convolution with few filters a group, depthwise ones above all, for `cuda-tiled`.

    ∂w[c_out, c, i, j] = Σ_p ∂z[c_out, p] · x_col[(c, i, j), p]    with the positions p = (n, row, col)

Few weights, each a sum over all positions of the batch: a block of threads shares out the positions of one channel c
under some filters, for a piece of the window, mostly the whole. A thread keeps all those sums in registers: what it
loads of ∂z serves every tap and what it loads of x every filter. Then all exchange them through shared memory.
"""

import functools
from typing import Any

from numba import cuda

from jitconv.variants.cuda.grid import unfold
from jitconv.variants.cuda.launch import Kernel
from jitconv.variants.cuda.sizes import ALIGNMENT, LANES, MOST_SUMS, ROWS, ceil_div
from jitconv.variants.cuda.sums import in_shares
from jitconv.variants.cuda.teams import THREADS_OF_BLOCK, lane_of_row, lanes_sum, row_of_block, thread_of_block

Pair = tuple[int, int]


def conv2d_grad_weight(grad: Any, x: Any, stride: Pair, padding: Pair, dilation: Pair, out: Any) -> None:
    """Fill out, for a grad of at most MOST_PLACES positions; any stride, padding, dilation and groups."""
    C_out, C_group, K_h, K_w = out.shape
    N, _, H_out, W_out = grad.shape
    of_group = C_out // (x.shape[1] // C_group)
    most = MOST_SUMS * 4 // out.dtype.itemsize
    cols = even_piece(K_w, most)
    rows = even_piece(K_h, most // cols)
    filters = next(f for f in range(most // (rows * cols), 0, -1) if of_group % f == 0)
    blocks = C_out // filters * C_group * ceil_div(K_h, rows) * ceil_div(K_w, cols)
    kernel = _kernel(filters, (rows, cols), (K_h, K_w), stride, padding, dilation)
    in_shares(kernel, blocks, N * H_out * W_out // THREADS_OF_BLOCK, out, grad, x, of_group)


def even_piece(extent: int, most: int) -> int:
    """Return the size of pieces into which the extent is cut evenly: at most so many."""
    return ceil_div(extent, ceil_div(extent, most))


@functools.cache
def _kernel(filters: int, piece: Pair, window: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Kernel:
    """Return the kernel (grad, x, filters of a group, parts), parts: (shares, *weight.shape), for such pieces."""
    (K_h, K_w), (rows, cols) = window, piece
    pieces_h, pieces_w = ceil_div(K_h, rows), ceil_div(K_w, cols)
    count = filters * rows * cols

    def conv2d_grad_weight(grad, x, of_group, parts):
        shared = cuda.shared.array((count, ROWS, LANES), grad.dtype, alignment=ALIGNMENT)
        sums, grads = cuda.local.array((filters, rows, cols), grad.dtype), cuda.local.array(filters, grad.dtype)
        N, _, H_out, W_out = grad.shape
        share, shares, row_of_threads, lane = cuda.blockIdx.y, cuda.gridDim.y, row_of_block(), lane_of_row()
        first, c, at = unfold(cuda.blockIdx.x, (parts.shape[2], pieces_h * pieces_w))
        first_out, first_i, first_j = first * filters, at // pieces_w * rows, at % pieces_w * cols
        c_in = first_out // of_group * parts.shape[2] + c
        for f in range(filters):
            for i in range(rows):
                for j in range(cols):
                    sums[f, i, j] = 0

        for p in range(share * THREADS_OF_BLOCK + thread_of_block(), N * H_out * W_out, shares * THREADS_OF_BLOCK):
            n, row, col = unfold(p, (H_out, W_out))
            for f in range(filters):
                grads[f] = grad[n, first_out + f, row, col]
            for i in range(rows):
                m = row * stride[0] - padding[0] + (first_i + i) * dilation[0]
                for j in range(cols):
                    l = col * stride[1] - padding[1] + (first_j + j) * dilation[1]
                    if 0 <= m < x.shape[2] and 0 <= l < x.shape[3]:
                        value = x[n, c_in, m, l]
                        for f in range(filters):
                            sums[f, i, j] += grads[f] * value

        for f in range(filters):
            for i in range(rows):
                for j in range(cols):
                    shared[(f * rows + i) * cols + j, row_of_threads, lane] = sums[f, i, j]
        cuda.syncthreads()
        for e in range(row_of_threads, count, ROWS):
            for r in range(1, ROWS):
                shared[e, 0, lane] += shared[e, r, lane]
        cuda.syncthreads()
        for e in range(thread_of_block(), count, THREADS_OF_BLOCK):
            f, i, j = unfold(e, (rows, cols))
            if first_i + i < K_h and first_j + j < K_w:
                parts[share, first_out + f, c, first_i + i, first_j + j] = lanes_sum(shared, (e, 0))

    return Kernel(conv2d_grad_weight)
