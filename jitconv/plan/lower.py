"""From a rewritten graph to a list of steps on buffers: kernels where there are any, torch's operations elsewhere."""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx

from jitconv.plan import blocked, buffers, layout, nodes
from jitconv.plan.buffers import Array
from jitconv.plan.canonical import shape, value
from jitconv.plan.capture import Source
from jitconv.plan.kernels import BINDERS, KernelCall, flat, own_op
from jitconv.plan.nodes import Node
from jitconv.variants import Variant
from jitconv.variants.tiled.blocked import FROM_BLOCKED, TO_BLOCKED

NUMPY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.int64: np.dtype(np.int64),
}


@dataclass
class Step:
    """One call: kernel(*args), each an Array or a constant. Without a kernel it is a torch step: node's call.

    small: not worth a second core. fixed: all that the kernel looks at before its drivers' calls are weights.
    """

    node: Node
    name: str
    args: list[Any] = field(default_factory=list)
    kernel: Any = None
    flops: int = 0
    small: bool = False
    fixed: bool = True

    @property
    def recordable(self) -> bool:
        """Whether the kernel's calls may be recorded as long as the weights stay what they are."""
        return self.fixed and getattr(self.kernel, "recordable", False)

    @property
    def is_torch(self) -> bool:
        return self.kernel is None


@dataclass
class Prepared:
    """Values of weights alone, made again when one of them changes: target(*args), args with nodes for the earlier."""

    node: Any
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


class Lowering:
    """The state while a graph is lowered: what is known of each node so far, and the steps."""

    def __init__(
        self, graph: fx.Graph, sources: Sequence[Source], variant: Variant, static: set[Node], training: bool = False
    ) -> None:
        self.graph, self.variant, self.training = graph, variant, training
        self.steps: list[Step] = []
        self.arrays: dict[Any, Array] = {}  # of nodes that kernels have made or may read, as they are
        self.blocks: dict[Node, Array] = {}  # and blocked
        self.torchs: dict[Node, set[Node]] = {}  # of torch steps' results: what they may share memory with
        self.prepared: dict[Any, Prepared] = {}
        self.sources: dict[Node, Source] = {}
        self.static = static
        self.convolutions = set() if training else layout.convolutions(graph, variant)
        self.blocked = layout.decide(graph, self.convolutions)
        self.chained = layout.chained(self.blocked)
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self.sources.update(zip(placeholders, sources, strict=True))
        (output,) = (node for node in graph.nodes if node.op == "output")
        self.outputs: list[Any] = list(output.args[0])
        self.roots = self._output_roots()
        self.inside = _offsets_in_concats(graph, self.roots, self.blocked)
        for node in graph.nodes:
            self._lower(node)
        self.shares = self._shared()
        self.arena = self._lifetimes()

    # ---- what binders use ----

    def array(self, node: Node) -> Array:
        """The node's value as C-contiguous numbers that a kernel may read."""
        if node in self.blocks and node not in self.arrays:
            self._to_planes(node)
        if node not in self.arrays:
            kind = "weight" if node in self.static else "input" if node.op == "placeholder" else "result"
            self.arrays[node] = buffers.new(shape(node), NUMPY_DTYPES[value(node).dtype], kind, node)
        return self.arrays[node]

    def out(self, node: Node, like: tuple[int, ...] | None = None, blocked: bool = False) -> Array:
        """A new array for what the node computes: of the result, in a concatenation's, or in the arena."""
        size, dtype = like or shape(node), NUMPY_DTYPES[value(node).dtype]
        if node in self.roots:
            array = buffers.new(size, dtype, "output", node, blocked)
        elif node in self.inside:
            whole, offset = self.inside[node]
            base = self.arrays.get(whole) or self.out(whole)
            self.arrays[whole] = base
            array = Array(base.buffer, size, dtype, base.offset + offset * dtype.itemsize)
        else:
            array = buffers.new(size, dtype, blocked=blocked)
        self.arrays[node] = array
        return array

    def block(self, node: Node) -> Array:
        """The node's value as blocked numbers that a kernel may read."""
        if node not in self.blocks:
            source = self.array(node)
            C, pixels = shape(node)[1], math.prod(shape(node)[2:])
            self.blocks[node] = buffers.new(self._block_shape(node), source.dtype, blocked=True)
            args = [flat(source), C, pixels, flat(self.blocks[node])]
            self.steps.append(Step(node, "layout to blocked", args, TO_BLOCKED))
        return self.blocks[node]

    def out_block(self, node: Node) -> Array:
        """A new blocked array for what the node computes, in a concatenation's or in the arena."""
        if node not in self.blocks:
            size, dtype = self._block_shape(node), self.dtype(node)
            if node in self.inside:
                whole, offset = self.inside[node]
                base = self.out_block(whole)
                self.blocks[node] = Array(base.buffer, size, dtype, base.offset + offset * dtype.itemsize, True)
            else:
                self.blocks[node] = buffers.new(size, dtype, blocked=True)
        return self.blocks[node]

    def _block_shape(self, node: Node) -> tuple[int, ...]:
        (N, C, H, W), lanes = shape(node), layout.lanes_of(node)
        return N, -(-C // lanes), H, W, lanes

    def _to_planes(self, node: Node) -> None:
        """Have a blocked value as (N, C, H, W) as well."""
        source, (N, C, H, W) = self.blocks[node], shape(node)
        if node not in self.roots and H * W == 1 and (N == 1 or source.nbytes // source.dtype.itemsize // N == C):
            self.arrays[node] = source._replace(shape=(N, C, 1, 1), blocked=False)  # the same numbers in the same order
            return
        kind = "output" if node in self.roots else "arena"
        self.arrays[node] = target = buffers.new(shape(node), source.dtype, kind, node)
        self.steps.append(Step(node, "layout from blocked", [flat(source), C, H * W, flat(target)], FROM_BLOCKED))

    def packed(self, weight: Node, pack: Any) -> Array:
        """What a kernel packs of a weight, again whenever that changes; of one that is computed, at each call."""
        key = ("packed", weight, pack)
        if key not in self.arrays:
            size = pack(np.zeros(shape(weight), self.dtype(weight))).shape
            if weight in self.static:
                self.prepared[key] = Prepared(key, nodes.packed, (weight, pack))
                self.arrays[key] = buffers.new(size, self.dtype(weight), "weight", key)
            else:
                self.arrays[key] = buffers.new(size, self.dtype(weight))
                self.steps.append(Step(weight, "pack", [self.array(weight), pack, self.arrays[key]], _pack))
        return self.arrays[key]

    @staticmethod
    def dtype(node: Node) -> np.dtype[Any]:
        return NUMPY_DTYPES[value(node).dtype]

    # ---- one node ----

    def _lower(self, node: Node) -> None:
        if node.op in ("placeholder", "output"):
            return
        if node.op == "get_attr":
            self.static.add(node)
            self.prepared[node] = Prepared(node, _attribute, (self.graph.owning_module, node.target))
            return
        if _of_weights_alone(node, self.static):
            self.static.add(node)
            self.prepared[node] = Prepared(node, node.target, node.args, dict(node.kwargs))
            return
        if node.target is nodes.reshape and self._is_array(node.args[0]):
            self.arrays[node] = self.array(node.args[0])._replace(shape=shape(node))
            return
        if node.target is operator.getitem and node in self.arrays:
            return
        if node in self.chained.values():
            return  # computed with what reads it
        calls = self._bind(node)
        if calls is None:
            for each in node.all_input_nodes:
                if each in self.blocks:
                    self.array(each)
            self.torchs[node] = set(node.all_input_nodes)
            self.steps.append(Step(node, _torch_name(node)))
            return
        for each in calls:
            self.steps.append(Step(node, each.name, each.args, each.kernel, each.flops, each.small, each.fixed))
        if node in self.roots and node in self.blocks:
            self.array(node)

    def _is_array(self, node: Any) -> bool:
        if not isinstance(node, fx.Node) or value(node).dtype not in NUMPY_DTYPES:
            return False
        return node in self.arrays or node in self.blocks or node.op == "placeholder"

    def _bind(self, node: Node) -> list[KernelCall] | None:
        """The kernels for a node; None where there is none, or it takes what kernels do not."""
        if self.variant.whole:
            return None
        binders = blocked.BLOCKED_BINDERS if node in self.blocked else BINDERS
        binder = binders.get(node.target, own_op if str(node.target).startswith("jitconv.") else None)
        if binder is None:
            return None
        inputs = [value(n) for n in node.all_input_nodes]
        if any(
            not isinstance(v, torch.Tensor) or v.dtype not in NUMPY_DTYPES or v.device.type != "cpu" for v in inputs
        ):
            return None
        results = value(node)
        results = results if isinstance(results, (tuple, list)) else [results]
        if any(0 in v.shape for v in (*inputs, *results)):
            return None  # torch knows what becomes of nothing
        if node in self.convolutions and node.args[0] in self.blocked:
            binder = blocked.conv2d
        return binder(self, node)

    # ---- the whole ----

    def _output_roots(self) -> dict[Node, int]:
        """The nodes whose arrays are results of the plan, through reshapes, and which result."""
        roots: dict[Node, int] = {}
        for i, node in enumerate(self.outputs):
            while isinstance(node, fx.Node) and node.target is nodes.reshape:
                node = node.args[0]
            if isinstance(node, fx.Node) and node.op == "call_function":
                roots.setdefault(node, i)
        return roots

    def _lifetimes(self) -> int:
        """Set the lives of all buffers, and the places of those in the arena; return the arena's bytes."""
        shares, arena = self.shares, {}
        for i, step in enumerate(self.steps):
            read = [array.buffer for array in step.args if isinstance(array, Array)]
            nodes_read = step.node.all_input_nodes if step.is_torch else [b.key for b in read if b.kind == "result"]
            for node in nodes_read:  # a torch step's result may be a view of its input
                read += [self.arrays[each].buffer for each in shares.get(node, (node,)) if each in self.arrays]
            for buffer in read:
                buffer.used(i)
                arena[id(buffer)] = buffer
        for node in self.outputs:
            for each in shares.get(node, ()):
                if each in self.arrays:
                    self.arrays[each].buffer.used(len(self.steps))
        return buffers.assign(buffer for buffer in arena.values() if buffer.kind == "arena")

    def _shared(self) -> dict[Node, set[Node]]:
        """For each torch step's result, itself and every node of whose memory it may be a view."""
        shares: dict[Node, set[Node]] = {}
        for node in self.graph.nodes:
            if node in self.torchs:
                shares[node] = {node}.union(*(shares.get(source, {source}) for source in self.torchs[node]))
        return shares


def _pack(weight: Any, pack: Callable[[Any], Any], packed: Any) -> None:
    packed[:] = pack(weight)


def _attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _of_weights_alone(node: Node, static: set[Node]) -> bool:
    """Whether a call follows from weights, and may be made before it is needed."""
    inputs = node.all_input_nodes
    if not inputs or not all(each in static for each in inputs) or any(u.op == "output" for u in node.users):
        return False
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded not in tags and not getattr(
        getattr(node.target, "_schema", None), "is_mutable", False
    )


def _torch_name(node: Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return f"torch {node.target}".removesuffix(".default")
    return f"torch {getattr(node.target, '__name__', node.target)}"


def _lies_apart(part: Node) -> bool:
    """Whether the images that a node computes can be so far apart as those of the concatenation that it is for."""
    if part.target is not nodes.conv2d or len(part.users) > 1:
        return False
    _, _, _, (*_, groups), residual, activation = [*part.args, None, None][:6]
    return groups == 1 and residual is None and activation not in nodes.SMOOTH_ACTIVATIONS


def _offsets_in_concats(graph: fx.Graph, roots: dict[Node, int], blocked: set[Node]) -> dict[Node, tuple[Node, int]]:
    """Which nodes can be computed where a concatenation wants them: there, and so many numbers from its beginning.

    That is where the parts lie one after the other in memory, with one image or along the first dimension; of several
    images a blocked convolution's can lie apart, if only the concatenation reads them.
    """
    offsets: dict[Node, tuple[Node, int]] = {}
    for node in reversed(graph.find_nodes(op="call_function", target=nodes.concat)):
        parts, dim = node.args
        together = all(n == 1 for n in shape(node)[:dim])
        if any(0 in shape(part) for part in parts):
            continue  # torch computes it, in memory of its own
        offset = 0
        for part in parts:
            kernel = (part in blocked or part.target in BINDERS) and part not in offsets
            alike = (part in blocked) == (node in blocked)
            there = together or (part in blocked and _lies_apart(part))
            if kernel and alike and there and part not in roots and parts.count(part) == 1:
                offsets[part] = (node, offset)
            offset += int(np.prod(shape(part)[dim:]))
    return offsets
