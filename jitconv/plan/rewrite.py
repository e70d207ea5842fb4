"""The rewrites of a captured graph: each a function of the graph that returns how many places it changed.

They are applied in the order of REWRITES, each once, and the graph computes the same after any of them. To add one:
write the function, put it into the table, and give tests/plan/test_rewrites.py a graph that it changes.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx

from jitconv.plan import nodes
from jitconv.plan.canonical import TABLE, own_table, shape, value, weights_only
from jitconv.plan.nodes import Node

POOLED_CHANNELS, POOLED_FILTERS = 16, 32  # below, a convolution has its pixels in the lanes, and pools them there


def canonical(graph: fx.Graph) -> int:
    """aten's and jitconv's operations become those of nodes.py; copies, casts to the same and idle dropout go."""
    table, count = {**TABLE, **own_table()}, 0
    for node in list(graph.nodes):
        become = table.get(node.target) if node.op == "call_function" else None
        if become is None:
            continue
        with graph.inserting_before(node):
            result = become(node)
        if isinstance(result, fx.Node):
            node.replace_all_uses_with(result)
            graph.erase_node(node)
        elif result is not None:
            target, args = result
            replace(node, target, args, origin=(_name(node),))
        count += result is not None
    graph.eliminate_dead_code()
    return count


def fold_affine(graph: fx.Graph) -> int:
    """A scale and shift of each channel (a batch norm) after a convolution or linear goes into its weights."""
    count = 0
    for node in _calls(graph, nodes.affine):
        product, scale, shift, activation = _filled(node, 4)
        of_weights = all(made.target is nodes.cast for made in (scale, shift) if isinstance(made, fx.Node))
        if not _only_use(product, nodes.conv2d, nodes.linear) or not of_weights or _activation(product):
            continue
        if product.target is nodes.linear and value(product).dim() != 2:
            continue  # its dimension 1 is not the outputs
        x, weight, bias, *rest = product.args
        if product.target is nodes.conv2d and len(rest) > 1 and rest[1] is not None:
            continue  # the residual would have to be scaled as well
        dtype, scale, shift = value(weight).dtype, scale.args[0], shift.args[0]
        weight = weights_only(node, nodes.scaled_weight, (weight, scale), weight, dtype)
        bias = weights_only(node, nodes.scaled_bias, (bias, scale, shift, dtype), scale, dtype)
        rest = [rest[0], None, activation] if product.target is nodes.conv2d else [activation]
        replace(node, product.target, (x, weight, bias, *rest), origin=(*_origin(product), "batch_norm"))
        count += 1
    graph.eliminate_dead_code()
    return count


def fuse_residual(graph: fx.Graph) -> int:
    """A sum whose one term is a convolution that is used nowhere else: the convolution adds the other term."""
    order, count = {node: i for i, node in enumerate(graph.nodes)}, 0
    for node in _calls(graph, nodes.add):
        x, y, activation = _filled(node, 3)
        terms = sorted((x, y), key=lambda term: order.get(term, -1), reverse=True)
        product = next((term for term in terms if _free(term)), None)
        if product is None or x is y:
            continue
        other = y if product is x else x
        args = (*product.args[:4], other, activation)
        replace(node, nodes.conv2d, args, origin=_origin(product) + _origin(node))
        count += 1
    graph.eliminate_dead_code()
    return count


def _free(term: Any) -> bool:
    """Whether a node is a convolution for one use, with nothing after it yet."""
    if not _only_use(term, nodes.conv2d) or value(term).dim() != 4:
        return False
    return all(each is None for each in term.args[4:])


def fuse_activation(graph: fx.Graph) -> int:
    """An activation goes into the epilogue of the product, sum or scale before it, if that is used nowhere else."""
    count = 0
    for node in _calls(graph, nodes.activate):
        before, activation = node.args
        if not _only_use(before, nodes.conv2d, nodes.linear, nodes.affine, nodes.add) or _activation(before):
            continue
        length = {nodes.conv2d: 6, nodes.linear: 4, nodes.affine: 4, nodes.add: 3}[before.target]
        args = (*_filled(before, length)[:-1], activation)
        replace(node, before.target, args, origin=_origin(before) + _origin(node))
        count += 1
    graph.eliminate_dead_code()
    return count


def fuse_max_pool(graph: fx.Graph) -> int:
    """2×2 max-pooling of a convolution of few channels is done as that is computed; its relu comes last.

    max(relu(z)) = relu(max(z)): relu then sees a quarter of the numbers. (−0.0 and 0.0 may change places.)
    """
    count = 0
    for node in _calls(graph, nodes.max_pool2d):
        product, pooling = node.args
        if not _only_use(product, nodes.conv2d) or value(product).dim() != 4:
            continue
        x, weight, bias, convolution, residual, activation = _filled(product, 6)
        side_by_side = pooling[:4] == ((2, 2), (2, 2), (0, 0), (1, 1))
        if residual or activation not in (None, ("relu",)) or not side_by_side:
            continue
        if shape(x)[1] >= POOLED_CHANNELS or shape(weight)[0] >= POOLED_FILTERS:
            continue
        origin = _origin(product)
        args = (x, weight, bias, convolution, pooling)
        if activation:
            with graph.inserting_before(node):
                pooled = graph.call_function(nodes.conv2d_max_pool2d, args)
            pooled.meta = {**node.meta, "from": (*origin[:-1], *_origin(node))}
            replace(node, nodes.activate, (pooled, activation), origin=origin[-1:])
        else:
            replace(node, nodes.conv2d_max_pool2d, args, origin=origin + _origin(node))
        count += 1
    graph.eliminate_dead_code()
    return count


def join_reshapes(graph: fx.Graph) -> int:
    """A reshape of a reshape is one; one to the shape there is already is none."""
    count = 0
    for node in _calls(graph, nodes.reshape):
        source = node.args[0]
        if source.op == "call_function" and source.target is nodes.reshape:
            node.args = (source.args[0], node.args[1])
            count += 1
        before = node.args[0]
        if shape(before) == shape(node) and before.op != "placeholder":
            node.replace_all_uses_with(before)
            graph.erase_node(node)
            count += 1
    graph.eliminate_dead_code()
    return count


Rewrite = Callable[[fx.Graph], int]
REWRITES: dict[str, Rewrite] = {
    each.__name__: each
    for each in (canonical, join_reshapes, fold_affine, fuse_residual, fuse_activation, fuse_max_pool)
}


def rewrite(graph: fx.Graph, off: Collection[str] = ()) -> dict[str, int]:
    """Apply every rewrite but those that are `off`; return how many places each has changed."""
    counts = {name: each(graph) for name, each in REWRITES.items() if name not in off}
    graph.lint()
    return counts


def replace(node: Node, target: Any, args: tuple[Any, ...], origin: tuple[str, ...]) -> Node:
    """Put a call in the node's place, with its shape and its place in the source; origin: what it is made from."""
    with node.graph.inserting_before(node):
        made = node.graph.call_function(target, args)
    made.meta = {**node.meta, "from": origin}
    node.replace_all_uses_with(made)
    node.graph.erase_node(node)
    return made


def _name(node: Node) -> str:
    """What an operation is called in print(plan): its own name; of one of several results, its source's."""
    source: Any = node
    while getattr(source.target, "_schema", None) is None and source.args:
        source = source.args[0]
    name = str(source.target).split(".")[1] if isinstance(source.target, torch._ops.OpOverload) else source.name
    return {"_native_batch_norm_legit_no_training": "batch_norm"}.get(name, name)


def _origin(node: Node) -> tuple[str, ...]:
    return node.meta.get("from", (node.name,))


def _calls(graph: fx.Graph, target: Any) -> list[Node]:
    return list(graph.find_nodes(op="call_function", target=target))


def _filled(node: Node, length: int) -> list[Any]:
    """The node's positional arguments, None for those that were left out."""
    return [*node.args, *[None] * (length - len(node.args))]


def _activation(node: Node) -> Any:
    at = {nodes.conv2d: 5, nodes.linear: 3, nodes.affine: 3, nodes.add: 2}[node.target]
    return node.args[at] if len(node.args) > at else None


def _only_use(node: Any, *targets: Any) -> bool:
    """Whether a node is a call of one of the targets and is used once."""
    return isinstance(node, fx.Node) and node.target in targets and len(node.users) == 1
