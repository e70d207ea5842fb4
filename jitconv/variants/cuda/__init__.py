"""`cuda` and `cuda-tiled`: the layers on NVIDIA GPUs. Neither was ever run on one.

They were checked in Numba's simulator and by compiling them to PTX, which needs no GPU; tests/cuda/test_device.py and
`make gpu` await one. This is the only package that imports numba.cuda.

`cuda` (per_element.py) gives a thread one output element, and answers for every op. `cuda-tiled` replaces those ops
that gain by sharing loads or sums: products in tiles (matmul.py, conv2d.py), sums by blocks of threads (reduce.py,
softmax.py), and pooling with constant geometry. launch.py starts kernels; sizes.py says of how many threads.
"""

from dataclasses import replace

from jitconv.variants.cuda import conv2d, matmul, per_element, reduce, softmax

_TILED = (
    conv2d.conv2d, conv2d.conv2d_relu, conv2d.conv2d_grad_input, conv2d.conv2d_grad_weight, reduce.conv2d_grad_bias,
    matmul.linear, matmul.linear_relu, matmul.linear_grad_input, matmul.linear_grad_weight,
)  # fmt: skip
_VIEWS = ("flatten", "flatten_grad_input")  # for which a variant without a kernel returns a view

TILED = replace(
    per_element.VARIANT,
    name="cuda-tiled",
    ops={op: kernel for op, kernel in per_element.OPS_PER_ELEMENT.items() if op not in _VIEWS}
    | {
        "max_pool2d": per_element.constant_max_pool2d,
        "max_pool2d_grad_input": per_element.constant_max_pool2d_grad_input,
    }
    | softmax.SOFTMAX_OPS
    | {op.__name__: op for op in _TILED},
)

VARIANTS = (per_element.VARIANT, TILED)
