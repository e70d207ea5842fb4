"""`Plan`: a model as one call. Which program runs for which inputs, and what is checked at the door."""

import threading
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jitconv import packing, variants
from jitconv.compat import TENSOR_TYPES, pytree, transform
from jitconv.plan.capture import Captured, capture
from jitconv.plan.lower import Lowering
from jitconv.plan.program import Program
from jitconv.plan.rewrite import rewrite

FLOAT_DTYPES = (torch.float32, torch.float64)


def build(captured: Captured, variant: variants.Variant, off: Collection[str] = ()) -> Program:
    """Rewrite a captured graph and make it ready to run."""
    graph = captured.graph.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    static = {n for n, source in zip(placeholders, captured.sources, strict=True) if source.owner is not None}
    rewrite(graph, off)
    return Program(Lowering(graph, captured.sources, variant, static), captured.mutated)


class Plan:
    """A model's forward, ready for inputs like the example's: `plan(*inputs)` returns what `model(*inputs)` does.

    For inference: results have no gradient. Inputs are tensors or NumPy arrays (which give arrays), float32 or float64,
    on the CPU, of the example's shapes except for the batch, their first dimension: another batch is planned when it
    first comes. The model's mode (train or eval) is the one it had when it was planned. Weights are read at each call;
    a change that torch does not count (through `.data` or a NumPy view) is seen after `refresh()`.
    Any number of threads may call it; each has memory of its own. print(plan) shows the steps.
    """

    def __init__(self, model: nn.Module, example: tuple[Any, ...], variant: str | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not example:
            raise ValueError("example must be at least one input: plan(model, *example)")
        self.model, self.variant = model, variants.resolve(variant, "cpu")
        self._lock = threading.RLock()
        self._programs: dict[Any, Program] = {}
        self._out: dict[Any, Any] = {}
        leaves, self._spec = pytree.tree_flatten(example)
        self._example = [_checked(f"example input {i}", leaf) for i, leaf in enumerate(leaves)]
        self._form = [_form(leaf) for leaf in self._example]
        self._single = self._spec == pytree.tree_flatten((0,))[1] and isinstance(self._example[0], Tensor)
        self._plan(self._example)

    def __call__(self, *inputs: Any) -> Any:
        """Return model(*inputs). Raises TypeError or ValueError naming the input, its value and the rule."""
        if self._single and len(inputs) == 1 and type(inputs[0]) is Tensor:
            tensor = inputs[0]
            found = self._programs.get((tensor.shape, tensor.dtype))
            plain = tensor.is_cpu and not tensor.is_neg() and transform() is None
            if found is not None and plain and self._unchanged():
                _refuse_gradient("input 0", tensor)
                return self._packed(found, found(inputs))
        leaves, spec = pytree.tree_flatten(inputs)
        if spec != self._spec:
            raise ValueError(f"inputs must have the example's structure {self._spec}, got {spec}")
        arrays = any(isinstance(leaf, np.ndarray) for leaf in leaves)
        checked = [_checked(f"input {i}", leaf) for i, leaf in enumerate(leaves)]
        program = self._program(checked)
        result = self._packed(program, program(checked))
        return pytree.tree_map(lambda x: x.numpy() if isinstance(x, Tensor) else x, result) if arrays else result

    def refresh(self) -> None:
        """Read all weights anew at the next call: after a change that torch does not count."""
        for program in self._programs.values():
            program.now = None
        packing.forget()

    def profile(self, *inputs: Any, repeats: int = 20) -> Any:
        """Run on these inputs and return the steps with the median time of each; print it, or read its `rows`."""
        from jitconv.plan.show import profile

        checked = [_checked(f"input {i}", leaf) for i, leaf in enumerate(pytree.tree_leaves(inputs))]
        return profile(self, self._program(checked), checked, repeats)

    @property
    def program(self) -> Program:
        """The program for the example's shapes."""
        return self._program(self._example)

    def __str__(self) -> str:
        from jitconv.plan.show import table

        return table(self)

    def __repr__(self) -> str:
        return f"<jitconv.plan of {type(self.model).__name__} for {self.forms}>"

    @property
    def forms(self) -> str:
        """The example's shapes and dtypes."""
        return ", ".join(
            f"{'×'.join(map(str, form[0]))} {str(form[1]).removeprefix('torch.')}"
            if type(form) is tuple
            else repr(form)
            for form in self._form
        )

    def _packed(self, program: Program, results: list[Any]) -> Any:
        spec = self._out[program]
        return results[0] if spec is None else pytree.tree_unflatten(results, spec)

    def _unchanged(self) -> bool:
        return all(owner.get(name) is value for owner, name, value in self._same)

    def _program(self, leaves: Sequence[Any]) -> Program:
        """The program for these inputs, planned now if they differ from earlier ones in the batch alone."""
        if not self._unchanged():
            with self._lock:
                if not self._unchanged():  # a module was replaced: the graph may be another
                    self._programs.clear()
                    self._out.clear()
        key = _key(leaves)
        program = self._programs.get(key)
        if program is None:
            self._refuse_other_forms(leaves)
            with self._lock:
                program = self._programs.get(key) or self._plan(leaves)
        return program

    def _plan(self, leaves: Sequence[Any]) -> Program:
        captured = capture(self.model, pytree.tree_unflatten(list(leaves), self._spec))
        program = build(captured, self.variant)
        self._same = captured.same
        self._out[program] = None if captured.outputs.is_leaf() else captured.outputs
        self._programs[_key(leaves)] = program
        return program

    def _refuse_other_forms(self, leaves: Sequence[Any]) -> None:
        batches = set()
        for i, (leaf, form) in enumerate(zip(leaves, self._form, strict=True)):
            if not isinstance(leaf, Tensor):
                if leaf != form or type(leaf) is not type(form):
                    raise ValueError(f"input {i} must be {form!r} as in the example, got {leaf!r}: plan again for it")
                continue
            if not isinstance(form, tuple):
                raise TypeError(f"input {i} must be {form!r} as in the example, got a tensor")
            shape, dtype = form
            if leaf.dtype != dtype:
                raise TypeError(
                    f"input {i} must be {dtype} as in the example, got {leaf.dtype}: cast it, or plan again"
                )
            if leaf.dim() != len(shape) or tuple(leaf.shape[1:]) != tuple(shape[1:]):
                raise ValueError(
                    f"input {i} must have the example's shape {tuple(shape)} but for the batch, "
                    f"got {tuple(leaf.shape)}: plan again for it"
                )
            batches.add((leaf.shape[0], shape[0])) if leaf.dim() else None
        if len(batches) > 1 and len({new for new, _ in batches}) > 1 and len({old for _, old in batches}) == 1:
            raise ValueError(
                f"inputs must have one batch size as in the example, got {sorted(new for new, _ in batches)}"
            )


def _form(leaf: Any) -> Any:
    return (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf


def _key(leaves: Sequence[Any]) -> Any:
    parts: list[Any] = []
    for leaf in leaves:
        parts += (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else (type(leaf), leaf)
    return tuple(parts)


def _refuse_gradient(name: str, tensor: Tensor) -> None:
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name} must not require a gradient: a plan is for inference. Call it under torch.no_grad(), or train "
            'with torch.compile(model, backend="jitconv")'
        )


def _checked(name: str, leaf: Any) -> Any:
    """A leaf of the inputs as plans take it: a plain tensor on the CPU, or no tensor at all."""
    if isinstance(leaf, np.ndarray):
        leaf = torch.from_numpy(np.require(leaf, requirements=["C", "A", "W"]))
    if not isinstance(leaf, Tensor):
        return leaf
    if type(leaf) not in TENSOR_TYPES or leaf.is_meta or transform() is not None:
        raise TypeError(f"{name} must be a plain tensor, outside torch.func's transforms, got {type(leaf).__name__}")
    if not leaf.is_cpu:
        raise ValueError(f"{name} must be on the CPU, got {leaf.device}: move it, or convert the model for its device")
    if leaf.is_floating_point() and leaf.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} must be float32 or float64, got {leaf.dtype}: cast it and the model")
    if leaf.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {leaf.layout}")
    _refuse_gradient(name, leaf)
    return leaf.resolve_neg() if leaf.is_neg() else leaf
