"""From aten's and jitconv's own operations to those of nodes.py: one small function for each, in one table.

A function takes the node and returns (what it becomes, its arguments), another node that stands for it, or None where
it must stay what it is: then torch runs it.
"""

import importlib
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from jitconv.compat import schema_of
from jitconv.plan import nodes
from jitconv.plan.nodes import Node

aten = torch.ops.aten
Result = tuple[Callable[..., Any], tuple[Any, ...]] | Node | None


def value(node: Any) -> Any:
    """The tensor (a fake one) that stands for a node's result."""
    return node.meta["val"]


def shape(node: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in value(node).shape)


def arguments(node: Node) -> dict[str, Any]:
    """All arguments of an operator's call by name, defaults included."""
    schema = schema_of(node.target).arguments
    given = {a.name: v for a, v in zip(schema, node.args, strict=False)} | node.kwargs
    return {a.name: given.get(a.name, a.default_value if a.has_default_value() else None) for a in schema}


def pair(numbers: Any) -> tuple[int, int]:
    """One int or a sequence of one or two as two ints."""
    numbers = (numbers,) if isinstance(numbers, int) else tuple(numbers)
    return int(numbers[0]), int(numbers[-1])


def _floating(*tensors: Any) -> bool:
    """Whether all are tensors of one floating dtype that kernels have, on the CPU."""
    values = [value(t) for t in tensors if t is not None]
    kinds = {getattr(v, "dtype", None) for v in values}
    return len(kinds) == 1 and kinds <= {torch.float32, torch.float64} and all(v.device.type == "cpu" for v in values)


def convolution(node: Node) -> Result:
    a = arguments(node)
    x, weight, bias = a["input"], a["weight"], a["bias"]
    odd = a.get("transposed") or value(weight).dim() != 4 or not _floating(x, weight, bias)
    if odd or (bias is not None and not isinstance(bias, fx.Node)):
        return None
    padding = a["padding"] if isinstance(a["padding"], str) else pair(a["padding"])
    if padding == "same" and any(n % 2 == 0 for n in shape(weight)[2:]):  # more zeros on one side than on the other
        return None
    return nodes.conv2d, (x, weight, bias, (pair(a["stride"]), padding, pair(a["dilation"]), int(a["groups"])))


def own_convolution(node: Node) -> Result:
    a = arguments(node)
    geometry = _own_geometry(a, a["size"])
    return geometry and (nodes.conv2d, (a["input"], a["weight"], a["bias"], geometry, None, _own_relu(node)))


def own_pooled_convolution(node: Node) -> Result:
    a = arguments(node)
    geometry = _own_geometry(a, a["conv_size"])
    pooling = _own_pooling(a, "pool_", a["conv_size"])
    return geometry and pooling and (nodes.conv2d_max_pool2d, (a["input"], a["weight"], a["bias"], geometry, pooling))


def _own_geometry(a: dict[str, Any], size: Sequence[int]) -> tuple[Any, ...] | None:
    """The arguments of torch's convolution that gives this size; None if zeros are more on one side."""
    stride, padding, dilation = pair(a["stride"]), pair(a["padding"]), pair(a["dilation"])
    (C, *spatial), (_, C_group, *kernel) = shape(a["input"])[-3:], shape(a["weight"])
    for n, k, s, p, d, out in zip(spatial, kernel, stride, padding, dilation, size, strict=True):
        if (n + 2 * p - d * (k - 1) - 1) // s + 1 != out:
            return None
    return stride, padding, dilation, C // C_group


def _own_pooling(a: dict[str, Any], prefix: str, spatial: Sequence[int]) -> tuple[Any, ...] | None:
    kernel = pair(a["kernel_size"])
    stride, padding, dilation = (pair(a[prefix + name]) for name in ("stride", "padding", "dilation"))
    each = list(zip(spatial, kernel, stride, padding, dilation, a["size"], strict=True))
    floor = all((n + 2 * p - d * (k - 1) - 1) // s + 1 == out for n, k, s, p, d, out in each)
    return kernel, stride, padding, dilation, not floor


def _own_relu(node: Node) -> nodes.Activation:
    return ("relu",) if str(node.target).split(".")[1].endswith("_relu") else None


def linear(node: Node) -> Result:
    a = arguments(node)
    x, weight, bias = a["input"], a["weight"], a["bias"]
    if value(weight).dim() != 2 or value(x).dim() < 1 or not _floating(x, weight, bias):
        return None
    return nodes.linear, (x, weight, bias, _own_relu(node) if "jitconv" in str(node.target) else None)


def matrix_product(node: Node) -> Result:
    """addmm and mm whose second factor is a transposed weight, as AOTAutograd writes `linear`."""
    a = arguments(node)
    x, turned, bias = a.get("mat1", a.get("self")), a["mat2"], a["self"] if "mat1" in a else None
    if a.get("alpha", 1) != 1 or a.get("beta", 1) != 1 or not _transpose(turned):
        return None
    weight = turned.args[0]
    fits = bias is None or shape(bias) == (shape(weight)[0],)
    return (nodes.linear, (x, weight, bias)) if fits and _floating(x, weight, bias) else None


def _transpose(node: Any) -> bool:
    if not isinstance(node, fx.Node) or value(node).dim() != 2:
        return False
    swaps = {aten.permute.default: ([1, 0],), aten.t.default: (), aten.transpose.int: (0, 1)}
    return node.target in swaps and tuple(node.args[1:]) == swaps[node.target]


def activation(kind: Callable[[dict[str, Any]], nodes.Activation]) -> Callable[[Node], Result]:
    def become(node: Node) -> Result:
        a = arguments(node)
        x = a.get("self", a.get("input"))
        chosen = kind(a)
        return (nodes.activate, (x, chosen)) if chosen and _floating(x) else None

    return become


def _clamp(a: dict[str, Any]) -> nodes.Activation:
    low, high = a.get("min", a.get("min_val")), a.get("max", a.get("max_val"))
    if low == 0 and high is None:
        return ("relu",)
    return ("clamp", float(low), float(high)) if low is not None and high is not None and low <= high else None


def max_pool2d(node: Node) -> Result:
    a = arguments(node)
    if "size" in a:
        pooling = _own_pooling(a, "", shape(a["input"])[-2:])
        return pooling and (nodes.max_pool2d, (a["input"], pooling))
    kernel, stride = pair(a["kernel_size"]), a["stride"] or a["kernel_size"]
    if not _floating(a["self"]):
        return None
    pooling = kernel, pair(stride), pair(a["padding"]), pair(a["dilation"]), bool(a["ceil_mode"])
    return nodes.max_pool2d, (a["self"], pooling)


def avg_pool2d(node: Node) -> Result:
    a = arguments(node)
    kernel, stride = pair(a["kernel_size"]), pair(a["stride"] or a["kernel_size"])
    rest = pair(a["padding"]), a["ceil_mode"], a["count_include_pad"], a["divisor_override"]
    return (nodes.avg_pool2d, (a["self"], (kernel, stride, *rest))) if _floating(a["self"]) else None


def adaptive_avg_pool2d(node: Node) -> Result:
    a = arguments(node)
    return (nodes.adaptive_avg_pool2d, (a["self"], pair(a["output_size"]))) if _floating(a["self"]) else None


def mean(node: Node) -> Result:
    """The mean over an image's rows and columns."""
    a = arguments(node)
    x, dims = a["self"], a["dim"]
    if value(x).dim() != 4 or dims is None or sorted(d % 4 for d in dims) != [2, 3] or a["dtype"] or not _floating(x):
        return None
    graph = node.graph
    pooled = graph.call_function(nodes.adaptive_avg_pool2d, (x, (1, 1)))
    pooled.meta = {**node.meta, "val": value(x).new_empty((*shape(x)[:2], 1, 1))}
    return nodes.reshape, (pooled, shape(node))


def add(node: Node) -> Result:
    a = arguments(node)
    x, y = a["self"], a["other"]
    if not (isinstance(x, fx.Node) and isinstance(y, fx.Node)) or a.get("alpha", 1) != 1 or not _floating(x, y):
        return None
    return (nodes.add, (x, y)) if shape(x) == shape(y) else None


def multiply(node: Node) -> Result:
    """An image times a number for each of its channels: squeeze-and-excitation."""
    a = arguments(node)
    pair = a["self"], a["other"]
    if not all(isinstance(x, fx.Node) for x in pair) or not _floating(*pair) or value(node).dim() != 4:
        return None
    x, factors = pair if shape(pair[0]) == shape(node) else pair[::-1]
    return (nodes.scale, (x, factors)) if shape(factors) == (*shape(node)[:2], 1, 1) else None


def cat(node: Node) -> Result:
    a = arguments(node)
    tensors = a["tensors"]
    ndim = value(node).dim()
    if not _floating(*tensors) or any(value(t).dim() != ndim for t in tensors):
        return None
    return nodes.concat, (tuple(tensors), a["dim"] % ndim)


def softmax(kind: Callable[..., Any]) -> Callable[[Node], Result]:
    def become(node: Node) -> Result:
        a = arguments(node)
        x = a.get("self", a.get("input"))
        if a.get("half_to_float") or a.get("dtype") is not None or not _floating(x) or value(x).dim() < 1:
            return None
        return kind, (x, a["dim"] % value(x).dim())

    return become


def batch_norm(node: Node) -> Result:
    """A batch norm by running statistics: x · scale + shift, both of weights alone."""
    a = arguments(node)
    x, mean, variance = a["input"], a["running_mean"], a["running_var"]
    if a.get("training") or mean is None or variance is None or not _floating(x, a["weight"], a["bias"], mean):
        return None
    scale = weights_only(node, nodes.norm_scale, (a["weight"], variance, a["eps"]), mean, torch.float64)
    shift = weights_only(node, nodes.norm_shift, (a["bias"], mean, scale), mean, torch.float64)
    dtype = value(x).dtype
    return nodes.affine, (x, *(weights_only(node, nodes.cast, (of, dtype), mean, dtype) for of in (scale, shift)))


def weights_only(at: Node, target: Callable[..., Any], args: tuple[Any, ...], like: Node, dtype: torch.dtype) -> Node:
    """A new node before `at`, whose result has a weight's shape."""
    with at.graph.inserting_before(at):
        made = at.graph.call_function(target, args)
    made.meta = {"val": value(like).new_empty(shape(like), dtype=dtype), "from": ()}
    return made


def view(node: Node) -> Result:
    x = node.args[0]
    return (nodes.reshape, (x, shape(node))) if value(x).layout == torch.strided else None


def same(node: Node) -> Result:
    """The node itself where a copy, cast or dropout changes no number. (A copy of an input that is returned stays.)"""
    x: Any = node.args[0]
    if node.target is aten.dropout.default and node.args[2] and node.args[1] != 0:
        return None
    unlike = value(x).dtype != value(node).dtype or value(x).device != value(node).device or shape(x) != shape(node)
    returned = x.op == "placeholder" and any(user.op == "output" for user in node.users)
    return None if unlike or returned else x


def first_result(node: Node) -> Result:
    """The first of a batch norm's results, if the others are not used: that of what the batch norm has become."""
    source, index = node.args
    target = getattr(source, "target", None)
    if index != 0 or target not in WITH_FIRST or any(user.args[1] != 0 for user in source.users):
        return None
    return WITH_FIRST[target](source)


own = torch.ops.jitconv
WITH_FIRST: dict[Any, Callable[[Node], Result]] = {  # operations of several results, of which one is used
    aten._native_batch_norm_legit_no_training.default: batch_norm,
    aten.max_pool2d_with_indices.default: max_pool2d,
}
TABLE: dict[Any, Callable[[Node], Result]] = {
    operator.getitem: first_result,
    aten.conv2d.default: convolution,
    aten.conv2d.padding: convolution,
    aten.convolution.default: convolution,
    aten.linear.default: linear,
    aten.addmm.default: matrix_product,
    aten.mm.default: matrix_product,
    aten.relu.default: activation(lambda a: ("relu",)),
    aten.relu6.default: activation(lambda a: ("clamp", 0.0, 6.0)),
    aten.hardtanh.default: activation(_clamp),
    aten.clamp.default: activation(_clamp),
    aten.clamp_min.default: activation(_clamp),
    aten.hardswish.default: activation(lambda a: ("hardswish",)),
    aten.silu.default: activation(lambda a: ("silu",)),
    aten.sigmoid.default: activation(lambda a: ("sigmoid",)),
    aten.hardsigmoid.default: activation(lambda a: ("hardsigmoid",)),
    aten.mul.Tensor: multiply,
    aten.max_pool2d.default: max_pool2d,
    aten.avg_pool2d.default: avg_pool2d,
    aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d,
    aten._adaptive_avg_pool2d.default: adaptive_avg_pool2d,
    aten.mean.dim: mean,
    aten.add.Tensor: add,
    aten.cat.default: cat,
    aten.softmax.int: softmax(nodes.softmax),
    aten._softmax.default: softmax(nodes.softmax),
    aten.log_softmax.int: softmax(nodes.log_softmax),
    aten._log_softmax.default: softmax(nodes.log_softmax),
    aten.batch_norm.default: batch_norm,
    **dict.fromkeys(
        (
            aten.view.default,
            aten.reshape.default,
            aten._unsafe_view.default,
            aten.flatten.using_ints,
            aten.squeeze.default,
            aten.squeeze.dim,
            aten.squeeze.dims,
            aten.unsqueeze.default,
        ),
        view,
    ),
    **dict.fromkeys(
        (
            aten.clone.default,
            aten.contiguous.default,
            aten.alias.default,
            aten.detach.default,
            aten.dropout.default,
            aten.lift_fresh_copy.default,
            aten._to_copy.default,
            aten.to.dtype,
            aten.expand.default,
        ),
        same,
    ),
}


def own_table() -> dict[Any, Callable[[Node], Result]]:
    """The same for jitconv's operators, which exist once jitconv.ops is imported; adds those of several results."""
    importlib.import_module("jitconv.ops")
    WITH_FIRST[own.max_pool2d.default] = max_pool2d
    WITH_FIRST[own.conv2d_max_pool2d.default] = own_pooled_convolution
    return {
        own.conv2d.default: own_convolution,
        own.conv2d_relu.default: own_convolution,
        own.linear.default: linear,
        own.linear_relu.default: linear,
        own.relu.default: activation(lambda a: ("relu",)),
        own.flatten.default: view,
        own.softmax.default: softmax(nodes.softmax),
        own.log_softmax.default: softmax(nodes.log_softmax),
    }
