"""torch.nn's layers with another forward: `variant=` is their one new argument, all else is inherited."""

import copy
from collections import Counter
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from jitconv import compat, variants
from jitconv import functional as F
from jitconv.shapes import FLOATS


class _Layer(nn.Module):
    """Adds the keyword `variant` (None: the best one for the input's device) to a torch.nn layer.

    Tensors of integers, which some of torch's layers take too, are left to torch.
    """

    variant: str | None = None  # for instances that were saved, or converted, without one

    def __init__(self, *args: Any, variant: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.variant = _known(variant)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (super().extra_repr(), f"variant={self.variant!r}" if self.variant else "")))


class Conv2d(_Layer, nn.Conv2d):
    """torch.nn.Conv2d, (N, C_in, H, W) to (N, C_out, H_out, W_out), computed by `variant`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            input = nn.functional.pad(input, compat.edge_padding(self), mode=self.padding_mode)
            padding: Any = 0
        else:
            padding = self.padding
        return F.conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups, variant=self.variant)


class MaxPool2d(_Layer, nn.MaxPool2d):
    """torch.nn.MaxPool2d, (N, C, H, W) to (N, C, H_out, W_out), computed by `variant`."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if _is_torchs(input):
            return super().forward(input)
        return F.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
            variant=self.variant,
        )


class Flatten(_Layer, nn.Flatten):
    """torch.nn.Flatten, (N, C, H, W) to (N, C·H·W) by default, computed by `variant`."""

    def forward(self, input: Tensor) -> Tensor:
        if _is_torchs(input):
            return super().forward(input)
        return F.flatten(input, self.start_dim, self.end_dim, variant=self.variant)


class Linear(_Layer, nn.Linear):
    """torch.nn.Linear, (..., I) to (..., O), computed by `variant`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias, variant=self.variant)


class ReLU(_Layer, nn.ReLU):
    """torch.nn.ReLU, any shape, computed by `variant`."""

    def forward(self, input: Tensor) -> Tensor:
        if _is_torchs(input):
            return super().forward(input)
        return F.relu(input, self.inplace, variant=self.variant)


class Softmax(_Layer, nn.Softmax):
    """torch.nn.Softmax along `dim`, any shape, computed by `variant`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.softmax(input, self.dim, variant=self.variant)


class LogSoftmax(_Layer, nn.LogSoftmax):
    """torch.nn.LogSoftmax along `dim`, any shape, computed by `variant`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.log_softmax(input, self.dim, variant=self.variant)


class CrossEntropyLoss(_Layer, nn.CrossEntropyLoss):
    """torch.nn.CrossEntropyLoss of logits (N, C, ...) and targets, computed by `variant`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            variant=self.variant,
        )


REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    layer.__bases__[1]: layer  # keyed by the torch.nn class it stands in for
    for layer in (Conv2d, MaxPool2d, Flatten, Linear, ReLU, Softmax, LogSoftmax, CrossEntropyLoss)
}


def convert(model: nn.Module, variant: str | None = None, *, inplace: bool = False, report: bool = False) -> nn.Module:
    """Return the model with every torch.nn layer that jitconv has computed by `variant`; parameters stay shared.

    The module tree, names, hooks and state_dict stay what they were, and so does `model` itself unless `inplace`.
    What jitconv would compute otherwise than the module does is left alone; `report` prints what was swapped, what
    was left and why. Functions called in a forward are no modules, and stay torch's. Raises TypeError or ValueError.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    _known(variant)
    if not inplace:
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        model = copy.deepcopy(model, shared)
    reasons = {name: _left_because(module) for name, module in model.named_modules()}
    for name, module in model.named_modules():
        if reasons[name] is None:
            module.__class__ = REPLACEMENTS.get(type(module), type(module))
            module.variant = variant
    if report:
        print(_report(model, variant, reasons))
    return model


def _left_because(module: nn.Module) -> str | None:
    """Why a module stays as it is: None if it need not, "" for one that only holds others."""
    kind = next((kind for kind in type(module).__mro__ if kind in REPLACEMENTS), None)
    if kind is None:
        return "" if any(module.children()) else "jitconv has no such layer"
    if isinstance(module, LazyModuleMixin):
        return "its shape is not known before its first call"
    if type(module) not in (kind, REPLACEMENTS[kind]):
        return f"a subclass of {kind.__name__}: its forward is its own"
    if _replaced(module):
        return "its forward was replaced"
    dtypes = {parameter.dtype for parameter in module.parameters(recurse=False)}
    if not dtypes <= set(FLOATS):
        return f"its weight is {next(iter(dtypes - set(FLOATS)))}"
    return None


def _replaced(module: nn.Module) -> bool:
    return "forward" in vars(module) or "_conv_forward" in vars(module)


def _report(model: nn.Module, variant: str | None, reasons: dict[str, str | None]) -> str:
    """A line for each kind of layer: how many, whether jitconv's or torch's, and where those are that were left."""
    swapped: Counter[str] = Counter()
    left: dict[tuple[str, str], list[str]] = {}
    for name, module in model.named_modules():
        kind, reason = type(module).__name__, reasons[name]
        if reason is None:
            mode = getattr(module, "padding_mode", "zeros")
            swapped[kind + f", of images that torch pads before, in a copy ({mode})" * (mode != "zeros")] += 1
        elif reason:
            left.setdefault((kind, reason), []).append(name)
    lines = [f"computed by {variant or 'the best variant for the device'}: {sum(swapped.values())} layers"]
    lines += [f"  {count:4} {kind}" for kind, count in sorted(swapped.items())]
    lines.append(f"left as they are: {sum(map(len, left.values()))} layers")
    for (kind, reason), names in sorted(left.items()):
        where = ", ".join(names[:3]) + ", …" * (len(names) > 3)
        lines.append(f"  {len(names):4} {kind}: {reason}" + f" ({where})" * bool(where))
    lines.append("functions in a forward (F.relu, say) are not seen here: jitconv.plan and torch.compile see them")
    return "\n".join(lines)


def _is_torchs(input: Any) -> bool:
    """Whether an input is a tensor of integers; what a symbolic trace passes through is no tensor."""
    return isinstance(input, Tensor) and input.dtype not in FLOATS


def _known(variant: str | None) -> str | None:
    if variant is not None:
        variants.get(variant)  # raises ValueError for a name that nobody registered
    return variant
