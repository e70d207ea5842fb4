"""From a layer to a bound call: the one place that looks at what kind of arrays and which variant a layer was given.

A layer function checks its arguments and returns a `Request`: the op to run, and how its arrays are seen. For shapes
and options met before, the bound call that it led to is run at once.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from jitconv import shapes, variants
from jitconv.compat import is_legacy_batchedtensor, suggest_memory_format
from jitconv.op import PLAIN, Bound, Op, is_observed
from jitconv.variants import Variant

CALLS = 1024  # bound calls of a variant that are kept; then it begins anew
OPTIONS = (int, bool, float, str, type(None))  # the usual ones, told from tensors at once
STRIDED = torch.strided
FLOAT32_UNDER_AUTOCAST = ("softmax", "log_softmax", "cross_entropy")  # a loss may be scaled beyond float16


class Request(NamedTuple):
    """What a layer found out: run `op` with `args`, whose tensors are the layer's first arguments, in their order.

    op: None where `finish` computes the layer from `args` (a view, or other layers). results: how many of the op's
    results are returned. views: the shape in which the op sees its i-th tensor; its results then have the shape
    `result`. finish: what is made of the results. images: they are channels_last where an argument is. is_view: half
    precision needs no cast.
    """

    op: Op | None
    args: Sequence[Any]
    results: int = 1
    views: Mapping[int, Sequence[int]] | None = None
    result: Sequence[int] = ()
    finish: Any = None
    images: bool = False
    is_view: bool = False

    def is_half(self) -> bool:
        return not self.is_view and any(map(_is_half, self.args))

    def is_channels_last(self) -> bool:
        return self.images and any(map(_is_channels_last, self.args))

    def viewed(self, values: Sequence[Any]) -> Sequence[Any]:
        """The op's arguments, or only its tensors, with the views of some."""
        if not self.views:
            return values
        return [value.reshape(self.views[i]) if i in self.views else value for i, value in enumerate(values)]

    def layer_result(self, results: Any, channels_last: bool) -> Any:
        """What the layer returns for the results of its op."""
        several = results if isinstance(results, tuple) else (results,)
        if self.views:
            several = tuple(result.reshape(self.result) for result in several)
        if channels_last:
            several = tuple(result.contiguous(memory_format=torch.channels_last) for result in several)
        if self.finish is not None:
            return self.finish(*several)
        return several if isinstance(results, tuple) else several[0]


class Ready:
    """A request bound to a kernel: call it with what a layer is given, whose tensors are at these positions."""

    def __init__(self, request: Request, variant: Variant, positions: Sequence[int | None]) -> None:
        self.numpy = isinstance(request.args[0], np.ndarray)
        self.channels_last = request.is_channels_last()
        self.request = request._replace(args=())  # keeps no tensor alive
        self.positions = positions[: len(request.args)]
        other = request.views or request.finish or self.channels_last or self.numpy
        self.direct_count = 0  # how many of the first arguments are the op's tensors, where nothing else is to be done
        if request.op is not None:
            args = request.viewed([*map(_tensor, request.args)])
            self.bound = Bound(request.op, variant, args, request.results, self.numpy)
            self.positions = positions[: request.op.tensor_count]
            if not other and self.positions == [*range(len(self.positions))]:
                self.direct_count = len(self.positions)

    def __call__(self, given: Sequence[Any]) -> Any:
        if self.direct_count:
            return self.bound(*given[: self.direct_count])
        tensors: list[Any] = [None if i is None else _tensor(given[i]) for i in self.positions]
        if self.request.op is None:
            results = self.request.finish(*tensors)
        else:
            results = self.request.layer_result(self.bound(*self.request.viewed(tensors)), self.channels_last)
        return _arrays(results) if self.numpy else results


def layer(check: Callable[..., Any]) -> Callable[..., Any]:
    """Make a layer of a function that checks its arguments and returns a Request.

    check: the layer's signature; its keyword `variant` is the Variant that will compute, where a caller gives a name.
    """
    parameters = check.__code__.co_varnames

    @functools.wraps(check)
    def run(*args: Any, variant: str | None = None, **options: Any) -> Any:
        given = (*args, *options.values()) if options else args
        known = None if is_observed() else variants.loaded(variant)
        shapes_key = None if known is None else _key(given)
        ready = None
        if known is not None and shapes_key is not None:
            key = (check, *options, *shapes_key)
            try:
                ready = known.calls.get(key)
            except TypeError:  # something that no layer takes for an option, which `check` will say
                shapes_key = None
        if ready is not None:
            return ready(given)
        chosen = _resolve(variant, args[0] if args else options.get("input"))  # raises where it cannot run
        request = check(*args, variant=chosen, **options)
        if shapes_key is None or request.is_half():
            return _run_once(run, request, chosen, args, options)
        names = [*parameters[: len(args)], *options]
        ready = Ready(request, chosen, [names.index(name) if name in names else None for name in parameters])
        if len(chosen.calls) >= CALLS:
            chosen.calls.clear()
        chosen.calls[key] = ready
        return ready(given)

    return run


def _run_once(run: Any, request: Request, chosen: Variant, args: Sequence[Any], options: dict[str, Any]) -> Any:
    """Run a layer for what is not bound: whole variants, half precision, compilers and others who look on."""
    if isinstance(request.args[0], np.ndarray):
        options = {name: _tensor(value) for name, value in options.items()}
        return _arrays(run(*map(_tensor, args), variant=chosen.name, **options))
    if chosen.whole:
        return chosen.ops[_name(run)](*args, **options)
    if request.is_half():
        return _in_float32(run, request.args[0], args, options, chosen.name)
    if request.op is None:
        return request.finish(*request.args)
    results = request.op(chosen, *request.viewed(request.args))
    if isinstance(results, tuple):
        results = results[: request.results] if request.results > 1 else results[0]
    return request.layer_result(results, request.is_channels_last())


def _in_float32(run: Any, input: torch.Tensor, args: Sequence[Any], options: dict[str, Any], variant: str) -> Any:
    """Run a layer in float32 and cast what it returns to input's dtype."""
    widened = {name: _float32(value) for name, value in options.items()}
    results = run(*map(_float32, args), variant=variant, **widened)
    if _name(run) in FLOAT32_UNDER_AUTOCAST and torch.is_autocast_enabled(input.device.type):
        return results
    return (results[0].to(input.dtype), *results[1:]) if isinstance(results, tuple) else results.to(input.dtype)


def _resolve(variant: str | None, input: Any) -> Variant:
    device = input.device.type if isinstance(input, torch.Tensor) else "cpu"
    return variants.resolve(variant, "cpu" if device == "meta" else device)


def _name(run: Any) -> str:
    return str(run.__name__).lstrip("_")


def _key(given: Sequence[Any]) -> tuple[Any, ...] | None:
    """What a call follows from, if all its arrays are plain and on the CPU; else None."""
    parts: tuple[Any, ...] = ()
    for value in given:
        kind = type(value)
        if kind in PLAIN:
            if not value.is_cpu or value.layout is not STRIDED or value.is_neg() or is_legacy_batchedtensor(value):
                return None
            parts += value.shape, value.stride(), value.dtype
        elif kind is tuple or kind is list:
            parts += *value, *map(type, value)  # for 1 == 1.0 == True, but not every one is a stride
        elif kind is np.ndarray:
            parts += value.shape, value.dtype, kind
        elif kind in OPTIONS or not isinstance(value, torch.Tensor):
            parts += value, kind
        else:
            return None
    return parts


def _is_half(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in shapes.HALVES


def _float32(value: Any) -> Any:
    return value.float() if _is_half(value) else value


def _tensor(value: Any) -> Any:
    """A tensor in the memory of a NumPy array; anything else as it is."""
    return torch.from_numpy(np.require(value, requirements=["C", "W"])) if isinstance(value, np.ndarray) else value


def _arrays(results: Any) -> Any:
    """NumPy arrays in the memory of one tensor or several."""
    return tuple(result.numpy() for result in results) if isinstance(results, tuple) else results.numpy()


def _is_channels_last(x: Any) -> bool:
    """Whether torch takes x for images (N, C, H, W) whose channels lie side by side in memory."""
    if not isinstance(x, torch.Tensor) or x.ndim != 4 or x.stride(1) > x.stride(3):
        return False
    return suggest_memory_format(x) == torch.channels_last
