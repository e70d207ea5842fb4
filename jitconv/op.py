"""What an Op is, and the one way from a call to a kernel: bind once, run often.

ops.py declares every op. An Op takes tensors: eagerly (`Bound`), and as an operator of torch where somebody wants to
see it: a compiler, torch.export, torch.func (vmap.py), a dispatch mode, the meta device. Kernels of the CPU get NumPy
arrays.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import torch
from torch.compiler import is_compiling

from jitconv import variants
from jitconv.compat import (
    any_requires_grad,
    apply_of,
    in_forward_mode,
    is_observed,
    is_special,
    schema_of,
    tracing_state,
    transform,
)
from jitconv.memory import empty_like, memory_of
from jitconv.packing import packed
from jitconv.variants import Variant
from jitconv.vmap import Transformed

Shape = tuple[int, ...]
Formula = Callable[..., torch.Tensor]

ONLY_SHAPES = ("size", "dim")  # arguments that decide shapes, and that kernels do not get
SMALL = 2048  # numbers in all arrays of a call; a second core would save less than the 6 µs that it takes to start
_library = torch.library.Library("jitconv", "DEF")
_ops: dict[str, "Op"] = {}


class Step:
    """A gradient as data: an op, and where each of its arguments comes from.

    A name stands for a saved tensor, a constant, the shape of an argument ("input.shape") or the gradient of the
    result ("g"); a function computes an argument from all of these by name.
    """

    def __init__(self, op: str, *arguments: str | Callable[[Mapping[str, Any]], Any] | None) -> None:
        self.op, self.arguments = op, arguments

    def resolve(self, values: Mapping[str, Any]) -> list[Any]:
        return [
            values[source] if isinstance(source, str) else source(values) if source else None
            for source in self.arguments
        ]

    def __call__(self, **values: Any) -> torch.Tensor:
        return _ops[self.op](values["variant"], *self.resolve(values))


@dataclass(eq=False)
class Op:
    """One operation of the study, whatever the variant.

    schema: torch's: the tensors, the kernel's other arguments, perhaps `size` or `dim` (which only shapes depend on),
    `variant`; the first result alone is differentiable, and a result called `indices` holds integers.
    shapes: from the arguments to the shape of every result.
    gradients: for a differentiable argument a Step, or a formula in torch: (g, **values by name) → gradient.
    epilogue: of an op that ends in another one, the Step from the result's gradient to that of `gradients`' "g".
    second_order: formulas that take the place of `gradients` where these are to be differentiated once more.
    saves: the names of the arguments and results that the gradients read.
    batched: the names of the arguments whose first dimension is the batch, if it is every result's too; batch_rank: how
    many dimensions the first of them has then at least.
    kernel_shape: the shape in which kernels get an array, from its name, its shape and the constants by name.
    defaults: for a tensor that may be None, what kernels get instead, from the arguments.
    check: looks at values before the kernel does, where they are on the CPU.
    """

    schema: str
    shapes: Callable[..., list[Shape]]
    gradients: Mapping[str, Step | Formula] = field(default_factory=dict)
    _: KW_ONLY
    epilogue: Step | None = None
    second_order: Mapping[str, Formula] = field(default_factory=dict)
    saves: str = ""
    batched: str = ""
    batch_rank: int = 1
    kernel_shape: Callable[[str, Shape, Mapping[str, Any]], Shape] = lambda name, shape, constants: shape
    defaults: Mapping[str, Formula] = field(default_factory=dict)
    check: Callable[..., None] | None = None

    def __post_init__(self) -> None:
        self.name = self.schema.partition("(")[0]
        _library.define(self.schema)
        self.torch_op = getattr(torch.ops.jitconv, self.name).default
        arguments = schema_of(self.torch_op).arguments[:-1]
        self.arguments = [argument.name for argument in arguments]
        self.results = [result.name or "result" for result in schema_of(self.torch_op).returns]
        self.dtypes = [torch.int64 if name == "indices" else None for name in self.results]  # None: the first tensor's
        self.tensor_count = sum("Tensor" in str(argument.type) for argument in arguments)
        self.kernel_argument_count = sum(name not in ONLY_SHAPES for name in self.arguments)
        self.array_names = [*self.arguments[: self.tensor_count], *self.results]
        self.saved_names = self.saves.split()
        self.saved_indices = [*map(self.array_names.index, self.saved_names)]
        _ops[self.name] = self

        for device in ("CPU", "CUDA"):
            _library.impl(self.name, self._on_tensors, device)
        torch.library.register_fake(self.torch_op, self._on_fakes, lib=_library)
        torch.library.register_autograd(
            self.torch_op,
            lambda ctx, grad, *_: (*ctx.call.backward(ctx.saved_tensors, grad, ctx.needs_input_grad), None),
            setup_context=self.set_up,
            lib=_library,
        )

    def __call__(self, variant: Variant, *args: Any) -> Any:
        """Return the result, or the tuple of results, of the variant's kernel."""
        if is_observed() or any(map(is_special, args)):
            if not is_compiling():
                if tracing_state() is not None:
                    raise NotImplementedError("torch.jit.trace cannot follow jitconv's layers: use torch.export")
                if transform() is not None:
                    return Transformed.apply(self, *args, variant.name)
            return self.torch_op(*args, variant.name)
        return Bound(self, variant, args)(*args[: self.tensor_count])

    def _on_tensors(self, *args: Any) -> Any:
        return one_or_all(Bound(self, variants.get(args[-1]), args[:-1]).run(args[: self.tensor_count]))

    def _on_fakes(self, *args: Any) -> Any:
        shapes = self.shapes(*args[:-1])
        return one_or_all([args[0].new_empty(s, dtype=dtype) for s, dtype in zip(shapes, self.dtypes, strict=True)])

    def set_up(self, ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        """Save, as torch.library and torch.func want it done: apart from the forward, from all of its inputs."""
        results = output if isinstance(output, tuple) else (output,)
        Call(self, variants.get(inputs[-1]), inputs[:-1]).save(ctx, inputs[: self.tensor_count], results, len(results))


class Call:
    """An op called with some arguments: what its gradients need to know.

    constants: by name; the shape of the tensor `input` is "input.shape".
    gradient_steps: the ops of the gradients, once they are bound, and the names of their tensors.
    """

    def __init__(self, op: Op, variant: Variant, args: Sequence[Any]) -> None:
        self.op, self.variant = op, variant
        self.constants = {
            f"{name}.shape" if isinstance(arg, torch.Tensor) else name: getattr(arg, "shape", arg)
            for name, arg in zip(op.arguments, args, strict=True)
        }
        self.gradient_steps: dict[str, tuple[Bound, Sequence[Any]]] = {}

    def save(self, ctx: Any, tensors: Sequence[Any], results: Sequence[Any], returned: int) -> None:
        """Keep what the gradients will read; of the results that are returned the first is differentiable."""
        values = (*tensors, *results)
        ctx.call = self
        ctx.save_for_backward(*[values[index] for index in self.op.saved_indices])
        if returned > 1:
            ctx.mark_non_differentiable(*results[1:returned])

    def backward(self, saved: Sequence[Any], grad: torch.Tensor, needs: Sequence[bool]) -> list[Any]:
        """Return the gradient of every argument that needs one, None for the others.

        Raises RuntimeError where the op has no formula for it (a third derivative, say).
        """
        op, again = self.op, torch.is_grad_enabled()
        eager = not (again or is_observed() or any(map(is_special, (grad, *saved))))
        tensors = dict(zip(op.saved_names, saved), g=grad)  # noqa: B905 (0.1 µs)
        if op.epilogue is not None:
            tensors["g"] = self._gradient("g", op.epilogue, tensors, eager)
        formulas = {**op.gradients, **op.second_order} if again else op.gradients
        return [
            self._gradient(name, formulas.get(name), tensors, eager) if needed else None
            for name, needed in zip(op.arguments, needs, strict=False)
        ]

    def _gradient(self, name: str, formula: Any, tensors: dict[str, Any], eager: bool) -> Any:
        """One gradient from that of the result, "g", and the saved tensors."""
        if formula is None:
            raise RuntimeError(f"jitconv::{self.op.name} has no gradient with respect to {name}")
        if not (eager and name in self.gradient_steps):
            values = {**self.constants, **tensors, "variant": self.variant}
            if not (eager and isinstance(formula, Step)):
                return formula(**values)
            bound = Bound(_ops[formula.op], self.variant, formula.resolve(values))
            bound.contiguous = not bound.by_address  # others may have other strides
            self.gradient_steps[name] = bound, formula.arguments[: bound.op.tensor_count]
        bound, sources = self.gradient_steps[name]
        return bound.run([*map(tensors.get, sources)])[0]


class Bound(Call):
    """A call bound to the shapes of its tensors, and so to a kernel: call it with such tensors.

    They are no longer checked. All that follows from their shapes is worked out here, once.
    returned: how many of the op's results are returned; a last one that is not, and no gradient needs, is not computed
    if the kernel can do without. numpy: the tensors are somebody's NumPy arrays, and kernels that take tensors as they
    come get arrays too.
    """

    def __init__(
        self, op: Op, variant: Variant, args: Sequence[Any], returned: int | None = None, numpy: bool = False
    ) -> None:
        super().__init__(op, variant, args)
        tensors, first, results = args[: op.tensor_count], args[0], [*map(tuple, op.shapes(*args))]
        self.returned = len(results) if returned is None else returned
        self.skips_last = self.returned < len(results) and getattr(variant.ops[op.name], "skips_last", False)
        self.defaults = {i: op.defaults[op.arguments[i]](*args) for i, tensor in enumerate(tensors) if tensor is None}
        given = [self.defaults.get(i, tensor) for i, tensor in enumerate(tensors)]
        self.prototypes = [
            first.new_empty((), dtype=dtype).expand(shape) for dtype, shape in zip(op.dtypes, results, strict=True)
        ]
        array_types = [
            (op.kernel_shape(name, tuple(array.shape), self.constants), _numpy_dtype(array))
            for name, array in zip(op.array_names, (*given, *self.prototypes), strict=True)
        ]
        self.kernel_constants = [
            tuple(c) if isinstance(c, list) else c for c in args[op.tensor_count : op.kernel_argument_count]
        ]
        kernel: Any = variant.ops[op.name] if any(map(math.prod, results)) else lambda *nothing: None
        if hasattr(kernel, "bind"):
            kernel = kernel.bind(tuple(array_types), tuple(self.kernel_constants))
        small = sum(math.prod(shape) for shape, _ in array_types) <= SMALL
        self.kernel = getattr(kernel, "alone", kernel) if small else kernel
        self.packs: dict[int, Any] = getattr(self.kernel, "packs", {})
        self.by_address = first.is_cpu and (numpy or not variant.tensors)
        self.contiguous = not self.by_address or all(map(_is_contiguous, given))
        self.new = empty_like(max(self.prototypes, key=lambda tensor: tensor.nbytes))
        self.buffers = [(shape, dtype, memory_of(math.prod(shape) * dtype.itemsize)) for shape, dtype in array_types]
        self.empty = np.empty((0,) * len(results[-1]), array_types[-1][1])

    def __call__(self, *tensors: Any) -> Any:
        """Return the result, or the tuple of results, with its gradient if somebody may ask for it."""
        if (torch.is_grad_enabled() and any_requires_grad(*tensors)) or in_forward_mode():
            return _apply(self, *tensors)
        return one_or_all(self.run(tensors, self.skips_last)[: self.returned])

    def run(self, tensors: Sequence[Any], skip_last: bool = False) -> list[Any]:
        """Return all results, without a gradient; the last one is not computed with `skip_last`."""
        outs = [*map(self.new, self.prototypes[:-1] if skip_last else self.prototypes)]
        if self.defaults:
            tensors = [self.defaults.get(i, tensor) for i, tensor in enumerate(tensors)]
        if not self.contiguous:
            tensors = [t if _is_contiguous(t) else t.resolve_neg().contiguous() for t in tensors]
        if self.by_address:
            arrays = [  # a third of Tensor.numpy()'s time
                np.ndarray(shape, dtype, memory_at(tensor.data_ptr()))
                for tensor, (shape, dtype, memory_at) in zip((*tensors, *outs), self.buffers)  # noqa: B905 (0.2 µs)
            ]
        else:
            arrays = [t.reshape(shape) for t, (shape, _, _) in zip((*tensors, *outs), self.buffers)]  # noqa: B905
        for i, pack in self.packs.items():
            arrays[i] = packed(tensors[i], arrays[i], pack)
        if skip_last:
            arrays.append(self.empty)
        count = self.op.tensor_count
        if self.op.check is not None:
            self.op.check(*arrays[:count], *self.kernel_constants)
        self.kernel(*arrays[:count], *self.kernel_constants, *arrays[count:])
        return outs


class _Differentiable(torch.autograd.Function):
    """The autograd of every call in eager mode, at half the cost of the operator's own."""

    @staticmethod
    def forward(ctx: Any, call: Bound, *tensors: Any) -> Any:
        outs = call.run(tensors)
        call.save(ctx, tensors, outs, call.returned)
        return one_or_all(outs[: call.returned])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, *ctx.call.backward(ctx.saved_tensors, grads[0], ctx.needs_input_grad[1:])


_apply = apply_of(_Differentiable)  # `is_observed` has made the checks that it leaves out


def _numpy_dtype(tensor: torch.Tensor) -> np.dtype[Any]:
    return np.dtype(str(tensor.dtype).removeprefix("torch."))


def _is_contiguous(tensor: torch.Tensor) -> bool:
    """Whether a kernel may take a tensor as it lies in memory."""
    return tensor.is_contiguous() and not tensor.is_neg()


def one_or_all(results: Sequence[Any]) -> Any:
    """A single result as it is, several as a tuple."""
    return results[0] if len(results) == 1 else tuple(results)
