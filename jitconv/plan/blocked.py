"""Kernels for nodes whose images are blocked (layout.py), bound to arrays: the same table as kernels.py's."""

import math
from typing import Any

import numpy as np

from jitconv import shapes
from jitconv.plan import buffers, nodes
from jitconv.plan.canonical import shape
from jitconv.plan.kernels import (
    Binder,
    KernelCall,
    activated,
    bias_of,
    bounds,
    concat,
    fixed,
    flat,
    geometry,
    multiply_adds,
    smooth,
)
from jitconv.plan.nodes import Node
from jitconv.variants.simd import lanes_of
from jitconv.variants.tiled import banded, blocked, windows


def conv2d(low: Any, node: Node) -> list[KernelCall]:
    if node in low.chained:
        return _with_depthwise(low, low.chained[node], node)
    x, weight, bias, convolution, residual, activation = [*node.args, None, None][:6]
    stride, padding, dilation, _ = geometry(x, weight, convolution)
    source, target = ("blocked" if each in low.blocked else "nchw" for each in (x, node))
    epilogue = blocked.Epilogue(_epilogue(activation), residual is not None)
    kernel = blocked.bind(
        shape(x), shape(weight), low.dtype(x), stride, padding, dilation, convolution[3], source, target, epilogue
    )
    if node in low.inside and shape(node)[0] > 1:
        whole = low.out_block(low.inside[node][0])
        kernel.put_images_apart(math.prod(whole.shape[1:]))
    image = low.block(x) if x in low.blocked else low.array(x)
    added = None if residual is None else low.block(residual) if node in low.blocked else low.array(residual)
    packed = low.packed(weight, kernel.pack)
    out = low.out_block(node) if node in low.blocked else low.out(node)
    flops = multiply_adds(out._replace(shape=shape(node)), weight)
    name = "depthwise conv2d, blocked" if kernel.depthwise else "conv2d, blocked"
    args = [image, packed, bias_of(low, bias, weight), added, out]
    return [KernelCall(name, kernel, args, flops, fixed=fixed(low, weight, bias))]


def _with_depthwise(low: Any, first: Node, node: Node) -> list[KernelCall]:
    """A convolution, and the depthwise one that alone reads it, as one kernel."""
    _, weight, bias, convolution = node.args[:4]
    stride, padding, dilation, _ = geometry(first, weight, convolution)
    axis = shape(first)[2], shape(node)[2], shape(weight)[2], stride[0], padding[0], dilation[0]
    second = _by_line(low, node)
    both = banded.ConvolvedDepthwise(_by_line(low, first), second, windows.windows(*axis))
    call = _banded(low, first, node, both, [low.packed(weight, second.pack), bias_of(low, bias, weight)])
    call.flops += multiply_adds(low.out_block(node)._replace(shape=shape(node)), weight)
    call.fixed = call.fixed and fixed(low, weight, bias)
    return [call]


def _with_max_pool(low: Any, first: Node, node: Node) -> list[KernelCall]:
    """A convolution, and the max-pooling that alone reads it, as one kernel."""
    rows, columns, steps = _windows(first, node)
    return [_banded(low, first, node, banded.ConvolvedMaxPool(_by_line(low, first), rows, columns, steps), [])]


def _banded(low: Any, first: Node, node: Node, both: banded.Banded, more: list[Any]) -> KernelCall:
    """A call of the two; more: what the second reads beside the first's result."""
    x, weight, bias = first.args[:3]
    out = low.out_block(node)
    args = [low.block(x) if x in low.blocked else low.array(x)]
    args += [low.packed(weight, both.first.pack), bias_of(low, bias, weight), *more]
    args += [buffers.new((both.size * both.workers,), out.dtype), out]
    flops = multiply_adds(out._replace(shape=shape(first)), weight)
    node.meta["from"] = (*first.meta.get("from", (first.name,)), *node.meta.get("from", (node.name,)))
    return KernelCall(f"conv2d + {both.name}, blocked", both, args, flops, fixed=fixed(low, weight, bias))


def _by_line(low: Any, node: Node) -> blocked.Convolution:
    x, weight, _, convolution = node.args[:4]
    stride, padding, dilation, _ = geometry(x, weight, convolution)
    source = "blocked" if x in low.blocked else "nchw"
    epilogue = blocked.Epilogue(bounds([*node.args, None, None][5]), by_line=True)
    return blocked.bind(
        shape(x), shape(weight), low.dtype(x), stride, padding, dilation, convolution[3], source, "blocked", epilogue
    )


def _epilogue(activation: nodes.Activation) -> Any:
    match activation:
        case None:
            return None
        case ("clamp", low, high):
            return low, high
        case (name,):
            return name


def max_pool2d(low: Any, node: Node) -> list[KernelCall]:
    if node in low.chained:
        return _with_max_pool(low, low.chained[node], node)
    x, _ = node.args
    args = [flat(low.block(x)), shape(x)[0], shape(x)[3], *_windows(x, node), flat(low.out_block(node))]
    return [KernelCall("max_pool2d, blocked", windows.MAX_POOL2D, args)]


def _windows(x: Node, node: Node) -> tuple[Any, Any, tuple[int, int]]:
    """The rows and the columns of a max-pooling's windows, and how far apart those of a window are."""
    kernel, stride, padding, dilation, size = shapes.pooling(shape(x), *node.args[1])
    each = zip(shape(x)[2:], size, kernel, stride, padding, dilation, strict=True)
    rows, columns = (windows.windows(*axis) for axis in each)
    return rows, columns, dilation


def avg_pool2d(low: Any, node: Node) -> list[KernelCall]:
    x, (kernel, stride, padding, _, counts_padding, divisor) = node.args
    size, out_size = shape(x)[2:], shape(node)[2:]
    each = zip(size, out_size, kernel, stride, padding, (1, 1), strict=True)
    axes = [windows.windows(*axis) for axis in each]
    spans = []
    for axis, n, out, k, s, p in zip(axes, size, out_size, kernel, stride, padding, strict=True):
        first = np.arange(out) * s - p  # what counts of the padding: not what ceil_mode adds
        spans.append(np.minimum(first + k, n + p) - first if counts_padding else axis[:, 1] - axis[:, 0])
    divisors = np.full(out_size, divisor) if divisor else np.outer(*spans)
    return _averages(low, node, x, axes, divisors)


def adaptive_avg_pool2d(low: Any, node: Node) -> list[KernelCall]:
    x, _ = node.args
    axes = [windows.adaptive(*axis) for axis in zip(shape(x)[2:], shape(node)[2:], strict=True)]
    return _averages(low, node, x, axes, np.outer(*(axis[:, 1] - axis[:, 0] for axis in axes)))


def _averages(low: Any, node: Node, x: Node, axes: list[Any], divisors: Any) -> list[KernelCall]:
    source, out = flat(low.block(x)), flat(low.out_block(node))
    args = [source, shape(x)[0], shape(x)[3], *axes, divisors.reshape(-1).astype(source.dtype), out]
    return [KernelCall("avg_pool2d, blocked", windows.AVG_POOL2D, args)]


def affine(low: Any, node: Node) -> list[KernelCall]:
    x, scale, shift, activation = [*node.args, None][:4]
    low_high = bounds(activation) or (-math.inf, math.inf)
    out = low.out_block(node)
    padded = [low.packed(each, _whole_blocks) for each in (scale, shift)]
    args = [flat(low.block(x)), *padded, math.prod(shape(x)[2:]), *low_high, flat(out)]
    return [KernelCall("affine, blocked", windows.AFFINE, args), *smooth(out, activation)]


def add(low: Any, node: Node) -> list[KernelCall]:
    x, y, activation = [*node.args, None][:3]
    out = low.out_block(node)
    args = [flat(low.block(x)), flat(low.block(y)), *(bounds(activation) or (-math.inf, math.inf)), flat(out)]
    return [KernelCall("add, blocked", windows.ADD, args), *smooth(out, activation)]


def activate(low: Any, node: Node) -> list[KernelCall]:
    x, activation = node.args
    out = low.out_block(node)
    return activated(low.block(x), activation, out)


def scale(low: Any, node: Node) -> list[KernelCall]:
    x, factors = node.args
    args = [flat(low.block(x)), flat(low.block(factors)), math.prod(shape(x)[2:]), flat(low.out_block(node))]
    return [KernelCall("scale, blocked", windows.SCALE, args)]


def _whole_blocks(values: Any) -> Any:
    """A number for each channel, and 0 for the lanes that have none."""
    return np.pad(values, (0, -values.size % lanes_of(values.dtype)))


BLOCKED_BINDERS: dict[Any, Binder] = {
    nodes.conv2d: conv2d,
    nodes.max_pool2d: max_pool2d,
    nodes.avg_pool2d: avg_pool2d,
    nodes.adaptive_avg_pool2d: adaptive_avg_pool2d,
    nodes.affine: affine,
    nodes.add: add,
    nodes.activate: activate,
    nodes.scale: scale,
    nodes.concat: concat,
}
