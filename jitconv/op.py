"""What an Op is, and the one way from a call to a kernel: bind once, run often.

ops.py declares every op. An Op takes tensors: eagerly (`Bound`), and as an operator of torch where somebody wants to
see it: a compiler, torch.export, torch.func, a dispatch mode, the meta device. Kernels of the CPU get NumPy arrays.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.compiler import is_compiling

from jitconv import variants
from jitconv.compat import (
    any_requires_grad,
    apply_of,
    dispatch_modes,
    in_forward_mode,
    is_legacy_batchedtensor,
    profiling,
    schema_of,
    tracing_state,
    transform,
)
from jitconv.memory import LARGE, memory_of, prefer_huge_pages
from jitconv.packing import packed
from jitconv.variants import Variant

Shape = tuple[int, ...]
Formula = Callable[..., torch.Tensor]

PLAIN = (torch.Tensor, torch.nn.Parameter)
ONLY_SHAPES = ("size", "dim")  # arguments that decide shapes, and that kernels do not get
SMALL = 2048  # numbers in all arrays of a call; a second core would save less than the 6 µs that it takes to start
_library = torch.library.Library("jitconv", "DEF")
_ops: dict[str, "Op"] = {}


def as_it_is(name: str, shape: Shape, arguments: Mapping[str, Any]) -> Shape:
    return shape


class Step:
    """A gradient as data: an op, and where each of its arguments comes from.

    A name stands for a saved tensor, a constant, the shape of an argument ("input.shape") or the gradient of the
    result ("g"); a function computes an argument from all of these by name.
    """

    def __init__(self, op: str, *arguments: str | Callable[[Mapping[str, Any]], Any] | None) -> None:
        self.op, self.arguments = op, arguments

    def __call__(self, values: Mapping[str, Any]) -> Any:
        return _ops[self.op](values["variant"], *self.resolve(values))

    def resolve(self, values: Mapping[str, Any]) -> list[Any]:
        return [
            values[source] if isinstance(source, str) else source(values) if source else None
            for source in self.arguments
        ]


class Op:
    """One operation of the study, whatever the variant.

    schema: torch's: the tensors, the kernel's other arguments, perhaps `size` or `dim` (which only shapes depend on),
    `variant`; the first result alone is differentiable, and a result called `indices` holds integers.
    shapes: from the arguments to the shape of every result.
    gradients: for a differentiable argument a Step, or a formula in torch: (g, **values by name) → gradient.
    through: a Step that turns the result's gradient into that which `gradients` start from.
    second: formulas that take the place of `gradients` where these are to be differentiated once more.
    saves: the names of the arguments and results that the gradients read.
    batched: the names of the arguments whose first dimension is the batch, if it is every result's too.
    seen: the shape in which kernels see an array, from its name, its shape and the arguments (tensors: their shapes).
    fills: for a tensor that may be None, the number that stands for each of its elements, and the number of those.
    check: looks at values before the kernel does, where they are on the CPU.
    """

    def __init__(
        self,
        schema: str,
        shapes: Callable[..., list[Shape]],
        gradients: Mapping[str, Step | Formula] | None = None,
        *,
        through: Step | None = None,
        second: Mapping[str, Formula] | None = None,
        saves: str = "",
        batched: str = "",
        seen: Callable[[str, Shape, Mapping[str, Any]], Shape] = as_it_is,
        fills: Mapping[str, tuple[float, Callable[..., int]]] | None = None,
        check: Callable[..., None] | None = None,
    ) -> None:
        self.name = schema.partition("(")[0]
        _library.define(schema)
        self.torch_op = getattr(torch.ops.jitconv, self.name).default
        arguments = schema_of(self.torch_op).arguments[:-1]
        self.arguments = [argument.name for argument in arguments]
        self.results = [result.name or "result" for result in schema_of(self.torch_op).returns]
        self.tensors = sum("Tensor" in str(argument.type) for argument in arguments)
        self.kernel_arguments = sum(name not in ONLY_SHAPES for name in self.arguments)
        self.shapes, self.gradients, self.through, self.second = (
            shapes,
            dict(gradients or {}),
            through,
            dict(second or {}),
        )
        self.seen, self.check, self.fills = seen, check, dict(fills or {})
        self.saves, self.batched = saves.split(), batched.split()
        self.saved = [(*self.arguments[: self.tensors], *self.results).index(name) for name in self.saves]
        _ops[self.name] = self

        for device in ("CPU", "CUDA"):
            _library.impl(self.name, self._on_tensors, device)
        torch.library.register_fake(self.torch_op, self._on_fakes, lib=_library)
        torch.library.register_autograd(
            self.torch_op,
            lambda ctx, *grads: (*ctx.call.backward(ctx.saved_tensors, grads[0], ctx.needs_input_grad[:-1]), None),
            setup_context=self.set_up,
            lib=_library,
        )

    def __call__(self, variant: Variant, *args: Any) -> Any:
        """Return the result, or the tuple of results, of the variant's kernel."""
        if is_observed() or any(map(_is_special, args)):
            if not is_compiling():
                if tracing_state() is not None:
                    raise NotImplementedError("torch.jit.trace cannot follow jitconv's layers: use torch.export")
                if transform() is not None:
                    return _Transformed.apply(self, *args, variant.name)
            return self.torch_op(*args, variant.name)
        return Bound(self, variant, args)(*args[: self.tensors])

    def _on_tensors(self, *args: Any) -> Any:
        return _one_or_all(Bound(self, variants.get(args[-1]), args[:-1]).run(args[: self.tensors]))

    def _on_fakes(self, *args: Any) -> Any:
        dtypes = [torch.int64 if name == "indices" else None for name in self.results]
        shapes = self.shapes(*args[:-1])
        return _one_or_all([args[0].new_empty(s, dtype=dtype) for s, dtype in zip(shapes, dtypes, strict=True)])

    def set_up(self, ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        """Save, as torch.library and torch.func want it done: apart from the forward, from all of its inputs."""
        results = output if isinstance(output, tuple) else (output,)
        Call(self, variants.get(inputs[-1]), inputs[:-1]).save(ctx, inputs[: self.tensors], results, results)

    def vmap(self, info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Any, Any]:
        """Run over one more dimension, as torch.vmap wants it: folded into the batch if that may be, else in a loop."""
        values = dict(zip(self.arguments, args, strict=False))
        mapped = {
            name: value.movedim(dim, 0)
            for (name, value), dim in zip(values.items(), in_dims, strict=False)
            if isinstance(dim, int)
        }
        run = self._folded if mapped.keys() <= set(self.batched) else self._looped
        results = run(variants.get(args[-1]), info.batch_size, values, mapped)
        return _one_or_all(results), _one_or_all([0] * len(results))

    def _folded(self, variant: Variant, size: int, values: dict[str, Any], mapped: Mapping[str, Any]) -> list[Any]:
        for name in self.batched:
            value = mapped[name] if name in mapped else values[name].expand(size, *values[name].shape)
            values[name] = value if "dim" in values else value.flatten(0, 1)
        if "dim" in values:  # any dimension but that one is a batch
            return [self(variant, *(values | {"dim": values["dim"] + 1}).values())]
        if len(values.get("size", ())) == 4:  # the whole of the result's shape
            values["size"] = [size * values["size"][0], *values["size"][1:]]
        results = self(variant, *values.values())
        results = results if isinstance(results, tuple) else (results,)
        return [result.unflatten(0, (size, result.shape[0] // size)) for result in results]

    def _looped(self, variant: Variant, size: int, values: dict[str, Any], mapped: Mapping[str, Any]) -> list[Any]:
        each = [
            self(variant, *(values | {name: value[i] for name, value in mapped.items()}).values()) for i in range(size)
        ]
        return [torch.stack(result) for result in (zip(*each, strict=True) if len(self.results) > 1 else [each])]


class Call:
    """An op called with some arguments: what its gradients need to know.

    arguments: by name, of tensors the shapes alone.
    """

    def __init__(self, op: Op, variant: Variant, args: Sequence[Any]) -> None:
        self.op, self.variant = op, variant
        self.arguments = {name: getattr(arg, "shape", arg) for name, arg in zip(op.arguments, args, strict=True)}

    def save(self, ctx: Any, tensors: Sequence[Any], results: Sequence[Any], returned: Sequence[Any]) -> None:
        """Keep what the gradients will read."""
        values = (*tensors, *results)
        ctx.call = self
        ctx.save_for_backward(*[values[index] for index in self.op.saved])
        if len(returned) > 1:
            ctx.mark_non_differentiable(*returned[1:])

    def backward(self, saved: Sequence[Any], grad: torch.Tensor, needs: Sequence[bool]) -> list[Any]:
        """Return the gradient of every argument that needs one, None for the others.

        Raises RuntimeError where the op has no formula for it (a third derivative, say).
        """
        op = self.op
        values = self.values() | dict(zip(op.saves, saved, strict=True)) | {"g": grad}
        if op.through is not None:
            values["g"] = op.through(values)
        formulas = op.gradients | op.second if torch.is_grad_enabled() else op.gradients
        return [
            self._gradient(formulas, name, values) if needed else None
            for name, needed in zip(op.arguments, needs, strict=False)
        ]

    def _gradient(self, formulas: Mapping[str, Any], name: str, values: dict[str, Any]) -> torch.Tensor:
        if name not in formulas:
            raise RuntimeError(f"jitconv::{self.op.name} has no gradient with respect to {name}")
        formula = formulas[name]
        return formula(values) if isinstance(formula, Step) else formula(**values)

    def values(self) -> dict[str, Any]:
        """Return what formulas may name, but for tensors."""
        shapes = {f"{name}.shape": self.arguments[name] for name in self.op.arguments[: self.op.tensors]}
        return {**self.arguments, **shapes, "variant": self.variant}


class Bound(Call):
    """A call bound to the shapes of its tensors, and so to a kernel: call it with such tensors.

    They are no longer checked. All that follows from their shapes is worked out here, once.
    wanted: how many of the op's results are returned; a last one that is not, and that no gradient needs, is not kept.
    arrays: the tensors are somebody's NumPy arrays, and kernels that take tensors as they come get arrays too.
    """

    def __init__(
        self, op: Op, variant: Variant, args: Sequence[Any], wanted: int | None = None, arrays: bool = False
    ) -> None:
        super().__init__(op, variant, args)
        tensors, names, shapes = args[: op.tensors], op.arguments[: op.tensors], [*map(tuple, op.shapes(*args))]
        first, constants = args[0], args[op.tensors : op.kernel_arguments]
        self.wanted = len(shapes) if wanted is None else wanted
        self.constants = [tuple(c) if isinstance(c, list) else c for c in constants]
        self.absent = {i: self._filled(names[i], args) for i, tensor in enumerate(tensors) if tensor is None}
        given = [self.absent.get(i, tensor) for i, tensor in enumerate(tensors)]
        self.steps: dict[str, tuple[Bound, list[int | None]]] = {}

        self.prototypes = [
            first.new_empty((), dtype=torch.int64 if name == "indices" else None).expand(shape)
            for name, shape in zip(op.results, shapes, strict=True)
        ]
        self.seen = [
            (op.seen(name, tuple(tensor.shape), self.arguments), numpy_dtype(tensor.dtype))
            for name, tensor in zip((*names, *op.results), (*given, *self.prototypes), strict=True)
        ]
        self.kernel = None if all(0 in shape for shape in shapes) else self._chosen_kernel()
        self.packs: dict[int, Any] = getattr(self.kernel, "packs", {})
        self.arrays = arrays
        self.by_address = first.is_cpu and (arrays or not variant.tensors)
        self.plain = not self.by_address or all(map(_is_plain, given))
        self.large = first.is_cpu and max(map(math.prod, shapes)) * first.itemsize >= LARGE
        self.memory = [(s, d, memory_of(math.prod(s) * d.itemsize)) for s, d in self.seen]
        self.leaves_out = self.wanted < len(shapes) and getattr(variant.ops[op.name], "leaves_out", False)
        self.nothing = np.empty((0,) * len(shapes[-1]), self.seen[-1][1])

    def _filled(self, name: str, args: Sequence[Any]) -> Any:
        """What stands for a tensor that is None."""
        value, length = self.op.fills[name]
        return args[0].new_full((length(*args),), value)

    def _chosen_kernel(self) -> Any:
        kernel: Any = self.variant.ops[self.op.name]
        if hasattr(kernel, "bind"):
            kernel = kernel.bind(tuple(self.seen), tuple(self.constants))
        small = sum(math.prod(shape) for shape, _ in self.seen) <= SMALL
        return getattr(kernel, "alone", kernel) if small else kernel

    def __call__(self, *tensors: Any) -> Any:
        """Return the result, or the tuple of results, with its gradient if somebody may ask for it."""
        if (torch.is_grad_enabled() and any_requires_grad(*tensors)) or in_forward_mode():
            return _apply(self, *tensors)
        outs = self.run(tensors, self.leaves_out)
        return outs[0] if self.wanted == 1 else tuple(outs[: self.wanted])

    def run(self, tensors: Sequence[Any], leave_out: bool = False) -> list[Any]:
        """Return all results, without a gradient; the last one is not computed with `leave_out`."""
        outs = [torch.empty_like(prototype) for prototype in (self.prototypes[:-1] if leave_out else self.prototypes)]
        if self.large:
            for out in outs:
                prefer_huge_pages(out)
        if self.absent:
            tensors = [self.absent.get(i, tensor) for i, tensor in enumerate(tensors)]
        if not self.plain:
            tensors = [tensor if _is_plain(tensor) else tensor.resolve_neg().contiguous() for tensor in tensors]
        if self.by_address:
            arrays = [  # a third of Tensor.numpy()'s time
                np.ndarray(shape, dtype, memory_at(tensor.data_ptr()))
                for tensor, (shape, dtype, memory_at) in zip((*tensors, *outs), self.memory)  # noqa: B905 (0.2 µs)
            ]
        else:
            arrays = [tensor.reshape(shape) for tensor, (shape, _) in zip((*tensors, *outs), self.seen)]  # noqa: B905
        if self.packs:
            for place, pack in self.packs.items():
                # An array's tensor is new at each call: there is nothing to keep it by.
                arrays[place] = pack(arrays[place]) if self.arrays else packed(tensors[place], arrays[place], pack)
        if leave_out:
            arrays.append(self.nothing)
        count = self.op.tensors
        if self.op.check is not None:
            self.op.check(*arrays[:count], *self.constants)
        if self.kernel is not None:
            self.kernel(*arrays[:count], *self.constants, *arrays[count:])
        return outs

    def backward(self, saved: Sequence[Any], grad: torch.Tensor, needs: Sequence[bool]) -> list[Any]:
        """Return the gradient of every tensor that needs one, None for the others; each op on the way is bound once."""
        op, pool = self.op, (grad, *saved)
        if torch.is_grad_enabled() or is_observed() or any(map(_is_special, pool)):
            return super().backward(saved, grad, needs)
        if op.through is not None:
            pool = (self._step("g", op.through, pool), *saved)
        return [
            self._step(name, op.gradients.get(name), pool) if needed else None
            for name, needed in zip(op.arguments, needs, strict=False)
        ]

    def _step(self, name: str, step: Any, pool: tuple[Any, ...]) -> Any:
        """One gradient from `pool`: the gradient of the result, and the saved tensors."""
        if name not in self.steps:
            names = ("g", *self.op.saves)
            values = self.values() | dict(zip(names, pool, strict=True))
            if not isinstance(step, Step):
                return self._gradient(self.op.gradients, name, values)
            bound = Bound(_ops[step.op], self.variant, step.resolve(values))
            bound.plain = not bound.by_address  # others may have other strides
            sources = step.arguments[: bound.op.tensors]
            self.steps[name] = bound, [names.index(source) if source in names else None for source in sources]
        bound, places = self.steps[name]
        return bound.run([None if place is None else pool[place] for place in places])[0]


class _Differentiable(torch.autograd.Function):
    """The autograd of every call in eager mode, at half the cost of the operator's own."""

    @staticmethod
    def forward(ctx: Any, call: Bound, *tensors: Any) -> Any:
        outs = call.run(tensors)
        call.save(ctx, tensors, outs, outs[: call.wanted])
        return outs[0] if call.wanted == 1 else tuple(outs[: call.wanted])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, *ctx.call.backward(ctx.saved_tensors, grads[0], ctx.needs_input_grad[1:])


_apply = apply_of(_Differentiable)  # `is_observed` has made the checks that it leaves out


class _Transformed(torch.autograd.Function):
    """The autograd of every op under torch.func, which wants the context set up apart, and its vmap."""

    @staticmethod
    def forward(op: Op, *args: Any) -> Any:
        return op.torch_op(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        inputs[0].set_up(ctx, inputs[1:], output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, *ctx.call.backward(ctx.saved_tensors, grads[0], ctx.needs_input_grad[1:-1]), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, op: Op, *args: Any) -> Any:
        return op.vmap(info, in_dims[1:], *args)


def is_observed() -> bool:
    """Whether somebody wants to see every operator: a compiler, a transform, a mode, a trace or a profiler."""
    return (
        is_compiling() or transform() is not None or dispatch_modes() > 0 or tracing_state() is not None or profiling()
    )


def _is_special(value: Any) -> bool:
    """Whether a value is a tensor that only torch's dispatcher knows how to compute with."""
    return isinstance(value, torch.Tensor) and (
        type(value) not in PLAIN or value.is_meta or is_legacy_batchedtensor(value)
    )


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a kernel may take a tensor as it lies in memory."""
    return tensor.is_contiguous() and not tensor.is_neg()


def _one_or_all(results: Sequence[Any]) -> Any:
    return results[0] if len(results) == 1 else tuple(results)


@functools.cache
def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    return torch.empty(0, dtype=dtype).numpy().dtype
