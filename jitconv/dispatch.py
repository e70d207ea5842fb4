"""How an op reaches its kernel: allocate the results, hand the arrays to the variant, and tell torch the gradients.

An `Op` is declared once, in ops.py. It then takes NumPy arrays and, as a torch.library operator with shapes and
gradients of its own, tensors: eager, compiled, exported or on the meta device.
"""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch._C import _any_requires_grad, _get_tracing_state, _len_torch_dispatch_stack
from torch._C._autograd import _profiler_enabled
from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack
from torch.autograd import forward_ad

from jitconv import variants
from jitconv.memory import keep_freed_memory, prefer_huge_pages
from jitconv.variants import Variant

_library = torch.library.Library("jitconv", "DEF")
keep_freed_memory()

Shape = tuple[int, ...]
PLAIN = (torch.Tensor, torch.nn.Parameter)


class Op:
    """One operation of the study, whatever the variant.

    schema: torch's: the kernel's arguments, perhaps `size` (which only the allocation needs), `variant`; the first
    result alone is differentiable, and a result called `indices` holds integers.
    shapes: from the arguments to the shape of every result.
    gradients: for a differentiable argument, from what was saved and the result's gradient to the argument's.
    saves: the names of the arguments and results that the gradients read.
    batched: the names of the arguments whose first dimension is the batch, if it is every result's too.
    flat: elementwise: kernels see arrays of any shape as (N,).
    check: looks at values before the kernel does, where they are on the CPU.
    """

    def __init__(
        self,
        schema: str,
        shapes: Callable[..., list[Shape]],
        gradients: Mapping[str, Callable[[Any, Any], Any]] | None = None,
        saves: str = "",
        batched: str = "",
        flat: bool = False,
        check: Callable[..., None] | None = None,
    ) -> None:
        self.name = schema.partition("(")[0]
        _library.define(schema)
        self.torch_op = getattr(torch.ops.jitconv, self.name).default
        self.arguments = [argument.name for argument in self.torch_op._schema.arguments[:-1]]
        self.results = [result.name or "result" for result in self.torch_op._schema.returns]
        self.kernel_arguments = len(self.arguments) - ("size" in self.arguments)
        self.shapes, self.gradients, self.flat, self.check = shapes, dict(gradients or {}), flat, check
        self.saves, self.batched = saves.split(), batched.split()
        self.saved = [(*self.arguments, *self.results).index(name) for name in self.saves]

        for device in ("CPU", "CUDA"):
            _library.impl(self.name, self._on_tensors, device)
        torch.library.register_fake(self.torch_op, self._on_fakes, lib=_library)
        torch.library.register_autograd(
            self.torch_op,
            lambda ctx, *grads: (*self.backward(ctx, grads[0], ctx.needs_input_grad[:-1]), None),
            setup_context=lambda ctx, inputs, output: self.save(ctx, inputs, output),
            lib=_library,
        )

    def __call__(self, variant: Variant, *args: Any) -> Any:
        """Return the result, or the tuple of results, of the variant's kernel on NumPy arrays or on tensors."""
        if isinstance(args[0], np.ndarray):
            return self._on_arrays(variant, args)
        if _observed(args):
            return self._dispatched(*args, variant.name)
        if (torch.is_grad_enabled() and _any_requires_grad(*args)) or forward_ad._current_level >= 0:
            return _apply_eagerly(self, *args, variant.name)
        return self._on_tensors(*args, variant.name)

    def _dispatched(self, *args: Any) -> Any:
        if not torch.compiler.is_compiling():
            if _get_tracing_state() is not None:
                raise NotImplementedError("torch.jit.trace cannot follow jitconv's layers: use torch.export")
            if peek_interpreter_stack() is not None:
                return _Transformed.apply(self, *args)
        return self.torch_op(*args)

    def _on_arrays(self, variant: Variant, args: Sequence[Any]) -> Any:
        outs = [
            np.empty(shape, np.int64 if name == "indices" else args[0].dtype)
            for name, shape in zip(self.results, self.shapes(*args), strict=True)
        ]
        self._fill(variant, [_sound(a) for a in args], outs)
        return _one_or_all(outs)

    def _on_fakes(self, *args: Any) -> Any:
        return _one_or_all(self._empty(args))

    def _empty(self, args: Sequence[Any]) -> list[torch.Tensor]:
        new = args[0].new_empty
        return [
            new(shape, dtype=torch.int64) if name == "indices" else new(shape)
            for name, shape in zip(self.results, self.shapes(*args[:-1]), strict=True)
        ]

    def _on_tensors(self, *args: Any) -> Any:
        variant = variants.get(args[-1])
        outs = [prefer_huge_pages(out) for out in self._empty(args)]
        if variant.tensors:
            self._fill(variant, [_kernel_argument(a) for a in args], outs)
        elif args[0].is_cpu:
            self._fill(variant, [_array(a) for a in args], [out.numpy() for out in outs])
        else:
            contiguous = [a.contiguous() if isinstance(a, torch.Tensor) else _kernel_argument(a) for a in args]
            self._fill(variant, contiguous, outs)
        return _one_or_all(outs)

    def _fill(self, variant: Variant, args: Sequence[Any], outs: Sequence[Any]) -> None:
        given = args[: self.kernel_arguments]
        if self.flat:
            given, outs = [a.reshape(-1) for a in given], [out.reshape(-1) for out in outs]
        if self.check is not None:
            self.check(*given)
        if 0 in outs[0].shape and all(0 in out.shape for out in outs):
            return
        variant.ops[self.name](*given, *outs)

    def save(self, ctx: Any, args: Sequence[Any], results: Any) -> None:
        """Keep what the gradients will read; `args` end with the variant's name."""
        several = isinstance(results, tuple)
        values = (*args[:-1], *results) if several else (*args[:-1], results)
        ctx.save_for_backward(*[values[index] for index in self.saved])
        ctx.variant = args[-1]
        ctx.kept = [value.shape if isinstance(value, torch.Tensor) else value for value in values]
        if several:
            ctx.mark_non_differentiable(*results[1:])

    def backward(self, ctx: Any, grad: torch.Tensor, needs: Sequence[bool]) -> list[Any]:
        """Return the gradient of every argument that needs one, None for the others.

        Raises RuntimeError where the op has no formula for it (a second derivative, say).
        """
        kept = dict(zip((*self.arguments, *self.results), ctx.kept, strict=True))
        tensors = dict(zip(self.saves, ctx.saved_tensors, strict=True))
        saved = SimpleNamespace(**{**kept, **tensors}, shapes=kept, variant=variants.get(ctx.variant))
        grads = []
        for name, needed in zip(self.arguments, needs, strict=True):
            if needed and name not in self.gradients:
                raise RuntimeError(f"jitconv::{self.name} has no gradient with respect to {name}")
            grads.append(self.gradients[name](saved, grad) if needed else None)
        return grads

    def vmap(self, info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Any, Any]:
        """Run over one more dimension, as torch.vmap wants it: folded into the batch if that may be, else in a loop."""
        *values, name = args
        mapped = {
            argument: value.movedim(dim, 0)
            for argument, value, dim in zip(self.arguments, values, in_dims, strict=False)
            if isinstance(dim, int)
        }
        run = self._folded if mapped.keys() <= set(self.batched) else self._looped
        results = run(variants.get(name), info.batch_size, dict(zip(self.arguments, values, strict=True)), mapped)
        return _one_or_all(results), _one_or_all([0] * len(results))

    def _folded(self, variant: Variant, size: int, values: dict[str, Any], mapped: Mapping[str, Any]) -> list[Any]:
        for name in self.batched:
            value = mapped[name] if name in mapped else values[name].expand(size, *values[name].shape)
            values[name] = value.flatten(0, 1)
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


class _Eager(torch.autograd.Function):
    """The autograd of every op in eager mode, at half the cost of the operator's own."""

    @staticmethod
    def forward(ctx: Any, op: Op, *args: Any) -> Any:
        ctx.op = op
        results = op._on_tensors(*args)
        op.save(ctx, args, results)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, *ctx.op.backward(ctx, grads[0], ctx.needs_input_grad[1:-1]), None


# Function.apply without its checks for transforms of torch.func, which are a third of its time; `_observed` made them.
_apply_eagerly = super(torch.autograd.Function, _Eager).apply


class _Transformed(torch.autograd.Function):
    """The autograd of every op under torch.func, which wants the context set up apart, and its vmap."""

    @staticmethod
    def forward(op: Op, *args: Any) -> Any:
        return op.torch_op(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.op = inputs[0]
        ctx.op.save(ctx, inputs[1:], output)

    backward = _Eager.backward

    @staticmethod
    def vmap(info: Any, in_dims: Any, op: Op, *args: Any) -> Any:
        return op.vmap(info, in_dims[1:], *args)


def _observed(args: Sequence[Any]) -> bool:
    """Whether somebody wants to see the operator: a compiler, a transform, a mode, a profiler or a kind of tensor."""
    if (
        torch.compiler.is_compiling()
        or peek_interpreter_stack() is not None
        or _len_torch_dispatch_stack() > 0
        or _get_tracing_state() is not None
        or _profiler_enabled()
    ):
        return True
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    return any([type(a) not in PLAIN or a.is_meta or is_legacy_batchedtensor(a) for a in tensors])  # noqa: C419 faster


def _array(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return _kernel_argument(value)
    return (value if value.is_contiguous() else value.contiguous()).detach().numpy()


def _kernel_argument(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _sound(value: Any) -> Any:
    """An array as kernels may take it: C-contiguous, aligned and writeable."""
    return np.require(value, requirements=["C", "A", "W"]) if isinstance(value, np.ndarray) else value


def _one_or_all(outs: list[Any]) -> Any:
    return outs[0] if len(outs) == 1 else tuple(outs)
