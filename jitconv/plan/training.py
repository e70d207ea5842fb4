"""Dynamo's graph before AOTAutograd splits it: layers become jitconv's operators, so that what is fused has gradients.

A fused forward keeps less for its backward: the pooled convolution its indices instead of its whole result, linear with
relu its result alone. A convolution of many channels and few pixels stays torch's (kernels.py).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from jitconv import ops, shapes, variants
from jitconv.plan.kernels import TORCH_CHANNELS, is_torchs

CONV2D_FUNCTIONS = (F.conv2d, torch.conv2d)
LINEAR_FUNCTIONS = (F.linear,)
RELU_FUNCTIONS = (F.relu, torch.relu, F.relu_, torch.relu_)
MAX_POOL2D_FUNCTIONS = (F.max_pool2d, torch.max_pool2d)


def fuse(graph: fx.GraphModule) -> int:
    """Replace layers, and layers with what follows them, by this module's functions; return how many."""
    count = 0
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not node.args:
            continue
        if node.target in CONV2D_FUNCTIONS and _is_ours(node):
            count += _fuse_convolution(node)
        elif node.target in MAX_POOL2D_FUNCTIONS and _pooling(node) is not None:
            count += _replace(node, max_pool2d, node.args[:1], _pooling(node))
        elif node.target in LINEAR_FUNCTIONS and _of_floats(node.args[0]):
            count += _fuse_linear(node)
    graph.recompile()
    return count


def _is_ours(node: Any) -> bool:
    x, weight, *_ = node.args
    if not (_of_floats(x) and _value(x).dim() == 4 and isinstance(_value(x).shape[1], int) and _of_floats(weight)):
        return False
    out = _value(node).shape
    return any(not isinstance(size, int) for size in out) or not is_torchs(_value(weight).shape[1], out)


def _value(node: Any) -> Any:
    return node.meta.get("example_value") if isinstance(node, fx.Node) else None


def _of_floats(node: Any) -> bool:
    value = _value(node)
    return isinstance(value, Tensor) and value.dtype in (torch.float32, torch.float64) and value.device.type == "cpu"


def _next(node: Any, targets: tuple[Any, ...], method: str) -> Any:
    """The one user of a node, if it calls one of the functions or the method."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    function = user.op == "call_function" and user.target in targets
    called = function or (user.op == "call_method" and user.target == method)
    return user if called and user.args and user.args[0] is node else None


def _fuse_convolution(node: Any) -> int:
    relu, few = _next(node, RELU_FUNCTIONS, "relu"), _value(node.args[1]).shape[1] < TORCH_CHANNELS
    pool = _next(relu or node, MAX_POOL2D_FUNCTIONS, "") if few else None  # one pass pays for few channels only
    if pool is None and relu is not None:
        return _replace(relu, conv2d_relu, node.args, node.kwargs)
    pooling = pool is not None and _side_by_side(pool)
    if pooling and relu is not None:
        return _replace(pool, conv2d_relu_max_pool2d, node.args, node.kwargs)
    if pooling:
        return _replace(pool, conv2d_max_pool2d, node.args, node.kwargs)
    return _replace(node, conv2d, node.args, node.kwargs)


def _pooling(pool: Any) -> dict[str, Any] | None:
    """The options of a pooling of images, by name; None where its indices are wanted too."""
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    given = dict(zip(names, pool.args[1:], strict=False)) | {k: v for k, v in pool.kwargs.items() if k in names}
    images = _of_floats(pool.args[0]) and _value(pool.args[0]).dim() == 4
    return None if given.pop("return_indices", False) or not images else given


def _side_by_side(pool: Any) -> bool:
    """Whether windows are 2×2, one beside the other."""
    given = _pooling(pool)
    if given is None or given.get("ceil_mode") or given.get("dilation", 1) not in (1, (1, 1), [1, 1]):
        return False
    try:
        window = shapes.pooling((1, 1, 8, 8), given["kernel_size"], given.get("stride"), given.get("padding", 0))
    except (KeyError, TypeError, ValueError):
        return False
    return window[:3] == ((2, 2), (2, 2), (0, 0))


def _fuse_linear(node: Any) -> int:
    relu = _next(node, RELU_FUNCTIONS, "relu")
    return _replace(relu or node, linear_relu if relu is not None else linear, node.args, node.kwargs)


def _replace(node: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> int:
    """Put a call in the place of a node, and of those before it that only led to it."""
    with node.graph.inserting_before(node):
        replacement = node.graph.call_function(function, args, kwargs)
    replacement.meta = dict(node.meta)
    node.replace_all_uses_with(replacement)
    while not node.users and node not in replacement.args:
        before = node.args[0]
        node.graph.erase_node(node)
        node = before
    return 1


def _best() -> variants.Variant:
    return variants.resolve(None, "cpu")


def conv2d(input: Tensor, weight: Tensor, bias: Any = None, *options: Any, **named: Any) -> Tensor:
    """Arguments as torch.nn.functional.conv2d's."""
    return ops.conv2d(_best(), input, weight, bias, *shapes.conv2d(input, weight, bias, *options, **named))


def conv2d_relu(input: Tensor, weight: Tensor, bias: Any = None, *options: Any, **named: Any) -> Tensor:
    """relu(conv2d(…)); arguments as torch.nn.functional.conv2d's."""
    geometry = shapes.conv2d(input, weight, bias, *options, **named)
    return ops.conv2d_relu(_best(), input, weight, bias, *geometry)


def conv2d_max_pool2d(input: Tensor, weight: Tensor, bias: Any = None, *options: Any, **named: Any) -> Tensor:
    """max_pool2d(conv2d(…), 2)"""
    geometry = shapes.conv2d(input, weight, bias, *options, **named)
    windows = shapes.pooling((input.shape[0], weight.shape[0], *geometry.size), 2)
    out, _ = ops.conv2d_max_pool2d(_best(), input, weight, bias, *geometry, *windows)
    return out


def conv2d_relu_max_pool2d(input: Tensor, weight: Tensor, bias: Any = None, *options: Any, **named: Any) -> Tensor:
    """max_pool2d(relu(conv2d(…)), 2), as relu(max_pool2d(conv2d(…), 2))."""
    return ops.relu(_best(), conv2d_max_pool2d(input, weight, bias, *options, **named))


def max_pool2d(input: Tensor, **pooling: Any) -> Tensor:
    """max_pool2d; options as torch.nn.functional.max_pool2d's, by name."""
    out, _ = ops.max_pool2d(_best(), input, *shapes.max_pool2d(input, **pooling))
    return out


def linear(input: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    shapes.linear(input, weight, bias)
    rows = ops.linear(_best(), input.reshape(-1, input.shape[-1]), weight, bias)
    return rows.reshape(*input.shape[:-1], weight.shape[0])


def linear_relu(input: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    """relu(linear(…))"""
    shapes.linear(input, weight, bias)
    rows = ops.linear_relu(_best(), input.reshape(-1, input.shape[-1]), weight, bias)
    return rows.reshape(*input.shape[:-1], weight.shape[0])
