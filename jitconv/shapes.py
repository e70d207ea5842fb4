"""Output sizes and every argument check of the layers: what passes here, the kernels may trust.

Messages name the argument, its value and the rule. The rules are torch's: where torch raises, we raise.
"""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

Pair = tuple[int, int]

HALVES = (torch.float16, torch.bfloat16)  # of tensors, computed in float32
FLOATS = (torch.float32, torch.float64, *HALVES, np.dtype(np.float32), np.dtype(np.float64))
INTEGERS = (torch.int64, torch.uint8, np.dtype(np.int64), np.dtype(np.uint8))
REDUCTIONS = ("none", "mean", "sum")


class Conv2d(NamedTuple):
    """The checked geometry of a convolution; padding is (top, left), `size` is (H_out, W_out)."""

    stride: Pair
    padding: Pair
    dilation: Pair
    size: Pair


class MaxPool2d(NamedTuple):
    """The checked geometry of a pooling; padding is (top, left), `size` is (H_out, W_out)."""

    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    size: Pair


def integer(name: str, value: Any) -> int:
    """Return `value` as an int; TypeError for anything that is not one (a bool or a float, say)."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} must be an int, got {value!r}")


def pair(name: str, value: Any, least: int) -> Pair:
    """Return an int, or a sequence of one or two ints, as two ints of at least `least`."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) not in (1, 2):
            raise ValueError(f"{name} must be an int or a pair of ints, got {value!r}")
        first, second = integer(name, value[0]), integer(name, value[-1])
    else:
        first = second = integer(name, value)
    if first < least or second < least:
        raise ValueError(f"{name} must be {'positive' if least else 'non-negative'}, got {value!r}")
    return first, second


def arrays(**named: Any) -> None:
    """Check that all arrays are NumPy's or all torch's, of one floating dtype and on one device; None is skipped.

    Under torch.autocast, tensors of float32 and the half-precision dtypes may meet.
    Raises TypeError for the kind or the dtype, ValueError for the device.
    """
    (lead_name, lead), *rest = ((name, value) for name, value in named.items() if value is not None)
    kind = torch.Tensor if isinstance(lead, torch.Tensor) else np.ndarray
    if not isinstance(lead, kind):
        raise TypeError(f"{lead_name} must be a NumPy array or a torch tensor, got {type(lead).__name__}")
    if lead.dtype not in FLOATS:
        allowed = "float32, float64, float16 or bfloat16" if kind is torch.Tensor else "float32 or float64"
        raise TypeError(f"{lead_name} must be {allowed}, got {lead.dtype}")
    if isinstance(lead, torch.Tensor) and lead.layout != torch.strided:
        raise TypeError(f"{lead_name} must be a dense tensor, got layout {lead.layout}")
    for name, value in rest:
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__} as {lead_name} is, got {type(value).__name__}")
        if value.dtype != lead.dtype and not _may_meet(lead, value):
            raise TypeError(f"{name} must have {lead_name}'s dtype {lead.dtype}, got {value.dtype}")
        if kind is torch.Tensor and value.device != lead.device:
            raise ValueError(f"{name} must be on {lead_name}'s device {lead.device}, got {value.device}")


def _may_meet(*arrays: Any) -> bool:
    """Whether torch.autocast lets tensors of these dtypes into one layer."""
    if not all(array.dtype == torch.float32 or array.dtype in HALVES for array in arrays):
        return False
    device = arrays[0].device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def shape_of(array: Any) -> tuple[int, ...]:
    return tuple(array.shape)


def dimension(name: str, value: Any, ndim: int) -> int:
    """Return the dimension `value`, which may count from the end, as an index into a shape of `ndim`."""
    index, span = integer(name, value), max(ndim, 1)
    if not -span <= index < span:
        raise ValueError(f"{name} must be in [{-span}, {span - 1}] for {ndim} dimensions, got {value!r}")
    return index % span


def conv2d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1
) -> Conv2d:
    """Check the arguments of a convolution, input (N, C_in, H, W) or (C_in, H, W), and return its geometry.

    H_out = floor((H + 2·padding − dilation·(K_h − 1) − 1) / stride) + 1, as in torch.nn.Conv2d.
    Raises TypeError or ValueError naming the argument, its value and the rule.
    """
    arrays(input=input, weight=weight, bias=bias)
    if input.ndim not in (3, 4):
        raise ValueError(f"input must be (N, C_in, H, W) or (C_in, H, W), got shape {shape_of(input)}")
    if weight.ndim != 4:
        raise ValueError(f"weight must be (C_out, C_in/groups, K_h, K_w), got shape {shape_of(weight)}")
    channels, *sizes = input.shape[-3:]
    c_out, c_group, *kernel = weight.shape
    strides, dilations = pair("stride", stride, 1), pair("dilation", dilation, 1)
    count = integer("groups", groups)
    if count < 1:
        raise ValueError(f"groups must be positive, got {groups!r}")
    if c_out < 1 or min(kernel) < 1:
        raise ValueError(f"weight must have at least one filter and one tap, got shape {shape_of(weight)}")
    if channels != c_group * count:
        raise ValueError(
            f"input must have weight.shape[1]·groups = {c_group}·{count} channels, got {channels} "
            f"(input {shape_of(input)}, weight {shape_of(weight)})"
        )
    if c_out % count:
        raise ValueError(f"groups must divide the {c_out} filters of weight, got {groups!r}")
    if bias is not None and shape_of(bias) != (c_out,):
        raise ValueError(f"bias must have shape ({c_out},), one value a filter of weight, got {shape_of(bias)}")
    if channels < 1 or min(sizes) < 1:
        raise ValueError(f"input must have at least one channel, row and column, got shape {shape_of(input)}")

    reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"padding must be 'same', 'valid', an int or a pair of ints, got {padding!r}")
        if padding == "same" and strides != (1, 1):
            raise ValueError(f"padding='same' needs stride 1, got stride {stride!r}")
        total = reach if padding == "same" else [0, 0]
        before = total[0] // 2, total[1] // 2  # an odd total pads one more below and to the right, as torch does
    else:
        before = pair("padding", padding, 0)
        total = [2 * p for p in before]
    spare = [s + t - r - 1 for s, t, r in zip(sizes, total, reach, strict=True)]
    if min(spare) < 0:
        raise ValueError(
            f"weight's dilated kernel {tuple(r + 1 for r in reach)} must fit the padded input "
            f"{tuple(s + t for s, t in zip(sizes, total, strict=True))}"
        )
    size = spare[0] // strides[0] + 1, spare[1] // strides[1] + 1
    return Conv2d(strides, before, dilations, size)


def max_pool2d(
    input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> MaxPool2d:
    """Check the arguments of a pooling, input (N, C, H, W) or (C, H, W), and return its geometry.

    The size is conv2d's, rounded up with `ceil_mode` as long as the last window starts inside the input or
    its top or left padding, as in torch.nn.MaxPool2d. Raises TypeError or ValueError.
    """
    arrays(input=input)
    return pooling(shape_of(input), kernel_size, stride, padding, dilation, ceil_mode)


def pooling(
    shape: tuple[int, ...],
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> MaxPool2d:
    """Check a pooling of an input of which only the shape is known, and return its geometry; see max_pool2d."""
    if len(shape) not in (3, 4):
        raise ValueError(f"input must be (N, C, H, W) or (C, H, W), got shape {shape}")
    if min(shape[-3:]) < 1:
        raise ValueError(f"input must have at least one channel, row and column, got shape {shape}")
    kernel = pair("kernel_size", kernel_size, 1)
    whole = stride is None or (isinstance(stride, Sequence) and len(stride) == 0)
    strides = kernel if whole else pair("stride", stride, 1)
    before, dilations = pair("padding", padding, 0), pair("dilation", dilation, 1)
    if any(p > k // 2 for p, k in zip(before, kernel, strict=True)):
        raise ValueError(f"padding must be at most half of kernel_size {kernel_size!r}, got {padding!r}")
    sizes = []
    for s, k, step, p, d in zip(shape[-2:], kernel, strides, before, dilations, strict=True):
        spare = s + 2 * p - d * (k - 1) - 1
        size = (-(-spare // step) if ceil_mode else spare // step) + 1
        if ceil_mode and (size - 1) * step >= s + p:
            size -= 1
        if size < 1:
            raise ValueError(
                f"kernel_size, dilated, must fit the padded input: got kernel_size {kernel_size!r}, dilation "
                f"{dilation!r}, padding {padding!r} for input {shape}"
            )
        sizes.append(size)
    return MaxPool2d(kernel, strides, before, dilations, (sizes[0], sizes[1]))


def linear(input: Any, weight: Any, bias: Any = None) -> None:
    """Check the arguments of a fully-connected layer: input (..., I), weight (O, I), bias (O,) or None.

    Raises TypeError or ValueError.
    """
    arrays(input=input, weight=weight, bias=bias)
    if weight.ndim != 2:
        raise ValueError(f"weight must be (O, I), got shape {shape_of(weight)}")
    if input.ndim < 1 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"input must be (..., {weight.shape[1]}), the columns of weight {shape_of(weight)}, got {shape_of(input)}"
        )
    if bias is not None and shape_of(bias) != (weight.shape[0],):
        raise ValueError(f"bias must have shape ({weight.shape[0]},), one value a row of weight, got {shape_of(bias)}")


def flatten(input: Any, start_dim: Any, end_dim: Any) -> tuple[int, int]:
    """Check the arguments of flatten and return the first and last dimension it merges; ValueError."""
    arrays(input=input)
    first = dimension("start_dim", start_dim, input.ndim)
    last = dimension("end_dim", end_dim, input.ndim)
    if first > last:
        raise ValueError(f"start_dim must not come after end_dim, got {start_dim!r} and {end_dim!r}")
    return first, last


def softmax(input: Any, dim: Any) -> int:
    """Check the arguments of softmax and log_softmax and return `dim` counted from the front; ValueError."""
    arrays(input=input)
    return dimension("dim", dim, input.ndim)


def reduction(value: str, size_average: Any, reduce: Any) -> None:
    """Check what says how a loss is reduced; ValueError, also for the two arguments that torch has deprecated."""
    if size_average is not None or reduce is not None:
        raise ValueError(f"reduction must be used, not size_average={size_average!r} or reduce={reduce!r}")
    if value not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {value!r}")


def cross_entropy(input: Any, target: Any, weight: Any, ignore_index: Any, label_smoothing: float) -> bool:
    """Check the arguments of cross_entropy, input (C,), (N, C) or (N, C, d1, …); return: are targets indices?

    Class indices have input's shape without C (int64 or uint8), class probabilities have input's shape.
    Raises TypeError or ValueError, for an index outside [0, C) too (on the CPU, where looking costs nothing).
    """
    arrays(input=input, weight=weight)
    if input.ndim < 1:
        raise ValueError(f"input must be (C,), (N, C) or (N, C, d1, …), got shape {shape_of(input)}")
    class_dim = 0 if input.ndim == 1 else 1
    classes = input.shape[class_dim]
    if classes < 1:
        raise ValueError(f"input must have at least one class, got shape {shape_of(input)}")
    if weight is not None and shape_of(weight) != (classes,):
        raise ValueError(f"weight must have shape ({classes},), one value a class, got {shape_of(weight)}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing!r}")
    kind = torch.Tensor if isinstance(input, torch.Tensor) else np.ndarray
    if not isinstance(target, kind):
        raise TypeError(f"target must be a {kind.__name__} as input is, got {type(target).__name__}")

    if shape_of(target) == shape_of(input) and target.dtype in FLOATS:
        arrays(input=input, target=target)
        if ignore_index != -100 and ignore_index >= 0:
            raise ValueError(f"ignore_index must not be given for class probabilities, got {ignore_index!r}")
        return False
    integer("ignore_index", ignore_index)
    if target.dtype not in INTEGERS:
        raise TypeError(
            f"target must hold class indices (int64, uint8) or probabilities of input's shape {shape_of(input)}"
            f" and dtype {input.dtype}, got {target.dtype} of shape {shape_of(target)}"
        )
    expected = shape_of(input)[:class_dim] + shape_of(input)[class_dim + 1 :]
    if shape_of(target) != expected:
        raise ValueError(f"target must have shape {expected}, input's without its classes, got {shape_of(target)}")
    if kind is torch.Tensor and target.device != input.device:
        raise ValueError(f"target must be on input's device {input.device}, got {target.device}")
    return True


def class_indices(target: Any, classes: int, ignore_index: int) -> None:
    """Check that every class index of a target on the CPU is in [0, classes) or is `ignore_index`; ValueError."""
    if not getattr(target, "is_cuda", False):
        values = np.asarray(target)
        if values.size and values.view(np.uint64).max() < classes:  # as unsigned numbers, negative ones are huge
            return
        wrong = values[((values < 0) | (values >= classes)) & (values != ignore_index)]
        if wrong.size:
            raise ValueError(f"target must be in [0, {classes}) or ignore_index {ignore_index}, got {wrong.flat[0]}")
