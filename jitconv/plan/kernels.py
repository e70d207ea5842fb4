"""Which kernel computes a node of the graph: a function for each, in one table; None where torch must compute it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jitconv import ops, shapes
from jitconv.compat import schema_of
from jitconv.op import SMALL
from jitconv.plan import buffers, layout, nodes
from jitconv.plan.buffers import Array
from jitconv.plan.canonical import shape, value
from jitconv.plan.nodes import Node
from jitconv.variants.tiled import blocked, gemv, windows

TORCH_CHANNELS, TORCH_PIXELS = 16, 64  # many channels, few pixels


@dataclass
class KernelCall:
    """A kernel and its arguments: Arrays and constants, the arrays that it fills last; else see lower.Step."""

    name: str
    kernel: Callable[..., Any]
    args: list[Any]
    flops: int = 0
    small: bool = False
    fixed: bool = True


def bind(low: Any, op: str, args: list[Any], flops: int = 0) -> KernelCall:
    """The call of the variant's kernel for these shapes, with the model's weights packed if it asks for that."""
    kernel = low.variant.ops[op]
    arrays = [(a.shape, a.dtype) for a in args if isinstance(a, (Array, np.ndarray))]
    if hasattr(kernel, "bind"):
        kernel = kernel.bind(tuple(arrays), tuple(a for a in args if not isinstance(a, (Array, np.ndarray))))
    packs = {i: pack for i, pack in getattr(kernel, "packs", {}).items() if args[i].buffer.kind == "weight"}
    args = [low.packed(a.buffer.key, packs[i]) if i in packs else a for i, a in enumerate(args)]
    return KernelCall(op, kernel, args, flops, sum(math.prod(shape) for shape, _ in arrays) <= SMALL)


def geometry(node: Node, weight: Node, convolution: tuple[Any, ...]) -> shapes.Conv2d:
    return shapes.conv2d(value(node), value(weight), None, *convolution)


def images(array: Array) -> Array:
    """(C, H, W) as one image, (1, C, H, W)."""
    return array._replace(shape=(1, *array.shape)) if len(array.shape) == 3 else array


def bias_of(low: Any, bias: Node | None, weight: Node) -> Any:
    if bias is None:
        return np.zeros(shape(weight)[0], layout.dtype_of(weight))
    return low.array(bias)


def fixed(low: Any, weight: Node, bias: Node | None) -> bool:
    """Whether weight and bias are the model's, and follow from no input."""
    return weight in low.static and (bias is None or bias in low.static)


def multiply_adds(out: Array, weight: Node) -> int:
    """Flops of a convolution or linear: two for each weight and pixel of the output that it meets."""
    filters, *taps = shape(weight)
    pixels = int(np.prod(out.shape)) // filters
    return 2 * pixels * filters * int(np.prod(taps))


def is_torchs(channels: int, out: tuple[int, ...]) -> bool:
    """Whether a convolution of a training step, (N, C, H, W) of many channels and few pixels, stays torch's.

    Its weights change at each step, and packing them anew costs more than it gains.
    """
    return channels >= TORCH_CHANNELS and math.prod(out) // out[-3] <= TORCH_PIXELS


def conv2d(low: Any, node: Node) -> list[KernelCall] | None:
    x, weight, bias, convolution, residual, activation = [*node.args, None, None][:6]
    if low.training and is_torchs(shape(weight)[1], shape(node)):
        return None
    variant, out = low.variant, low.out(node)
    image, target = images(low.array(x)), images(out)
    args = [image, low.array(weight), bias_of(low, bias, weight), *geometry(x, weight, convolution)[:3], target]
    fused = activation == ("relu",) and residual is None and "conv2d_relu" in variant.ops
    steps = [bind(low, "conv2d_relu" if fused else "conv2d", args, multiply_adds(target, weight))]
    if residual is not None:
        return steps + add_arrays(out, low.array(residual), activation, out)
    return steps + ([] if fused else activated(out, activation, out))


def conv2d_max_pool2d(low: Any, node: Node) -> list[KernelCall] | None:
    x, weight, bias, convolution, pooling = node.args
    variant, image = low.variant, images(low.array(x))
    conv, target = geometry(x, weight, convolution), images(low.out(node))
    between = (image.shape[0], shape(weight)[0], *conv.size)
    pool = shapes.pooling(between, *pooling)
    filters = [image, low.array(weight), bias_of(low, bias, weight), *conv[:3]]
    flops = multiply_adds(buffers.new(between, image.dtype), weight)
    if "conv2d_max_pool2d" in variant.ops:
        indices = _indices(variant.ops["conv2d_max_pool2d"], target)
        pooled = bind(low, "conv2d_max_pool2d", [*filters, conv.size, *pool[:4], target, indices], flops)
        pooled.fixed = fixed(low, weight, bias)
        return [pooled]
    z = buffers.new(between, image.dtype)
    pooled = bind(low, "max_pool2d", [z, *pool[:4], target, buffers.new(target.shape, np.int64)])
    return [bind(low, "conv2d", [*filters, z], flops), pooled]


def _indices(kernel: Any, out: Array) -> Any:
    """The array of a pooling's indices, which nobody asks for: none where the kernel need not keep them."""
    if getattr(kernel, "skips_last", False):
        return np.empty((0,) * 4, np.int64)
    return buffers.new(out.shape, np.int64)


def max_pool2d(low: Any, node: Node) -> list[KernelCall] | None:
    x, pooling = node.args
    image, target = images(low.array(x)), images(low.out(node))
    pool = shapes.pooling(image.shape, *pooling)
    return [
        bind(
            low,
            "max_pool2d",
            [image, *pool[:4], target, _indices(low.variant.ops["max_pool2d"], target)],
        )
    ]


def linear(low: Any, node: Node) -> list[KernelCall] | None:
    x, weight, bias, activation = [*node.args, None][:4]
    O, I = shape(weight)
    rows, out = low.array(x), low.out(node)
    x2, out2 = rows._replace(shape=(int(np.prod(rows.shape)) // I, I)), out._replace(shape=(-1, O))
    out2 = out2._replace(shape=(x2.shape[0], O))
    limits = bounds(activation)
    if x2.shape[0] == 1 and weight in low.static and limits and layout.is_own(low.variant, "linear"):
        args = [flat(x2), low.packed(weight, gemv.pack), bias_of(low, bias, weight), *limits, flat(out2)]
        return [KernelCall("linear of one image", gemv.GEMV, args, multiply_adds(out2, weight))]
    fused = activation == ("relu",) and "linear_relu" in low.variant.ops
    args = [x2, low.array(weight), bias_of(low, bias, weight), out2]
    steps = [bind(low, "linear_relu" if fused else "linear", args, multiply_adds(out2, weight))]
    return steps + ([] if fused else activated(out, activation, out))


def activate(low: Any, node: Node) -> list[KernelCall] | None:
    x, activation = node.args
    if activation == ("relu",) and not layout.is_own(low.variant, "relu"):
        return [bind(low, "relu", [flat(low.array(x)), flat(low.out(node))])]
    return activated(low.array(x), activation, low.out(node))


def flat(array: Array) -> Array:
    return array._replace(shape=(int(np.prod(array.shape)),))


def softmax(low: Any, node: Node) -> list[KernelCall] | None:
    x, dim = node.args
    size = shape(node)
    by_class = int(np.prod(size[:dim])), size[dim], int(np.prod(size[dim + 1 :]))
    args = [low.array(x)._replace(shape=by_class), low.out(node)._replace(shape=by_class)]
    return [bind(low, node.target.__name__, args)]


def concat(low: Any, node: Node) -> list[KernelCall] | None:
    parts, dim = node.args
    blocked = node in low.blocked
    whole = low.out_block(node) if blocked else low.arrays.get(node) or low.out(node)
    outer, steps, at = int(np.prod(shape(node)[:dim])), [], 0
    row = int(np.prod(whole.shape[dim:]))
    for part in parts:
        array = low.block(part) if blocked else low.array(part)
        width = int(np.prod(array.shape[dim:]))
        place = whole.offset + at * whole.dtype.itemsize
        # the same buffer is not enough: both may be parts of a larger concatenation, in different places
        if array.buffer is not whole.buffer or array.offset != place:
            source = array._replace(shape=(outer, width))
            steps.append(KernelCall("copy", copy_columns, [source, whole._replace(shape=(outer, row)), at, at + width]))
        at += width
    return steps


def copy_columns(source: Any, target: Any, first: int, last: int) -> None:
    target[:, first:last] = source


def add(low: Any, node: Node) -> list[KernelCall] | None:
    x, y, activation = [*node.args, None][:3]
    return add_arrays(low.array(x), low.array(y), activation, low.out(node))


def add_arrays(x: Array, y: Array, activation: nodes.Activation, out: Array) -> list[KernelCall]:
    args = [flat(x), flat(y), *(bounds(activation) or (-math.inf, math.inf)), flat(out)]
    return [KernelCall("add", windows.ADD, args, small=_is_small(x, y, out)), *smooth(out, activation)]


def bounds(activation: nodes.Activation) -> tuple[float, float] | None:
    """The bounds that an activation is; None for another one."""
    match activation:
        case None:
            return -math.inf, math.inf
        case ("relu",):
            return 0.0, math.inf
        case ("clamp", low, high):
            return low, high
    return None


def activated(x: Array, activation: nodes.Activation, out: Array) -> list[KernelCall]:
    """out = activation(x), by a pass of its own; x may be out."""
    limits, steps = bounds(activation), []
    if x is not out or limits not in (None, (-math.inf, math.inf)):
        name, limits = (activation[0] if activation and limits else "copy"), limits or (-math.inf, math.inf)
        steps = [KernelCall(name, windows.CLAMP, [flat(x), *limits, flat(out)], small=_is_small(x, out))]
    return [*steps, *smooth(out, activation)]


def smooth(out: Array, activation: nodes.Activation) -> list[KernelCall]:
    """An activation that is no pair of bounds, in place."""
    if activation not in nodes.SMOOTH_ACTIVATIONS:
        return []
    return [KernelCall(activation[0], blocked.SMOOTH[activation[0]], [flat(out)], small=_is_small(out))]


def _is_small(*arrays: Array) -> bool:
    return sum(math.prod(array.shape) for array in arrays) <= SMALL


Binder = Callable[[Any, Node], list[KernelCall] | None]
BINDERS: dict[Any, Binder] = {
    nodes.conv2d: conv2d,
    nodes.conv2d_max_pool2d: conv2d_max_pool2d,
    nodes.max_pool2d: max_pool2d,
    nodes.linear: linear,
    nodes.activate: activate,
    nodes.softmax: softmax,
    nodes.log_softmax: softmax,
    nodes.concat: concat,
    nodes.add: add,
}

OWN_OPS = (
    "conv2d", "conv2d_relu", "conv2d_max_pool2d", "conv2d_grad_input", "conv2d_grad_weight", "conv2d_grad_bias",
    "max_pool2d", "max_pool2d_grad_input", "linear", "linear_relu", "linear_grad_input", "linear_grad_weight",
    "linear_grad_bias", "relu", "relu_grad_input",
)  # fmt: skip


def own_op(low: Any, node: Node) -> list[KernelCall] | None:
    """jitconv's own operators as they are, in a training step: the tensors, the constants, the results."""
    schema = schema_of(node.target)
    op = schema.name.split("::")[1]
    if op not in low.variant.ops or op not in OWN_OPS:
        return None
    declared_op = getattr(ops, op)

    def view(name: str, array: Array) -> Array:
        return array._replace(shape=declared_op.kernel_shape(name, array.shape, {}))

    tensors: list[Any] = []
    constants: list[Any] = []
    for declared, given in zip(schema.arguments, node.args, strict=True):
        if "Tensor" in str(declared.type):
            array = bias_of(low, given, node.args[1])  # what may be None is a bias, beside its weight
            tensors.append(view(declared.name, array) if isinstance(array, Array) else array)
        elif declared.name not in ("size", "dim", "variant"):
            constants.append(tuple(given) if isinstance(given, (list, tuple)) else given)
    if len(schema.returns) == 1:
        outs = [view(declared_op.results[0], low.out(node))]
    else:
        results = {user.args[1]: low.out(user) for user in node.users}
        outs = [
            view(name, results.get(i) or buffers.new(tuple(v.shape), np.int64 if i else np.float32))
            for i, (name, v) in enumerate(zip(declared_op.results, value(node), strict=True))
        ]
    return [bind(low, op, [*tensors, *constants, *outs])]
