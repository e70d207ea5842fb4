"""From a layer to a bound call: the one place that looks at what kind of arrays and which variant a layer was given.

A layer function checks its arguments and returns a `Request`: the op to run, and how its arrays are seen. For shapes
and options met before, the bound call that it led to is run at once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from jitconv import shapes, variants
from jitconv.compat import TENSOR_TYPES, is_channels_last, is_legacy_batchedtensor, is_observed
from jitconv.op import Bound, Op, one_or_all
from jitconv.variants import Variant

CALLS = 1024  # bound calls of a variant that are kept; then it begins anew
OPTIONS = (int, bool, float, str, type(None))  # the usual ones, told from tensors at once
STRIDED = torch.strided
FLOAT32_UNDER_AUTOCAST = ("softmax", "log_softmax", "cross_entropy")  # a loss may be scaled beyond float16


class Request(NamedTuple):
    """What a layer found out: how to compute it from `args`, whose tensors are the layer's first arguments, in order.

    compute: an op, or a function of tensors (a view, or other layers). results: how many of the op's results are
    returned. finish: what is made of them. any_dtype: half precision needs no cast.
    """

    compute: Op | Callable[..., Any]
    args: Sequence[Any]
    results: int = 1
    finish: Callable[..., Any] | None = None
    any_dtype: bool = False

    def is_half(self) -> bool:
        return not self.any_dtype and any(map(_is_half, self.args))

    def layer_result(self, results: Any) -> Any:
        """What the layer returns for what was computed."""
        several = (results if isinstance(results, tuple) else (results,))[: self.results]
        return one_or_all(several) if self.finish is None else self.finish(*several)


def channels_last_as(*images: Any) -> Callable[..., Any] | None:
    """What makes results channels_last, if one of these images is, as torch's layers do."""

    def in_channels_last(*results: torch.Tensor) -> Any:
        return one_or_all([result.contiguous(memory_format=torch.channels_last) for result in results])

    return in_channels_last if any(map(is_channels_last, images)) else None


def _bind(request: Request, variant: Variant, positions: Sequence[int | None]) -> Callable[[Sequence[Any]], Any]:
    """The request bound to a kernel: a function of what the layer is given, whose tensors are at these positions."""
    compute, numpy, count = request.compute, isinstance(request.args[0], np.ndarray), len(request.args)
    if isinstance(compute, Op):
        count = compute.tensor_count
        compute = Bound(compute, variant, [*map(_tensor, request.args)], request.results, numpy)
    positions, request = positions[:count], request._replace(args=())  # keeps no tensor alive
    if positions == [*range(count)] and request.finish is None and not numpy:
        return lambda given: compute(*given[:count])

    def run(given: Sequence[Any]) -> Any:
        tensors: list[Any] = [None if i is None else _tensor(given[i]) for i in positions]
        results = request.layer_result(compute(*tensors))
        return _arrays(results) if numpy else results

    return run


def layer(check: Callable[..., Any]) -> Callable[..., Any]:
    """Make a layer of a function that checks its arguments and returns a Request.

    check: the layer's signature; its keyword `variant` is the Variant that will compute, where a caller gives a name.
    """
    name, parameters = check.__name__.lstrip("_"), check.__code__.co_varnames

    @functools.wraps(check)
    def run(*args: Any, variant: str | None = None, **options: Any) -> Any:
        given = (*args, *options.values()) if options else args
        known = None if is_observed() else variants.loaded(variant)
        key = None if known is None else _key((check, *options), given)
        try:
            bound = None if known is None or key is None else known.calls.get(key)
        except TypeError:  # something that no layer takes for an option, which `check` will say
            bound = key = None
        if bound is not None:
            return bound(given)
        input = args[0] if args else options.get("input")
        device = input.device.type if isinstance(input, torch.Tensor) else "cpu"
        chosen = variants.resolve(variant, "cpu" if device == "meta" else device)  # raises where it cannot run
        request = check(*args, variant=chosen, **options)
        if key is None or request.is_half():
            return run_once(request, chosen, args, options)
        positions = {parameter: i for i, parameter in enumerate((*parameters[: len(args)], *options))}
        bound = _bind(request, chosen, [*map(positions.get, parameters)])
        if len(chosen.calls) >= CALLS:
            chosen.calls.clear()
        chosen.calls[key] = bound
        return bound(given)

    def run_once(request: Request, chosen: Variant, args: Sequence[Any], options: dict[str, Any]) -> Any:
        """Run the layer for what is not bound: whole variants, half precision, compilers and others who look on."""
        input = request.args[0]

        def run_on(convert: Callable[[Any], Any]) -> Any:
            converted = {option: convert(value) for option, value in options.items()}
            return run(*map(convert, args), variant=chosen.name, **converted)

        if isinstance(input, np.ndarray):
            return _arrays(run_on(_tensor))
        if chosen.whole:
            return chosen.ops[name](*args, **options)
        if request.is_half():
            results = run_on(lambda value: value.float() if _is_half(value) else value)
            if name in FLOAT32_UNDER_AUTOCAST and torch.is_autocast_enabled(input.device.type):
                return results
            return (results[0].to(input.dtype), *results[1:]) if isinstance(results, tuple) else results.to(input.dtype)
        first = (chosen,) if isinstance(request.compute, Op) else ()
        return request.layer_result(request.compute(*first, *request.args))

    return run


def _key(parts: tuple[Any, ...], given: Sequence[Any]) -> tuple[Any, ...] | None:
    """`parts` and what else a call follows from, if all its arrays are plain and on the CPU; else None."""
    for value in given:
        kind = type(value)
        if kind in TENSOR_TYPES:
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


def _tensor(value: Any) -> Any:
    """A tensor in the memory of a NumPy array; anything else as it is."""
    return torch.from_numpy(np.require(value, requirements=["C", "W"])) if isinstance(value, np.ndarray) else value


def _arrays(results: Any) -> Any:
    """NumPy arrays in the memory of one tensor or several."""
    return tuple(result.numpy() for result in results) if isinstance(results, tuple) else results.numpy()
