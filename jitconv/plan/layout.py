"""Which values of a network are blocked, (N, C/lanes, H, W, lanes): decided for the whole graph before it is lowered.

A value is blocked if what makes it can write it so and something that uses it gains by it: between convolutions nothing
is transposed, and (N, C, H, W) is left to the ends, to linear layers and to torch.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from jitconv import variants
from jitconv.plan import nodes
from jitconv.plan.canonical import shape, value
from jitconv.plan.nodes import Node
from jitconv.variants import Variant, simd
from jitconv.variants.simd import SECOND_LEVEL_CACHE

POOLS = (nodes.max_pool2d, nodes.avg_pool2d, nodes.adaptive_avg_pool2d)
BLOCKED_FROM = 8  # output channels of a convolution: fewer leave half of a register empty


def decide(graph: fx.Graph, variant: Variant) -> set[Node]:
    """The nodes whose values are blocked."""
    if not is_tiled(variant):
        return set()
    can: set[Node] = set()
    for node in graph.nodes:
        if node.op == "call_function" and _is_image(node) and WRITERS.get(node.target, _never)(node, can):
            can.add(node)
    for node in reversed(graph.nodes):
        if node in can and node.target is nodes.conv2d and not any(_reads(user, can) for user in node.users):
            can.remove(node)  # it writes (N, C, H, W) itself
    return can


def chained(blocked: set[Node]) -> dict[Node, Node]:
    """Which depthwise convolutions are computed band by band with the convolution before them: that one.

    Nothing else reads it, and one image of it is too much for a core's second-level cache.
    """
    found: dict[Node, Node] = {}
    for node in blocked:
        if node.target is nodes.conv2d and _is_depthwise(node):
            first = node.args[0]
            alone = first in blocked and first.target is nodes.conv2d and len(first.users) == 1
            if alone and first.args[3][3] == 1 and _is_bounded(first):
                size = math.prod(shape(first)[1:]) * value(first).dtype.itemsize
                if size > SECOND_LEVEL_CACHE:
                    found[node] = first
    return found


def _is_depthwise(node: Node) -> bool:
    outputs, inputs, *_ = shape(node.args[1])
    whole = outputs % lanes_of(node) == 0
    return inputs == 1 and outputs == node.args[3][3] > 1 and whole and _is_bounded(node)


def _is_bounded(node: Node) -> bool:
    """Whether a convolution is followed by no residual, and by no activation but bounds."""
    residual, activation = [*node.args[4:], None, None][:2]
    return residual is None and activation not in nodes.SMOOTH_ACTIVATIONS


def is_tiled(variant: Variant) -> bool:
    """Whether a variant's products are jit-tiled's own, which blocked and packed ones may stand for."""
    own = variants.get("jit-tiled").ops
    return all(variant.ops.get(op) is own[op] for op in ("conv2d", "linear"))


def _is_image(node: Node) -> bool:
    v = node.meta.get("val")  # an assertion that torch.export adds has none
    return isinstance(v, torch.Tensor) and v.dim() == 4 and v.dtype in (torch.float32, torch.float64) and v.numel() > 0


def lanes_of(node: Node) -> int:
    return simd.lanes_of("float64" if value(node).dtype == torch.float64 else "float32")


def convolves(node: Node) -> bool:
    """Whether a blocked convolution computes this node."""
    lanes, (outputs, inputs, *_) = lanes_of(node), shape(node.args[1])
    groups = node.args[3][3]
    if not _is_image(node.args[0]):
        return False
    depthwise = inputs == 1 and outputs == groups
    if groups > 1 and not depthwise:
        return inputs % lanes == 0 and (outputs // groups) % lanes == 0
    return outputs >= BLOCKED_FROM


def _convolution(node: Node, can: set[Node]) -> bool:
    return convolves(node)


def _pool(node: Node, can: set[Node]) -> bool:
    return node.args[0] in can


def _elementwise(node: Node, can: set[Node]) -> bool:
    tensors = node.args[:2] if node.target in (nodes.add, nodes.scale) else node.args[:1]
    return all(x in can for x in tensors)


def _concat(node: Node, can: set[Node]) -> bool:
    parts, dim = node.args
    return dim == 1 and all(x in can for x in parts) and all(shape(x)[1] % lanes_of(node) == 0 for x in parts[:-1])


def _never(node: Node, can: set[Node]) -> bool:
    return False


def _reads(user: Node, can: set[Node]) -> bool:
    """Whether a node gains by getting its image blocked."""
    if user.target is nodes.conv2d:
        return convolves(user)
    return user.op == "call_function" and (user in can or user.target in POOLS)


WRITERS: dict[Any, Callable[[Node, set[Node]], bool]] = {
    nodes.conv2d: _convolution,
    nodes.max_pool2d: _pool,
    nodes.avg_pool2d: _pool,
    nodes.adaptive_avg_pool2d: _pool,
    nodes.activate: _elementwise,
    nodes.affine: _elementwise,
    nodes.add: _elementwise,
    nodes.scale: _elementwise,
    nodes.concat: _concat,
}
