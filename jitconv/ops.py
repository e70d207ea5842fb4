"""Every op of the study: its arguments, the shapes of its results, and its gradients in terms of the other ops.

One entry per function of jitconv/variants/scalar.py; dispatch.py says what the fields of an `Op` mean. Gradients
that are written with ops are differentiable once more; the others raise when a second derivative is asked for.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from jitconv import shapes
from jitconv.dispatch import Op, Shape

Gradient = Callable[[Any, torch.Tensor], torch.Tensor]


def flat(name: str, shape: Shape, kept: Mapping[str, Any]) -> Shape:
    """Elementwise: kernels see (N,)."""
    return (math.prod(shape),)


def along_dim(name: str, shape: Shape, kept: Mapping[str, Any]) -> Shape:
    """Kernels see (N, C, D), with C classes along dimension `dim`."""
    dim = kept["dim"]
    return math.prod(shape[:dim]), math.prod(shape[dim : dim + 1]), math.prod(shape[dim + 1 :])


def by_class(name: str, shape: Shape, kept: Mapping[str, Any]) -> Shape:
    """Logits (N, C, …) are (N, C, D) to the kernels, what each sample has one of is (N, D), one of all is (1,)."""
    if name == "weight":
        return shape
    if shape == ():
        return (1,)
    if name in ("input", "log_p", "result"):
        return shape[0], shape[1], math.prod(shape[2:])
    return shape[0], math.prod(shape[1:])


FILTERS = {"bias": (0.0, lambda input, weight, *_: weight.shape[0])}
CLASSES = {"weight": (1.0, lambda input, *_: input.shape[1])}
CLASSES_OF_LOG_P = {"weight": (1.0, lambda grad, log_p, *_: log_p.shape[1])}

conv2d: Op = Op(
    "conv2d(Tensor input, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation,"
    " SymInt[2] size, str variant) -> Tensor",
    lambda input, weight, bias, stride, padding, dilation, size: [(input.shape[0], weight.shape[0], *size)],
    {
        "input": lambda s, grad: conv2d_grad_input(
            s.variant, grad, s.weight, s.stride, s.padding, s.dilation, s.input.shape
        ),
        "weight": lambda s, grad: conv2d_grad_weight(
            s.variant, grad, s.input, s.stride, s.padding, s.dilation, s.weight.shape
        ),
        "bias": lambda s, grad: conv2d_grad_bias(s.variant, grad),
    },
    saves="input weight",
    batched="input",
    fills=FILTERS,
)
conv2d_grad_input: Op = Op(
    "conv2d_grad_input(Tensor grad, Tensor weight, int[2] stride, int[2] padding, int[2] dilation,"
    " SymInt[4] size, str variant) -> Tensor",
    lambda grad, weight, stride, padding, dilation, size: [tuple(size)],
    {
        "grad": lambda s, g: conv2d(s.variant, g, s.weight, None, s.stride, s.padding, s.dilation, s.grad.shape[2:]),
        "weight": lambda s, g: conv2d_grad_weight(
            s.variant, s.grad, g, s.stride, s.padding, s.dilation, s.weight.shape
        ),
    },
    saves="grad weight",
    batched="grad",
)
conv2d_grad_weight: Op = Op(
    "conv2d_grad_weight(Tensor grad, Tensor input, int[2] stride, int[2] padding, int[2] dilation,"
    " SymInt[4] size, str variant) -> Tensor",
    lambda grad, input, stride, padding, dilation, size: [tuple(size)],
    {
        "grad": lambda s, g: conv2d(s.variant, s.input, g, None, s.stride, s.padding, s.dilation, s.grad.shape[2:]),
        "input": lambda s, g: conv2d_grad_input(s.variant, s.grad, g, s.stride, s.padding, s.dilation, s.input.shape),
    },
    saves="grad input",
)
conv2d_grad_bias: Op = Op(
    "conv2d_grad_bias(Tensor grad, str variant) -> Tensor",
    lambda grad: [(grad.shape[1],)],
    {"grad": lambda s, g: g[None, :, None, None].expand(s.shapes["grad"])},
)

max_pool2d: Op = Op(
    "max_pool2d(Tensor input, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation,"
    " SymInt[2] size, str variant) -> (Tensor out, Tensor indices)",
    lambda input, kernel_size, stride, padding, dilation, size: [(*input.shape[:2], *size)] * 2,
    {
        "input": lambda s, grad: max_pool2d_grad_input(
            s.variant, grad, s.indices, s.kernel_size, s.stride, s.padding, s.dilation, s.shapes["input"]
        )
    },
    saves="indices",
    batched="input",
)
max_pool2d_grad_input: Op = Op(
    "max_pool2d_grad_input(Tensor grad, Tensor indices, int[2] kernel_size, int[2] stride, int[2] padding,"
    " int[2] dilation, SymInt[4] size, str variant) -> Tensor",
    lambda grad, indices, kernel_size, stride, padding, dilation, size: [tuple(size)],
    {"grad": lambda s, g: g.flatten(2).gather(2, s.indices.flatten(2)).view_as(s.indices)},
    saves="indices",
    batched="grad indices",
)


def _through(layer: Op, grad_input: Gradient) -> dict[str, Gradient]:
    """The gradients of a layer and what follows it in one pass, whose own gradient is worked out once for all."""

    def through(gradient: Gradient) -> Gradient:
        def run(s: Any, grad: torch.Tensor) -> torch.Tensor:
            if not hasattr(s, "between"):
                s.between = grad_input(s, grad)
            return gradient(s, s.between)

        return run

    return {name: through(gradient) for name, gradient in layer.gradients.items()}


def _before_pooling(s: Any, grad: torch.Tensor) -> torch.Tensor:
    size = (*s.indices.shape[:2], *s.conv_size)
    return max_pool2d_grad_input(
        s.variant, grad, s.indices, s.kernel_size, s.pool_stride, s.pool_padding, s.pool_dilation, size
    )


def _before_relu(s: Any, grad: torch.Tensor) -> torch.Tensor:
    return relu_grad_input(s.variant, grad, s.result)


conv2d_max_pool2d: Op = Op(
    "conv2d_max_pool2d(Tensor input, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation,"
    " SymInt[2] conv_size, int[2] kernel_size, int[2] pool_stride, int[2] pool_padding, int[2] pool_dilation,"
    " SymInt[2] size, str variant) -> (Tensor out, Tensor indices)",
    lambda input, weight, *rest: [(input.shape[0], weight.shape[0], *rest[-1])] * 2,
    _through(conv2d, _before_pooling),
    saves="input weight indices",
    batched="input",
    fills=FILTERS,
)
conv2d_relu: Op = Op(
    "conv2d_relu(Tensor input, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation,"
    " SymInt[2] size, str variant) -> Tensor",
    conv2d.shapes,
    _through(conv2d, _before_relu),
    saves="input weight result",
    batched="input",
    fills=FILTERS,
)

flatten: Op = Op(
    "flatten(Tensor input, str variant) -> Tensor",
    lambda input: [(input.shape[0], input.shape[1] * input.shape[2] * input.shape[3])],
    {"input": lambda s, grad: flatten_grad_input(s.variant, grad, s.shapes["input"])},
    batched="input",
)
flatten_grad_input: Op = Op(
    "flatten_grad_input(Tensor grad, SymInt[4] size, str variant) -> Tensor",
    lambda grad, size: [tuple(size)],
    {"grad": lambda s, g: flatten(s.variant, g)},
    batched="grad",
)

linear: Op = Op(
    "linear(Tensor input, Tensor weight, Tensor? bias, str variant) -> Tensor",
    lambda input, weight, bias: [(input.shape[0], weight.shape[0])],
    {
        "input": lambda s, grad: linear_grad_input(s.variant, grad, s.weight),
        "weight": lambda s, grad: linear_grad_weight(s.variant, grad, s.input),
        "bias": lambda s, grad: linear_grad_bias(s.variant, grad),
    },
    saves="input weight",
    batched="input",
    fills=FILTERS,
)
linear_relu: Op = Op(
    "linear_relu(Tensor input, Tensor weight, Tensor? bias, str variant) -> Tensor",
    linear.shapes,
    _through(linear, _before_relu),
    saves="input weight result",
    batched="input",
    fills=FILTERS,
)
linear_grad_input: Op = Op(
    "linear_grad_input(Tensor grad, Tensor weight, str variant) -> Tensor",
    lambda grad, weight: [(grad.shape[0], weight.shape[1])],
    {
        "grad": lambda s, g: linear(s.variant, g, s.weight, None),
        "weight": lambda s, g: linear_grad_weight(s.variant, s.grad, g),
    },
    saves="grad weight",
    batched="grad",
)
linear_grad_weight: Op = Op(
    "linear_grad_weight(Tensor grad, Tensor input, str variant) -> Tensor",
    lambda grad, input: [(grad.shape[1], input.shape[1])],
    {
        "grad": lambda s, g: linear(s.variant, s.input, g, None),
        "input": lambda s, g: linear_grad_input(s.variant, s.grad, g),
    },
    saves="grad input",
)
linear_grad_bias: Op = Op(
    "linear_grad_bias(Tensor grad, str variant) -> Tensor",
    lambda grad: [(grad.shape[1],)],
    {"grad": lambda s, g: g.expand(s.shapes["grad"])},
)

relu: Op = Op(
    "relu(Tensor input, str variant) -> Tensor",
    lambda input: [tuple(input.shape)],
    {"input": lambda s, grad: relu_grad_input(s.variant, grad, s.result)},
    saves="result",
    batched="input",
    seen=flat,
)
relu_grad_input: Op = Op(
    "relu_grad_input(Tensor grad, Tensor output, str variant) -> Tensor",
    lambda grad, output: [tuple(grad.shape)],
    {
        "grad": lambda s, g: relu_grad_input(s.variant, g, s.output),
        "output": lambda s, g: g.new_zeros(g.shape),  # the slope is constant on either side of 0
    },
    saves="output",
    batched="grad output",
    seen=flat,
)

softmax: Op = Op(
    "softmax(Tensor input, int dim, str variant) -> Tensor",
    lambda input, dim: [tuple(input.shape)],
    {"input": lambda s, grad: softmax_grad_input(s.variant, grad, s.result, s.dim)},
    saves="result",
    batched="input",
    seen=along_dim,
)
softmax_grad_input: Op = Op(
    "softmax_grad_input(Tensor grad, Tensor output, int dim, str variant) -> Tensor",
    lambda grad, output, dim: [tuple(grad.shape)],
    {
        "grad": lambda s, g: softmax_grad_input(s.variant, g, s.output, s.dim),
        "output": lambda s, g: (
            g * (s.grad - (s.grad * s.output).sum(s.dim, True)) - s.grad * (g * s.output).sum(s.dim, True)
        ),
    },
    saves="grad output",
    batched="grad output",
    seen=along_dim,
)
log_softmax: Op = Op(
    "log_softmax(Tensor input, int dim, str variant) -> Tensor",
    lambda input, dim: [tuple(input.shape)],
    {"input": lambda s, grad: log_softmax_grad_input(s.variant, grad, s.result, s.dim)},
    saves="result",
    batched="input",
    seen=along_dim,
)
log_softmax_grad_input: Op = Op(
    "log_softmax_grad_input(Tensor grad, Tensor output, int dim, str variant) -> Tensor",
    lambda grad, output, dim: [tuple(grad.shape)],
    {
        "grad": lambda s, g: g - (g * s.output.exp()).sum(s.dim, True),
        "output": lambda s, g: -g * s.output.exp() * s.grad.sum(s.dim, True),
    },
    saves="grad output",
    batched="grad output",
    seen=along_dim,
)


def _cross_entropy_gradient(s: Any, grad: torch.Tensor) -> torch.Tensor:
    # The saved log_p is not differentiable; a second derivative goes through log_softmax.
    log_p = log_softmax(s.variant, s.input, 1) if torch.is_grad_enabled() else s.log_p
    return cross_entropy_grad_input(s.variant, grad, log_p, s.target, s.weight, s.ignore_index, s.label_smoothing)


def _slope(s: Any) -> torch.Tensor:
    """∂x for a loss gradient of 1: (N, C, D)."""
    one = s.log_p.new_ones(s.target.shape)
    return cross_entropy_grad_input(s.variant, one, s.log_p, s.target, s.weight, s.ignore_index, s.label_smoothing)


def _pull(s: Any) -> torch.Tensor:
    """Σ_k t_k, the total weight with which a sample's target pulls: (N, D)."""
    counted = s.target != s.ignore_index
    if s.weight is None:
        return counted.to(s.log_p.dtype)
    hit = s.weight[s.target.clamp(0, len(s.weight) - 1)]
    return ((1 - s.label_smoothing) * hit + s.label_smoothing * s.weight.mean()) * counted


cross_entropy: Op = Op(
    "cross_entropy(Tensor input, Tensor target, Tensor? weight, int ignore_index, float label_smoothing,"
    " str variant) -> (Tensor losses, Tensor weights, Tensor log_p)",
    lambda input, target, *_: [tuple(target.shape), tuple(target.shape), tuple(input.shape)],
    {"input": _cross_entropy_gradient},
    saves="input log_p target weight",
    batched="input target",
    seen=by_class,
    fills=CLASSES,
    check=lambda input, target, weight, ignore_index, _: shapes.class_indices(target, input.shape[1], ignore_index),
)
cross_entropy_grad_input: Op = Op(
    "cross_entropy_grad_input(Tensor grad, Tensor log_p, Tensor target, Tensor? weight, int ignore_index,"
    " float label_smoothing, str variant) -> Tensor",
    lambda grad, log_p, *_: [tuple(log_p.shape)],
    {
        "grad": lambda s, g: (g * _slope(s)).sum(1),
        "log_p": lambda s, g: g * s.log_p.exp() * (s.grad * _pull(s))[:, None],
    },
    saves="grad log_p target weight",
    batched="grad log_p target",
    seen=by_class,
    fills=CLASSES_OF_LOG_P,
)


def _reduced_gradient(s: Any, grad: torch.Tensor) -> torch.Tensor:
    how = s.target, s.weight, s.ignore_index, s.label_smoothing
    if not torch.is_grad_enabled():
        return reduced_cross_entropy_grad_input(s.variant, grad, s.log_p, *how, s.mean)
    _, weights, _ = cross_entropy(s.variant, s.input, *how)
    return _cross_entropy_gradient(s, (grad / weights.sum() if s.mean else grad).expand(s.target.shape))


reduced_cross_entropy: Op = Op(
    "reduced_cross_entropy(Tensor input, Tensor target, Tensor? weight, int ignore_index, float label_smoothing,"
    " bool mean, str variant) -> (Tensor loss, Tensor log_p)",
    lambda input, *_: [(), tuple(input.shape)],
    {"input": _reduced_gradient},
    saves="input log_p target weight",
    seen=by_class,
    fills=CLASSES,
)
reduced_cross_entropy_grad_input: Op = Op(
    "reduced_cross_entropy_grad_input(Tensor grad, Tensor log_p, Tensor target, Tensor? weight, int ignore_index,"
    " float label_smoothing, bool mean, str variant) -> Tensor",
    lambda grad, log_p, *_: [tuple(log_p.shape)],
    seen=by_class,
    fills=CLASSES_OF_LOG_P,
)
