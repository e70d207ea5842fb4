"""Ops under torch.func's transforms: gradients of gradients of many, and torch.vmap over one more dimension."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from jitconv import variants
from jitconv.compat import pytree
from jitconv.variants import Variant

if TYPE_CHECKING:
    from jitconv.op import Op


class Transformed(torch.autograd.Function):
    """The autograd of every op under torch.func, which wants the context set up apart, and its vmap."""

    @staticmethod
    def forward(op: "Op", *args: Any) -> Any:
        return op.torch_op(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        inputs[0].set_up(ctx, inputs[1:], output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, *ctx.call.backward(ctx.saved_tensors, grads[0], ctx.needs_input_grad[1:-1]), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, op: "Op", *args: Any) -> Any:
        return vmap(op, info.batch_size, in_dims[1:], args), 0


def vmap(op: "Op", size: int, in_dims: Sequence[Any], args: Sequence[Any]) -> Any:
    """Run an op `size` times: once with a larger batch if that may be, else in a loop; results have it as dimension 0.

    in_dims: the dimension of each argument that is mapped over, None for the others. args: the op's, the variant last.
    """
    variant, values = variants.get(args[-1]), dict(zip(op.arguments, args, strict=False))
    mapped = {
        name: value.movedim(dim, 0)
        for (name, value), dim in zip(values.items(), in_dims, strict=False)
        if isinstance(dim, int)
    }
    run = _in_the_batch if mapped.keys() <= set(op.batched.split()) else _one_by_one
    return run(op, variant, size, values, mapped)


def _in_the_batch(
    op: "Op", variant: Variant, size: int, values: dict[str, Any], mapped: Mapping[str, torch.Tensor]
) -> Any:
    first, *_ = names = op.batched.split()
    merged = "dim" not in values and values[first].ndim - (first in mapped) >= op.batch_rank
    for name in names:
        value = mapped[name] if name in mapped else values[name].expand(size, *values[name].shape)
        values[name] = value.flatten(0, 1) if merged else value
    if "dim" in values:  # any dimension but that one is a batch
        values["dim"] += 1
    if len(values.get("size", ())) > 2:  # the whole of the result's shape
        batch, *image = values["size"]
        values["size"] = [size * batch, *image] if merged else [size, batch, *image]
    results = op(variant, *values.values())
    if not merged:
        return results
    return pytree.tree_map(lambda result: result.unflatten(0, (size, result.shape[0] // size)), results)


def _one_by_one(
    op: "Op", variant: Variant, size: int, values: dict[str, Any], mapped: Mapping[str, torch.Tensor]
) -> Any:
    calls = [values | {name: value[i] for name, value in mapped.items()} for i in range(size)]
    each = [op(variant, *call.values()) for call in calls]
    return pytree.tree_map(lambda *results: torch.stack(results), *each)
