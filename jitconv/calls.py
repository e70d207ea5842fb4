"""What a call costs before it computes: an op bound to shapes once, and calls of layers that are remembered by shapes.

torch's own layers take 2 to 6 µs a call, an autograd.Function in Python that does nothing takes 3. Checking arguments,
working out shapes and asking torch for arrays took ten more; for shapes seen before, none of that is done again, nor
for their gradients.
"""

import copy
import functools
import math
import operator
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch._C import _any_requires_grad, _get_tracing_state, _len_torch_dispatch_stack
from torch._C._autograd import _profiler_enabled
from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from jitconv import variants
from jitconv.memory import LARGE, keep_freed_memory, memory_of, prefer_huge_pages
from jitconv.variants import Variant

PLAIN = (torch.Tensor, torch.nn.Parameter)
OPTIONS = (int, bool, float, str, type(None))  # the usual ones, told from tensors at once
REMEMBERED = 1024  # calls of a variant; then it begins anew
SMALL = 2048  # numbers in all arrays of a call; a second core would save less than the 6 µs that it takes to start
_recorder = threading.local()
keep_freed_memory()


class Call:
    """An op of a variant, bound to its constants and to the shapes of its tensors: call it with such tensors.

    The tensors are no longer checked. All that follows from their shapes is worked out here, once.
    """

    def __init__(self, op: Any, variant: Variant, args: Sequence[Any]) -> None:
        first = args[0]
        tensors, constants = args[: op.tensors], args[op.tensors :]
        names = op.arguments[: op.tensors]
        self.op, self.variant, self.tensors = op, variant, op.tensors
        self.single = len(op.results) == 1  # or the first result is all that is wanted
        self.lean: Call | None = None  # what is called instead where no gradient is wanted
        self.gradients: dict[Hashable, Plan | None] = {}
        self.kept = op.kept(args)
        self.constants = [tuple(c) if isinstance(c, list) else c for c in constants[: op.kernel_arguments - op.tensors]]
        shapes = op.shapes(*args)
        dtypes = [torch.int64 if name == "indices" else first.dtype for name in op.results]
        self.prototypes = [
            first.new_empty((), dtype=dtype).expand(shape) for shape, dtype in zip(shapes, dtypes, strict=True)
        ]
        self.large = first.is_cpu and max(map(math.prod, shapes)) * first.itemsize >= LARGE
        self.absent = {
            i: first.new_full(*op.absent(names[i], args)) for i, tensor in enumerate(tensors) if tensor is None
        }
        self.arrays = first.is_cpu and not variant.tensors
        self.plain = variant.tensors or all(t is None or (t.is_contiguous() and not t.is_neg()) for t in tensors)
        given = [self.absent.get(i, tensor) for i, tensor in enumerate(tensors)]
        self.seen = []
        for name, tensor in zip((*names, *op.results), (*given, *self.prototypes), strict=True):
            shape, dtype = op.seen(name, tuple(tensor.shape), self.kept), numpy_dtype(tensor.dtype)
            self.seen.append((shape, dtype, memory_of(math.prod(shape) * dtype.itemsize)))
        self.kernel = None if all(0 in shape for shape in shapes) else variant.ops[op.name]
        if sum(math.prod(shape) for shape, _, _ in self.seen) <= SMALL:
            self.kernel = getattr(self.kernel, "alone", self.kernel)

    def __call__(self, *tensors: Any) -> Any:
        """Return the result, or the tuple of results, with its gradient if somebody may ask for it."""
        if (torch.is_grad_enabled() and _any_requires_grad(*tensors)) or forward_ad._current_level >= 0:
            return _apply(self, *tensors)
        outs = (self.lean or self).run(tensors)
        return outs[0] if self.single else tuple(outs)

    def of_first(self) -> "Call":
        """Return the call of which only the first result is wanted: the last is not kept where no gradient needs it."""
        call = copy.copy(self)
        call.single = True
        if self.arrays and getattr(self.variant.ops.get(self.op.name), "leaves_out", False):
            call.lean = lean = copy.copy(call)
            *first, last = self.prototypes
            nothing = (0,) * last.dim()
            lean.prototypes = [*first, last.new_empty(nothing)]
            lean.seen = [*self.seen[:-1], (nothing, self.seen[-1][1], memory_of(0))]
        return call

    def run(self, tensors: Sequence[Any]) -> list[Any]:
        """Return all results, without a gradient."""
        outs = [torch.empty_like(prototype) for prototype in self.prototypes]
        if self.large:
            for out in outs:
                prefer_huge_pages(out)
        if self.absent:
            tensors = [*tensors]
            for place, tensor in self.absent.items():
                tensors[place] = tensor
        if not self.plain:
            tensors = [tensor.resolve_neg().contiguous() for tensor in tensors]
        if self.arrays:
            arrays = [  # a third of Tensor.numpy()'s time
                np.ndarray(shape, dtype, memory_at(tensor.data_ptr()))
                for tensor, (shape, dtype, memory_at) in zip((*tensors, *outs), self.seen)  # noqa: B905 (costs 0.2 µs)
            ]
        else:
            arrays = [tensor.reshape(seen[0]) for tensor, seen in zip((*tensors, *outs), self.seen, strict=True)]
        self.op.fill(self.kernel, arrays, self.constants)
        return outs

    def backward(self, ctx: Any, grad: Any, needs: tuple[bool, ...]) -> list[Any]:
        """Return the gradient of every tensor that needs one, None for the others; the way there is remembered."""
        saved = ctx.saved_tensors
        parts = None if torch.is_grad_enabled() or observed() else signature((grad, *saved))
        if parts is None:
            return self.op.backward(self, saved, grad, needs)
        key = (needs, parts)
        try:
            plan = self.gradients[key]
        except KeyError:
            made, grads = watched(self.op.backward, self, saved, grad, needs)
            if len({id(tensor) for tensor in (grad, *saved)}) == 1 + len(saved):  # or one may be taken for another
                self.gradients[key] = Plan.of(made, (grad, *saved), grads)
            return grads
        return self.op.backward(self, saved, grad, needs) if plan is None else plan(grad, *saved)


class View:
    """A reshape of one tensor: all that some layers do, and remembered as a Call is."""

    tensors = 1

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = shape

    def __call__(self, tensor: Any) -> Any:
        return tensor.reshape(self.shape)


class Plan:
    """What was done with some tensors: ops, each on tensors that there were then, and which of all are the results."""

    def __init__(self, steps: list[tuple[Call, list[int]]], ends: list[int]) -> None:
        self.steps, self.ends = steps, ends

    def __call__(self, *tensors: Any) -> list[Any]:
        values = [None, *tensors]
        for call, places in self.steps:
            values.append(call(*[values[place] for place in places]))
        return [values[place] for place in self.ends]

    @staticmethod
    def of(made: Sequence[Any], given: Sequence[Any], results: Sequence[Any]) -> "Plan | None":
        """Return the plan of the calls that were made; None if something else was done as well."""
        places = {id(None): 0, **{id(tensor): place for place, tensor in enumerate(given, 1)}}
        try:
            steps = []
            for call, tensors, result in made:
                steps.append((call, [places[id(tensor)] for tensor in tensors]))
                places[id(result)] = len(given) + len(steps)
            return Plan(steps, [places[id(result)] for result in results])
        except KeyError:
            return None


class _Differentiable(torch.autograd.Function):
    """The autograd of every call in eager mode, at half the cost of the operator's own."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Any) -> Any:
        outs = call.run(tensors)
        call.op.save(ctx, call, tensors, outs)
        return outs[0] if call.single else tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, *ctx.call.backward(ctx, grads[0], ctx.needs_input_grad[1:])


# Function.apply without its checks for transforms of torch.func, which are a third of its time; `observed` made them.
_apply = super(torch.autograd.Function, _Differentiable).apply


def observed() -> bool:
    """Whether somebody wants to see every operator: a compiler, a transform, a mode, a trace or a profiler."""
    return (
        is_compiling()
        or peek_interpreter_stack() is not None
        or _len_torch_dispatch_stack() > 0
        or _get_tracing_state() is not None
        or _profiler_enabled()
    )


def special(value: Any) -> bool:
    """Whether a value is a tensor that only torch's dispatcher knows how to compute with."""
    return isinstance(value, torch.Tensor) and (
        type(value) not in PLAIN or value.is_meta or is_legacy_batchedtensor(value)
    )


def signature(args: Sequence[Any]) -> tuple[Any, ...] | None:
    """Return what a call follows from, if all its tensors are plain, contiguous and on the CPU; else None."""
    parts: tuple[Any, ...] = ()
    for arg in args:
        kind = type(arg)
        if kind in PLAIN:
            if not arg.is_cpu or not arg.is_contiguous() or arg.is_neg() or is_legacy_batchedtensor(arg):
                return None
            parts += arg.shape, arg.dtype
        elif kind is tuple or kind is list:
            parts += *arg, *map(type, arg)  # for 1 == 1.0 == True, but not every one is a stride
        elif kind in OPTIONS or not isinstance(arg, torch.Tensor):
            parts += arg, kind
        else:
            return None
    return parts


def remember(variant: Variant, key: Hashable, call: Any) -> None:
    if len(variant.calls) >= REMEMBERED:
        variant.calls.clear()
    variant.calls[key] = call


def record(call: Call | View, tensors: Sequence[Any], result: Any) -> None:
    """Note a call for `remembered`, which may be watching."""
    if (made := getattr(_recorder, "made", None)) is not None:
        made.append((call, tensors, result))


def remembered(layer: Callable[..., Any]) -> Callable[..., Any]:
    """Let a layer's later calls with shapes and options seen before go straight to the op that they led to.

    That is so where the layer gave its own tensors to one op and returned what it got: only shapes decided the rest.
    """

    @functools.wraps(layer)
    def call(*args: Any, variant: str | None = None, **options: Any) -> Any:
        chosen = None if observed() else variants.loaded(variant)
        given = (*args, *options.values()) if options else args
        parts = signature(given) if chosen is not None else None
        if chosen is None or parts is None:
            return layer(*args, **options, variant=variant)
        key = (layer, *options, *parts)
        try:
            known = chosen.calls[key]
        except KeyError:
            made, result = watched(layer, *args, **options, variant=variant)
            remember(chosen, key, _straight(made, (*given, None), result))
            return result
        except TypeError:  # something that no layer takes for an option, which it will say
            known = None
        if known is None:
            return layer(*args, **options, variant=variant)
        return known(*given) if len(given) == known.tensors else known(*(*given, None)[: known.tensors])

    return call


def watched(function: Callable[..., Any], *args: Any, **options: Any) -> tuple[list[Any], Any]:
    """Call the function; return the calls of ops that it made, and its result."""
    before, _recorder.made = getattr(_recorder, "made", None), []
    try:
        result = function(*args, **options)
        made = _recorder.made
        if before is not None:
            before += made
        return made, result
    finally:
        _recorder.made = before


def _straight(made: list[Any], given: Sequence[Any], result: Any) -> Call | View | None:
    """The one call that was made, if it took the layer's own arguments and gave its result, alone or before others.

    None if the layer did something else as well.
    """
    if len(made) != 1:
        return None
    call, tensors, results = made[0]
    if len(tensors) > len(given) or not all(map(operator.is_, tensors, given)):
        return None
    if type(results) is tuple and result is results[0]:
        return call.of_first()
    return call if result is results else None


def one_or_all(outs: list[Any]) -> Any:
    return outs[0] if len(outs) == 1 else tuple(outs)


@functools.cache
def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    return torch.empty(0, dtype=dtype).numpy().dtype
