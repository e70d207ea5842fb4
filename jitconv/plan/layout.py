"""Which values of a network are blocked, (N, C/lanes, H, W, lanes): decided for the whole graph before it is lowered.

A value is blocked if what makes it can write it so and something that uses it gains by it: between convolutions nothing
is transposed, and (N, C, H, W) is left to the ends, to linear layers and to torch.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from jitconv import shapes, variants
from jitconv.plan import nodes
from jitconv.plan.canonical import shape, value
from jitconv.plan.nodes import Node
from jitconv.variants import Variant, simd
from jitconv.variants.simd import SECOND_LEVEL_CACHE
from jitconv.variants.tiled.blocked import CHUNK
from jitconv.variants.tiled.kernel import Choice, Tiled
from jitconv.variants.tiled.table import Blocked

POOLS = (nodes.max_pool2d, nodes.avg_pool2d, nodes.adaptive_avg_pool2d)
JIT_TILED = Blocked, Tiled  # its kernels of a convolution
BLOCKED_FROM = 8  # output channels of a convolution: fewer leave half of a register empty


def convolutions(graph: fx.Graph, variant: Variant) -> set[Node]:
    """The convolutions that blocked kernels compute: those that the variant leaves to jit-tiled."""
    if not is_own(variant, "linear"):
        return set()
    found = graph.find_nodes(op="call_function", target=nodes.conv2d)
    return {node for node in found if _is_image(node) and _fills_lanes(node) and _is_jit_tiled(node, variant)}


def decide(graph: fx.Graph, convolutions: set[Node]) -> set[Node]:
    """The nodes whose values are blocked."""
    if not convolutions:
        return set()
    can = set(convolutions)
    for node in graph.nodes:
        if node.op == "call_function" and _is_image(node) and WRITERS.get(node.target, _never)(node, can):
            can.add(node)
    for node in reversed(graph.nodes):
        if node in convolutions and not any(_reads(user, can, convolutions) for user in node.users):
            can.remove(node)  # it writes (N, C, H, W) itself
    return can


def chained(blocked: set[Node]) -> dict[Node, Node]:
    """Which depthwise convolutions and poolings are computed band by band with the convolution before them: that one.

    Nothing else reads it, and one image of it is too much for a core's second-level cache.
    """
    found: dict[Node, Node] = {}
    for node in blocked:
        if _is_depthwise(node) or _is_max_pool(node):
            first = node.args[0]
            alone = first in blocked and first.target is nodes.conv2d and len(first.users) == 1
            if alone and first.args[3][3] == 1 and _is_bounded(first):
                size = math.prod(shape(first)[1:]) * value(first).dtype.itemsize
                if size > SECOND_LEVEL_CACHE:
                    found[node] = first
    return found


def _is_max_pool(node: Node) -> bool:
    """Whether a node pools without dilation, after a convolution whose weights pass the cache in one piece."""
    if node.target is not nodes.max_pool2d or node.args[0].target is not nodes.conv2d:
        return False
    x, pooling = node.args
    weights = math.prod(shape(x.args[1])[1:]) * 2 * simd.REGISTER_BYTES  # of a filter tile
    return weights <= CHUNK and shapes.pooling(shape(x), *pooling).dilation == (1, 1)


def _is_depthwise(node: Node) -> bool:
    if node.target is not nodes.conv2d:
        return False
    outputs, inputs, *_ = shape(node.args[1])
    whole = outputs % lanes_of(node) == 0
    return inputs == 1 and outputs == node.args[3][3] > 1 and whole and _is_bounded(node)


def _is_bounded(node: Node) -> bool:
    """Whether a convolution is followed by no residual, and by no activation but bounds."""
    residual, activation = [*node.args[4:], None, None][:2]
    return residual is None and activation not in nodes.SMOOTH_ACTIVATIONS


def is_own(variant: Variant, op: str) -> bool:
    """Whether a variant's op is jit-tiled's own, which a blocked or packed kernel may stand for."""
    return variant.ops.get(op) is variants.get("jit-tiled").ops[op]


def _is_jit_tiled(node: Node, variant: Variant) -> bool:
    """Whether jit-tiled computes a convolution: in this variant, or in one that has other kernels for some shapes."""
    kernel = variant.ops.get("conv2d")
    if is_own(variant, "conv2d") or not isinstance(kernel, Choice):
        return is_own(variant, "conv2d")
    x, weight, _, convolution = node.args[:4]
    geometry = shapes.conv2d(value(x), value(weight), None, *convolution)
    sizes = shape(x), shape(weight), shape(weight)[:1], shape(node)
    return isinstance(kernel.bind(tuple((size, dtype_of(node)) for size in sizes), geometry[:3]), JIT_TILED)


def _is_image(node: Node) -> bool:
    v = node.meta.get("val")  # an assertion that torch.export adds has none
    return isinstance(v, torch.Tensor) and v.dim() == 4 and v.dtype in (torch.float32, torch.float64) and v.numel() > 0


def dtype_of(node: Node) -> np.dtype[Any]:
    return np.dtype("float64" if value(node).dtype == torch.float64 else "float32")


def lanes_of(node: Node) -> int:
    return simd.lanes_of(dtype_of(node))


def _fills_lanes(node: Node) -> bool:
    """Whether a convolution has the channels for a blocked kernel."""
    lanes, (outputs, inputs, *_) = lanes_of(node), shape(node.args[1])
    groups = node.args[3][3]
    if not _is_image(node.args[0]):
        return False
    depthwise = inputs == 1 and outputs == groups
    if groups > 1 and not depthwise:
        return inputs % lanes == 0 and (outputs // groups) % lanes == 0
    return outputs >= BLOCKED_FROM


def _pool(node: Node, can: set[Node]) -> bool:
    return node.args[0] in can


def _average(node: Node, can: set[Node]) -> bool:
    return _is_image(node.args[0])  # of which else torch would compute the averages, more slowly than transposing takes


def _elementwise(node: Node, can: set[Node]) -> bool:
    tensors = node.args[:2] if node.target in (nodes.add, nodes.scale) else node.args[:1]
    return all(x in can for x in tensors)


def _concat(node: Node, can: set[Node]) -> bool:
    parts, dim = node.args
    return dim == 1 and all(x in can for x in parts) and all(shape(x)[1] % lanes_of(node) == 0 for x in parts[:-1])


def _never(node: Node, can: set[Node]) -> bool:
    return False


def _reads(user: Node, can: set[Node], convolutions: set[Node]) -> bool:
    """Whether a node gains by getting its image blocked."""
    if user.target is nodes.conv2d:
        return user in convolutions
    return user.op == "call_function" and (user in can or user.target in POOLS)


WRITERS: dict[Any, Callable[[Node, set[Node]], bool]] = {
    nodes.max_pool2d: _pool,
    nodes.avg_pool2d: _average,
    nodes.adaptive_avg_pool2d: _average,
    nodes.activate: _elementwise,
    nodes.affine: _elementwise,
    nodes.add: _elementwise,
    nodes.scale: _elementwise,
    nodes.concat: _concat,
}
