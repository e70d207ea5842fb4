"""`torch.compile(model, backend="jitconv")`: Dynamo's graphs as plans, for inference and for training.

What must stay one operation across the split into forward and backward becomes one before it: training.py rewrites
Dynamo's graph. AOTAutograd then writes graphs of aten's and jitconv's operations without in-place ones, as torch.export
does for `jitconv.plan`, and each is rewritten, lowered and run in the same way. A graph with dynamic shapes becomes a
program for each shapes that it meets.
"""

import copy
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx

from jitconv import compat, variants
from jitconv.plan import nodes
from jitconv.plan.capture import Source
from jitconv.plan.lower import Lowering
from jitconv.plan.program import Program
from jitconv.plan.rewrite import rewrite
from jitconv.plan.training import fuse


def backend(graph: fx.GraphModule, example: Sequence[Any]) -> Callable[..., Any]:
    """Compile one of Dynamo's graphs; torch.compile calls this."""
    fuse(graph)
    forward = functools.partial(_compiled, training=True)
    inference = functools.partial(_compiled, training=False)
    return compat.compiled_in_two(
        graph, example, fw_compiler=forward, bw_compiler=forward, inference_compiler=inference
    )


def _compiled(graph: fx.GraphModule, example: Sequence[Any], training: bool) -> Callable[..., Any]:
    return compat.boxed(Shaped(graph, training))


class Shaped:
    """A graph of AOTAutograd's, and the programs for the shapes that it was called with."""

    def __init__(self, graph: fx.GraphModule, training: bool) -> None:
        self.graph, self.training = graph, training
        self.programs: dict[Any, Program] = {}
        self.lock = threading.Lock()
        inputs = [node.meta.get("val") for node in graph.graph.nodes if node.op == "placeholder"]
        self.fixed = all(isinstance(v, Tensor) and not any(map(_symbolic, v.shape)) for v in inputs)

    def __call__(self, *inputs: Any) -> list[Any]:
        key = None if self.fixed else tuple(v.shape if isinstance(v, Tensor) else v for v in inputs)
        program = self.programs.get(key)
        if program is None:
            with self.lock:
                program = self.programs.get(key) or self._planned(key, inputs)
        return program(inputs)

    def _planned(self, key: Any, inputs: Sequence[Any]) -> Program:
        graph = copy.deepcopy(self.graph.graph)
        module = fx.GraphModule(self.graph, graph)
        graph = module.graph
        if not self.fixed:
            _specialise(module, inputs)
        rewrite(graph)
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        sources = [Source(None, i) for i in range(len(placeholders))]
        static = set() if self.training else {node for node in placeholders if _is_weight(node)}
        low = Lowering(graph, sources, variants.resolve(None, "cpu"), static, training=self.training)
        program = self.programs[key] = Program(low)
        return program


def _symbolic(size: Any) -> bool:
    return not isinstance(size, int)


def _is_weight(node: Any) -> bool:
    """Whether a placeholder is only ever a layer's weight, bias or statistics."""
    targets = (nodes.conv2d, nodes.conv2d_max_pool2d, nodes.linear)
    of_weights = (nodes.norm_scale, nodes.norm_shift, nodes.scaled_weight, nodes.scaled_bias)
    return bool(node.users) and all(
        user.target in of_weights or (user.target in targets and node in user.args[1:3] and node is not user.args[0])
        for user in node.users
    )


def _specialise(module: fx.GraphModule, inputs: Sequence[Any]) -> None:
    """Give every node of a graph with symbols the shape that it has for these inputs; numbers become constants."""
    graph = module.graph
    with compat.fake_mode() as mode:
        fakes = [mode.from_tensor(v, static_shapes=True) if isinstance(v, Tensor) else v for v in inputs]
        _Shapes(module).run(*fakes)
    for node in list(graph.nodes):
        if node.op != "output" and isinstance(node.meta["val"], (int, float, bool)):
            node.replace_all_uses_with(node.meta["val"])
            if node.op != "placeholder":
                graph.erase_node(node)


class _Shapes(fx.Interpreter):
    def run_node(self, n: Any) -> Any:
        result = n.meta["val"] = super().run_node(n)
        return result
