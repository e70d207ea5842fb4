"""Every op of the study: its arguments, the shapes of its results, and its gradients in terms of the other ops.

One entry per function of jitconv/variants/scalar.py; op.py says what the fields of an `Op` mean. In a gradient, "g" is
the gradient of the op's result, and the other names are the op's arguments and results.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from jitconv import shapes
from jitconv.op import Op, Shape, Step


def flat(name: str, shape: Shape, arguments: Mapping[str, Any]) -> Shape:
    """Elementwise: kernels see (N,)."""
    return (math.prod(shape),)


def images(name: str, shape: Shape, arguments: Mapping[str, Any]) -> Shape:
    """Kernels see (N, C, H, W): a single image (C, H, W) is a batch of one."""
    return (1, *shape) if len(shape) == 3 else shape


def rows(name: str, shape: Shape, arguments: Mapping[str, Any]) -> Shape:
    """Kernels see (N, I): all dimensions but the last are the batch."""
    return shape if name == "bias" else (math.prod(shape[:-1]), shape[-1])


def along_dim(name: str, shape: Shape, arguments: Mapping[str, Any]) -> Shape:
    """Kernels see (N, C, D), with C classes along dimension `dim`."""
    dim = arguments["dim"]
    return math.prod(shape[:dim]), math.prod(shape[dim : dim + 1]), math.prod(shape[dim + 1 :])


def by_class(name: str, shape: Shape, arguments: Mapping[str, Any]) -> Shape:
    """Logits (N, C, …) are (N, C, D) to the kernels, what each sample has one of is (N, D), one of all is (1,)."""
    if name == "weight":
        return shape
    if shape == ():
        return (1,)
    if name in ("input", "log_p", "result"):
        return shape[0], shape[1], math.prod(shape[2:])
    return shape[0], math.prod(shape[1:])


NO_BIAS = {"bias": lambda input, weight, *_: input.new_zeros(weight.shape[0])}
EQUAL_CLASSES = {"weight": lambda input, *_: input.new_ones(input.shape[1])}
EQUAL_CLASSES_OF_LOG_P = {"weight": lambda grad, log_p, *_: log_p.new_ones(log_p.shape[1])}

CONVOLUTION = ("stride", "padding", "dilation")
conv2d = Op(
    "conv2d(Tensor input, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation,"
    " SymInt[2] size, str variant) -> Tensor",
    lambda input, weight, bias, stride, padding, dilation, size: [(*input.shape[:-3], weight.shape[0], *size)],
    {
        "input": Step("conv2d_grad_input", "g", "weight", *CONVOLUTION, "input.shape"),
        "weight": Step("conv2d_grad_weight", "g", "input", *CONVOLUTION, "weight.shape"),
        "bias": Step("conv2d_grad_bias", "g"),
    },
    saves="input weight",
    batched="input",
    batch_rank=4,
    kernel_shape=images,
    defaults=NO_BIAS,
)
conv2d_grad_input = Op(
    "conv2d_grad_input(Tensor grad, Tensor weight, int[2] stride, int[2] padding, int[2] dilation,"
    " SymInt[] size, str variant) -> Tensor",
    lambda grad, weight, stride, padding, dilation, size: [tuple(size)],
    {
        "grad": Step("conv2d", "g", "weight", None, *CONVOLUTION, lambda v: v["grad.shape"][-2:]),
        "weight": Step("conv2d_grad_weight", "grad", "g", *CONVOLUTION, "weight.shape"),
    },
    saves="grad weight",
    batched="grad",
    batch_rank=4,
    kernel_shape=images,
)
conv2d_grad_weight = Op(
    "conv2d_grad_weight(Tensor grad, Tensor input, int[2] stride, int[2] padding, int[2] dilation,"
    " SymInt[] size, str variant) -> Tensor",
    lambda grad, input, stride, padding, dilation, size: [tuple(size)],
    {
        "grad": Step("conv2d", "input", "g", None, *CONVOLUTION, lambda v: v["grad.shape"][-2:]),
        "input": Step("conv2d_grad_input", "grad", "g", *CONVOLUTION, "input.shape"),
    },
    saves="grad input",
    kernel_shape=images,
)
conv2d_grad_bias = Op(
    "conv2d_grad_bias(Tensor grad, str variant) -> Tensor",
    lambda grad: [(grad.shape[-3],)],
    {"grad": lambda g, **v: g[:, None, None].expand(v["grad.shape"])},
    kernel_shape=images,
)

POOLING = ("kernel_size", "stride", "padding", "dilation")
max_pool2d = Op(
    "max_pool2d(Tensor input, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation,"
    " SymInt[2] size, str variant) -> (Tensor out, Tensor indices)",
    lambda input, kernel_size, stride, padding, dilation, size: [(*input.shape[:-2], *size)] * 2,
    {"input": Step("max_pool2d_grad_input", "g", "indices", *POOLING, "input.shape")},
    saves="indices",
    batched="input",
    batch_rank=4,
    kernel_shape=images,
)
max_pool2d_grad_input = Op(
    "max_pool2d_grad_input(Tensor grad, Tensor indices, int[2] kernel_size, int[2] stride, int[2] padding,"
    " int[2] dilation, SymInt[] size, str variant) -> Tensor",
    lambda grad, indices, kernel_size, stride, padding, dilation, size: [tuple(size)],
    {"grad": lambda g, indices, **_: g.flatten(-2).gather(-1, indices.flatten(-2)).view_as(indices)},
    saves="indices",
    batched="grad indices",
    batch_rank=4,
    kernel_shape=images,
)

# Layers in one pass are the first one, with an epilogue: the gradient of what comes last leads to that one's.
conv2d_max_pool2d = replace(
    conv2d,
    schema="conv2d_max_pool2d(Tensor input, Tensor weight, Tensor? bias, int[2] stride, int[2] padding,"
    " int[2] dilation, SymInt[2] conv_size, int[2] kernel_size, int[2] pool_stride, int[2] pool_padding,"
    " int[2] pool_dilation, SymInt[2] size, str variant) -> (Tensor out, Tensor indices)",
    shapes=lambda input, weight, *rest: [(*input.shape[:-3], weight.shape[0], *rest[-1])] * 2,
    epilogue=Step(
        "max_pool2d_grad_input", "g", "indices", "kernel_size", "pool_stride", "pool_padding", "pool_dilation",
        lambda v: (*v["input.shape"][:-3], v["weight.shape"][0], *v["conv_size"]),
    ),
    saves="input weight indices",
)  # fmt: skip
conv2d_relu = replace(
    conv2d,
    schema="conv2d_relu(Tensor input, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation,"
    " SymInt[2] size, str variant) -> Tensor",
    epilogue=Step("relu_grad_input", "g", "result"),
    saves="input weight result",
)

flatten = Op(
    "flatten(Tensor input, str variant) -> Tensor",
    lambda input: [(input.shape[0], input.shape[1] * input.shape[2] * input.shape[3])],
    {"input": Step("flatten_grad_input", "g", "input.shape")},
    batched="input",
)
flatten_grad_input = Op(
    "flatten_grad_input(Tensor grad, SymInt[4] size, str variant) -> Tensor",
    lambda grad, size: [tuple(size)],
    {"grad": Step("flatten", "g")},
    batched="grad",
)

linear = Op(
    "linear(Tensor input, Tensor weight, Tensor? bias, str variant) -> Tensor",
    lambda input, weight, bias: [(*input.shape[:-1], weight.shape[0])],
    {
        "input": Step("linear_grad_input", "g", "weight"),
        "weight": Step("linear_grad_weight", "g", "input"),
        "bias": Step("linear_grad_bias", "g"),
    },
    saves="input weight",
    batched="input",
    batch_rank=2,
    kernel_shape=rows,
    defaults=NO_BIAS,
)
linear_relu = replace(
    linear,
    schema="linear_relu(Tensor input, Tensor weight, Tensor? bias, str variant) -> Tensor",
    epilogue=Step("relu_grad_input", "g", "result"),
    saves="input weight result",
)
linear_grad_input = Op(
    "linear_grad_input(Tensor grad, Tensor weight, str variant) -> Tensor",
    lambda grad, weight: [(*grad.shape[:-1], weight.shape[1])],
    {"grad": Step("linear", "g", "weight", None), "weight": Step("linear_grad_weight", "grad", "g")},
    saves="grad weight",
    batched="grad",
    batch_rank=2,
    kernel_shape=rows,
)
linear_grad_weight = Op(
    "linear_grad_weight(Tensor grad, Tensor input, str variant) -> Tensor",
    lambda grad, input: [(grad.shape[-1], input.shape[-1])],
    {"grad": Step("linear", "input", "g", None), "input": Step("linear_grad_input", "grad", "g")},
    saves="grad input",
    kernel_shape=rows,
)
linear_grad_bias = Op(
    "linear_grad_bias(Tensor grad, str variant) -> Tensor",
    lambda grad: [(grad.shape[-1],)],
    {"grad": lambda g, **v: g.expand(v["grad.shape"])},
    kernel_shape=lambda name, shape, arguments: shape if name == "result" else rows(name, shape, arguments),
)

relu = Op(
    "relu(Tensor input, str variant) -> Tensor",
    lambda input: [tuple(input.shape)],
    {"input": Step("relu_grad_input", "g", "result")},
    saves="result",
    batched="input",
    kernel_shape=flat,
)
relu_grad_input = Op(
    "relu_grad_input(Tensor grad, Tensor output, str variant) -> Tensor",
    lambda grad, output: [tuple(grad.shape)],
    {
        "grad": Step("relu_grad_input", "g", "output"),
        "output": lambda g, **_: g.new_zeros(g.shape),  # the slope is constant on either side of 0
    },
    saves="output",
    batched="grad output",
    kernel_shape=flat,
)

softmax = Op(
    "softmax(Tensor input, int dim, str variant) -> Tensor",
    lambda input, dim: [tuple(input.shape)],
    {"input": Step("softmax_grad_input", "g", "result", "dim")},
    saves="result",
    batched="input",
    kernel_shape=along_dim,
)
softmax_grad_input = Op(
    "softmax_grad_input(Tensor grad, Tensor output, int dim, str variant) -> Tensor",
    lambda grad, output, dim: [tuple(grad.shape)],
    {
        "grad": Step("softmax_grad_input", "g", "output", "dim"),
        "output": lambda g, grad, output, dim, **_: (
            g * (grad - (grad * output).sum(dim, True)) - grad * (g * output).sum(dim, True)
        ),
    },
    saves="grad output",
    batched="grad output",
    kernel_shape=along_dim,
)
log_softmax = replace(
    softmax,
    schema="log_softmax(Tensor input, int dim, str variant) -> Tensor",
    gradients={"input": Step("log_softmax_grad_input", "g", "result", "dim")},
)
log_softmax_grad_input = replace(
    softmax_grad_input,
    schema="log_softmax_grad_input(Tensor grad, Tensor output, int dim, str variant) -> Tensor",
    gradients={
        "grad": lambda g, output, dim, **_: g - (g * output.exp()).sum(dim, True),
        "output": lambda g, grad, output, dim, **_: -g * output.exp() * grad.sum(dim, True),
    },
)

TARGETS = ("target", "weight", "ignore_index", "label_smoothing")


def _gradient_through_log_softmax(g: torch.Tensor, variant: Any, input: torch.Tensor, **v: Any) -> torch.Tensor:
    """∂x of the losses, (N, d1, …), differentiable: the saved log_p is not."""
    return cross_entropy_grad_input(variant, g, log_softmax(variant, input, 1), *(v[name] for name in TARGETS))


def _gradient_of_reduced(g: torch.Tensor, variant: Any, mean: bool, **v: Any) -> torch.Tensor:
    _, weights, _ = cross_entropy(variant, v["input"], *(v[name] for name in TARGETS))
    losses = (g / weights.sum() if mean else g).expand(v["target"].shape)
    return _gradient_through_log_softmax(losses, variant, **v)


def _slope(variant: Any, log_p: torch.Tensor, **v: Any) -> torch.Tensor:
    """∂x for a loss gradient of 1: (N, C, D)."""
    one = log_p.new_ones(v["target"].shape)
    return cross_entropy_grad_input(variant, one, log_p, *(v[name] for name in TARGETS))


def _pull(log_p: torch.Tensor, target: torch.Tensor, weight: Any, ignore_index: int, label_smoothing: float, **_: Any):
    """Σ_k t_k, the total weight with which a sample's target pulls: (N, D)."""
    counted = target != ignore_index
    if weight is None:
        return counted.to(log_p.dtype)
    hit = weight[target.clamp(0, len(weight) - 1)]
    return ((1 - label_smoothing) * hit + label_smoothing * weight.mean()) * counted


cross_entropy = Op(
    "cross_entropy(Tensor input, Tensor target, Tensor? weight, int ignore_index, float label_smoothing,"
    " str variant) -> (Tensor losses, Tensor weights, Tensor log_p)",
    lambda input, target, *_: [tuple(target.shape), tuple(target.shape), tuple(input.shape)],
    {"input": Step("cross_entropy_grad_input", "g", "log_p", *TARGETS)},
    second_order={"input": _gradient_through_log_softmax},
    saves="input log_p target weight",
    batched="input target",
    kernel_shape=by_class,
    defaults=EQUAL_CLASSES,
    check=lambda input, target, weight, ignore_index, _: shapes.class_indices(target, input.shape[1], ignore_index),
)
cross_entropy_grad_input = Op(
    "cross_entropy_grad_input(Tensor grad, Tensor log_p, Tensor target, Tensor? weight, int ignore_index,"
    " float label_smoothing, str variant) -> Tensor",
    lambda grad, log_p, *_: [tuple(log_p.shape)],
    {
        "grad": lambda g, **v: (g * _slope(**v)).sum(1),
        "log_p": lambda g, grad, log_p, **v: g * log_p.exp() * (grad * _pull(log_p, **v))[:, None],
    },
    saves="grad log_p target weight",
    batched="grad log_p target",
    kernel_shape=by_class,
    defaults=EQUAL_CLASSES_OF_LOG_P,
)
reduced_cross_entropy = Op(
    "reduced_cross_entropy(Tensor input, Tensor target, Tensor? weight, int ignore_index, float label_smoothing,"
    " bool mean, str variant) -> (Tensor loss, Tensor log_p)",
    lambda input, *_: [(), tuple(input.shape)],
    {"input": Step("reduced_cross_entropy_grad_input", "g", "log_p", *TARGETS, "mean")},
    second_order={"input": _gradient_of_reduced},
    saves="input log_p target weight",
    kernel_shape=by_class,
    defaults=EQUAL_CLASSES,
)
reduced_cross_entropy_grad_input = Op(
    "reduced_cross_entropy_grad_input(Tensor grad, Tensor log_p, Tensor target, Tensor? weight, int ignore_index,"
    " float label_smoothing, bool mean, str variant) -> Tensor",
    lambda grad, log_p, *_: [tuple(log_p.shape)],
    kernel_shape=by_class,
    defaults=EQUAL_CLASSES_OF_LOG_P,
)


def reduced(reduction: str, losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What cross_entropy makes of the losses and the weights of all samples."""
    if reduction == "none":
        return losses
    return losses.sum() / weights.sum() if reduction == "mean" else losses.sum()


def soft_cross_entropy(
    variant: Any, reduction: str, smoothing: float, input: torch.Tensor, target: torch.Tensor, weight: Any
) -> torch.Tensor:
    """−Σ_c w[c] · t[c] · log_softmax(input)[c] with t = (1 − ε)·target + ε/C; 'mean' counts every sample as one."""
    class_dim = 0 if input.ndim == 1 else 1
    log_p = log_softmax(variant, input, class_dim)
    pulls = target * (1 - smoothing) + smoothing / input.shape[class_dim]
    if weight is not None:
        pulls = pulls * weight.reshape(-1, *[1] * (input.ndim - class_dim - 1))
    losses = -(log_p * pulls).sum(class_dim)
    return reduced(reduction, losses, losses.new_tensor(losses.numel()))
