"""How an op reaches its kernel, and how torch learns what it is: an operator with shapes and gradients of its own.

An `Op` is declared once, in ops.py. It then takes NumPy arrays and tensors: eager (calls.py), compiled, exported or on
the meta device.
"""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch._C import _get_tracing_state
from torch._C._functorch import peek_interpreter_stack

from jitconv import variants
from jitconv.calls import Call, observed, one_or_all, record, remember, signature, special
from jitconv.variants import Kernel, Variant

_library = torch.library.Library("jitconv", "DEF")

Shape = tuple[int, ...]
ONLY_SHAPES = ("size", "dim")  # arguments that decide shapes, and that kernels do not get


def as_it_is(name: str, shape: Shape, kept: Mapping[str, Any]) -> Shape:
    return shape


class Op:
    """One operation of the study, whatever the variant.

    schema: torch's: the tensors, the kernel's other arguments, perhaps `size` or `dim` (which only shapes depend on),
    `variant`; the first result alone is differentiable, and a result called `indices` holds integers.
    shapes: from the arguments to the shape of every result.
    gradients: for a differentiable argument, from what was saved and the result's gradient to the argument's.
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
        gradients: Mapping[str, Callable[[Any, Any], Any]] | None = None,
        saves: str = "",
        batched: str = "",
        seen: Callable[[str, Shape, Mapping[str, Any]], Shape] = as_it_is,
        fills: Mapping[str, tuple[float, Callable[..., int]]] | None = None,
        check: Callable[..., None] | None = None,
    ) -> None:
        self.name = schema.partition("(")[0]
        _library.define(schema)
        self.torch_op = getattr(torch.ops.jitconv, self.name).default
        arguments = self.torch_op._schema.arguments[:-1]
        self.arguments = [argument.name for argument in arguments]
        self.results = [result.name or "result" for result in self.torch_op._schema.returns]
        self.tensors = sum("Tensor" in str(argument.type) for argument in arguments)
        self.kernel_arguments = sum(name not in ONLY_SHAPES for name in self.arguments)
        self.shapes, self.gradients, self.seen, self.check = shapes, dict(gradients or {}), seen, check
        self.saves, self.batched, self.fills = saves.split(), batched.split(), dict(fills or {})
        self.saved = [(*self.arguments[: self.tensors], *self.results).index(name) for name in self.saves]

        for device in ("CPU", "CUDA"):
            _library.impl(self.name, self._on_tensors, device)
        torch.library.register_fake(self.torch_op, self._on_fakes, lib=_library)
        torch.library.register_autograd(
            self.torch_op,
            lambda ctx, *grads: (
                *self.backward(ctx.call, ctx.saved_tensors, grads[0], ctx.needs_input_grad[:-1]),
                None,
            ),
            setup_context=self.set_up,
            lib=_library,
        )

    def __call__(self, variant: Variant, *args: Any) -> Any:
        """Return the result, or the tuple of results, of the variant's kernel on NumPy arrays or on tensors."""
        if isinstance(args[0], np.ndarray):
            return self._on_arrays(variant, args)
        if observed():
            return self._dispatched(*args, variant.name)
        parts = signature(args)
        if parts is None and any(map(special, args)):
            return self._dispatched(*args, variant.name)
        call = None if parts is None else variant.calls.get((self, *parts))
        if call is None:
            call = Call(self, variant, args)
            if parts is not None:
                remember(variant, (self, *parts), call)
        tensors = args[: self.tensors]
        result = call(*tensors)
        record(call, tensors, result)
        return result

    def _dispatched(self, *args: Any) -> Any:
        if not torch.compiler.is_compiling():
            if _get_tracing_state() is not None:
                raise NotImplementedError("torch.jit.trace cannot follow jitconv's layers: use torch.export")
            if peek_interpreter_stack() is not None:
                return _Transformed.apply(self, *args)
        return self.torch_op(*args)

    def _on_arrays(self, variant: Variant, args: Sequence[Any]) -> Any:
        dtype, shapes = args[0].dtype, self.shapes(*args)
        names = (*self.arguments[: self.tensors], *self.results)
        outs = [
            np.empty(shape, np.int64 if name == "indices" else dtype)
            for name, shape in zip(self.results, shapes, strict=True)
        ]
        given = [
            np.full(*self.absent(name, args), dtype) if array is None else _sound(array)
            for name, array in zip(self.arguments[: self.tensors], args, strict=False)
        ]
        kept = self.kept(args)
        views = [a.reshape(self.seen(name, a.shape, kept)) for name, a in zip(names, (*given, *outs), strict=True)]
        kernel = None if all(0 in shape for shape in shapes) else variant.ops[self.name]
        self.fill(kernel, views, args[self.tensors : self.kernel_arguments])
        return one_or_all(outs)

    def fill(self, kernel: Kernel | None, arrays: Sequence[Any], constants: Sequence[Any]) -> None:
        """Run a kernel (None: there is nothing to fill) on arrays as it sees them, the op's and then the results'."""
        if self.check is not None:
            self.check(*arrays[: self.tensors], *constants)
        if kernel is not None:
            arguments = [*arrays]
            arguments[self.tensors : self.tensors] = constants
            kernel(*arguments)

    def kept(self, args: Sequence[Any]) -> dict[str, Any]:
        """Return the arguments by name, of arrays and tensors the shapes alone."""
        return {name: getattr(arg, "shape", arg) for name, arg in zip(self.arguments, args, strict=True)}

    def absent(self, name: str, args: Sequence[Any]) -> tuple[tuple[int], float]:
        """Return shape and value of what stands for the argument `name` where it is None."""
        value, length = self.fills[name]
        return (length(*args),), value

    def _on_fakes(self, *args: Any) -> Any:
        outs = [
            args[0].new_empty(shape, dtype=torch.int64 if name == "indices" else None)
            for name, shape in zip(self.results, self.shapes(*args[:-1]), strict=True)
        ]
        return one_or_all(outs)

    def _on_tensors(self, *args: Any) -> Any:
        return one_or_all(Call(self, variants.get(args[-1]), args[:-1]).run(args[: self.tensors]))

    def save(self, ctx: Any, call: Any, tensors: Sequence[Any], results: Sequence[Any]) -> None:
        """Keep what the gradients will read: the tensors in `saves`, and call.variant and call.kept."""
        ctx.call = call
        values = (*tensors, *results)
        ctx.save_for_backward(*[values[index] for index in self.saved])
        if not call.single:
            ctx.mark_non_differentiable(*results[1:])

    def set_up(self, ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        """Save, as torch.library and torch.func want it done: apart from the forward, from all of its inputs."""
        single = len(self.results) == 1
        call = SimpleNamespace(op=self, variant=variants.get(inputs[-1]), kept=self.kept(inputs[:-1]), single=single)
        self.save(ctx, call, inputs[: self.tensors], (output,) if single else output)

    def backward(self, call: Any, saved: Sequence[Any], grad: torch.Tensor, needs: Sequence[bool]) -> list[Any]:
        """Return the gradient of every argument that needs one, None for the others.

        Raises RuntimeError where the op has no formula for it (a second derivative, say).
        """
        tensors = dict(zip(self.saves, saved, strict=True))
        values = SimpleNamespace(**{**call.kept, **tensors}, shapes=call.kept, variant=call.variant)
        grads = []
        for name, needed in zip(self.arguments, needs, strict=False):
            if needed and name not in self.gradients:
                raise RuntimeError(f"jitconv::{self.name} has no gradient with respect to {name}")
            grads.append(self.gradients[name](values, grad) if needed else None)
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
        return one_or_all(results), one_or_all([0] * len(results))

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
        return None, *ctx.call.op.backward(ctx.call, ctx.saved_tensors, grads[0], ctx.needs_input_grad[1:-1]), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, op: Op, *args: Any) -> Any:
        return op.vmap(info, in_dims[1:], *args)


def _sound(value: Any) -> Any:
    """An array as kernels may take it: C-contiguous, aligned and writeable."""
    return np.require(value, requirements=["C", "A", "W"])
