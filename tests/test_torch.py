"""Inside torch's machinery: operators that hold what they declare, compilers, exports, transforms, modes, devices."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import CPU_VARIANTS
from test_gradients import LAYERS, leaf

import jitconv
from jitconv import functional as F
from jitconv import ops

KERNELS = tuple(name for name in CPU_VARIANTS if name != "torch")  # torch's own layers are no operators of ours
PAIRS = ([2, 1], [1, 0], [1, 1])  # stride, padding, dilation
POOLING = ([2, 2], [2, 2], [0, 0], [1, 1])  # kernel_size, stride, padding, dilation


def whole(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(high, shape)


OPERATORS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "conv2d": lambda: (leaf(2, 2, 4, 3), leaf(2, 1, 2, 2), leaf(2), *PAIRS, [3, 2]),
    "conv2d_grad_input": lambda: (leaf(2, 2, 3, 2), leaf(2, 1, 2, 2), *PAIRS, [2, 2, 4, 3]),
    "conv2d_grad_weight": lambda: (leaf(2, 2, 3, 2), leaf(2, 2, 4, 3), *PAIRS, [2, 1, 2, 2]),
    "conv2d_grad_bias": lambda: (leaf(2, 2, 3, 2),),
    "max_pool2d": lambda: (leaf(2, 1, 4, 3), *POOLING, [2, 1]),
    "max_pool2d_grad_input": lambda: (leaf(1, 1, 1, 1), whole(4, 1, 1, 1, 1), *POOLING, [1, 1, 2, 2]),
    "flatten": lambda: (leaf(2, 2, 1, 3),),
    "flatten_grad_input": lambda: (leaf(2, 6), [2, 2, 1, 3]),
    "linear": lambda: (leaf(2, 3), leaf(4, 3), leaf(4)),
    "linear_grad_input": lambda: (leaf(2, 4), leaf(4, 3)),
    "linear_grad_weight": lambda: (leaf(2, 4), leaf(2, 3)),
    "linear_grad_bias": lambda: (leaf(2, 4),),
    "relu": lambda: (leaf(5),),
    "relu_grad_input": lambda: (leaf(5), leaf(5)),
    "softmax": lambda: (leaf(2, 3, 2), 1),
    "softmax_grad_input": lambda: (leaf(2, 3, 2), leaf(2, 3, 2), 1),
    "log_softmax": lambda: (leaf(2, 3, 2), 1),
    "log_softmax_grad_input": lambda: (leaf(2, 3, 2), leaf(2, 3, 2), 1),
    "cross_entropy": lambda: (leaf(2, 3, 1), whole(3, 2, 1), torch.rand(3).double(), -100, 0.1),
    "cross_entropy_grad_input": lambda: (
        leaf(2, 1), leaf(2, 3, 1), whole(3, 2, 1), torch.rand(3).double(), -100, 0.1,
    ),
    "conv2d_max_pool2d": lambda: (leaf(2, 2, 6, 5), leaf(2, 1, 2, 2), None, *PAIRS, [4, 4], *POOLING, [2, 2]),
    "conv2d_relu": lambda: (leaf(2, 2, 4, 3), leaf(2, 1, 2, 2), leaf(2), *PAIRS, [3, 2]),
    "linear_relu": lambda: (leaf(2, 3), leaf(4, 3), None),
    "reduced_cross_entropy": lambda: (leaf(2, 3, 1), whole(3, 2, 1), torch.rand(3).double(), -100, 0.1, True),
    "reduced_cross_entropy_grad_input": lambda: (
        torch.rand(()).double(), leaf(2, 3, 1).detach(), whole(3, 2, 1), torch.rand(3).double(), -100, 0.1, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("variant", KERNELS)
def test_operators_hold_what_they_declare(name: str, variant: str) -> None:
    op = getattr(ops, name)
    if name in jitconv.variants.get(variant).ops:
        torch.library.opcheck(op.torch_op, (*OPERATORS[name](), variant), rtol=1e-9, atol=1e-9)


def test_every_operator_is_checked() -> None:
    assert tuple(OPERATORS) == (*jitconv.variants.OPS, *jitconv.variants.FUSED_OPS)


def results(function: Callable[..., torch.Tensor], *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The value and every gradient."""
    out = function(*args)
    return out, *torch.autograd.grad(out.square().sum(), args)


@pytest.mark.parametrize("layer", LAYERS)
def test_compiled_layers(layer: str, variant: str) -> None:
    function, shapes = LAYERS[layer]
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    args = [leaf(*shape) for shape in shapes]
    expected = results(lambda *a: function(*a, variant=variant), *args)
    torch.testing.assert_close(results(lambda *a: compiled(*a, variant=variant), *args), expected)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_network_takes_batches_of_any_size(backend: str) -> None:
    torch.compiler.reset()
    model = jitconv.SimpleConvNet()

    def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(images), labels)

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
    for batch in (2, 5):
        images, labels = torch.rand(batch, 1, 28, 28), torch.arange(batch)
        found, expected = (
            (value, *torch.autograd.grad(value, list(model.parameters())))
            for value in (function(images, labels) for function in (compiled, loss))
        )
        torch.testing.assert_close(found, expected)


def test_compiling_is_the_first_thing_a_process_does() -> None:
    """Nothing is loaded yet, and torch.compile cannot look into an import or a lock."""
    run(
        "import torch, jitconv\n"
        "model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU())\n"
        "compiled = torch.compile(jitconv.nn.convert(model), fullgraph=True, backend='eager')\n"
        "assert compiled(torch.ones(2, 3, 4)).shape == (2, 12)"
    )


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_exported_saved_and_loaded() -> None:
    model = jitconv.SimpleConvNet().eval()
    images = {0: torch.export.Dim("images", min=1, max=64)}
    program = torch.export.export(model, (torch.rand(4, 1, 28, 28),), dynamic_shapes=(images,))
    assert "jitconv.conv2d" in str(program.graph)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    x = torch.rand(7, 1, 28, 28)
    torch.testing.assert_close(torch.export.load(file).module()(x), model(x))


def test_symbolic_traces_hold_calls_of_layers() -> None:
    model = jitconv.nn.convert(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten()))
    traced = torch.fx.symbolic_trace(model)
    x = torch.rand(2, 1, 5, 5)
    torch.testing.assert_close(traced(x), model(x))
    assert {F.conv2d, F.relu, F.flatten} <= {node.target for node in traced.graph.nodes}


def test_script_traces_are_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"use torch\.export"):
        torch.jit.trace(jitconv.nn.ReLU(), torch.rand(3))


def stacked(function: Callable[..., torch.Tensor], many: list[torch.Tensor], fixed: list[torch.Tensor]) -> Any:
    return torch.stack([function(*args, *fixed) for args in zip(*many, strict=True)])


@pytest.mark.parametrize("layer", LAYERS)
def test_vmap_over_images_and_over_everything(layer: str, variant: str) -> None:
    function, shapes = LAYERS[layer]

    def call(*args: torch.Tensor) -> torch.Tensor:
        return function(*args, variant=variant)

    args = [torch.randn(3, *shape, dtype=torch.float64) for shape in shapes]
    images, rest = args[:1], [a[0] for a in args[1:]]
    found = torch.vmap(call, in_dims=(0, *[None] * len(rest)))(*images, *rest)
    torch.testing.assert_close(found, stacked(call, images, rest))
    last = [a.movedim(0, -1) for a in args]
    found = torch.vmap(call, in_dims=-1, out_dims=-1)(*last)
    torch.testing.assert_close(found, stacked(call, args, []).movedim(0, -1))


@pytest.mark.parametrize("layer", LAYERS)
def test_functional_gradients_of_one_and_of_many(layer: str, variant: str) -> None:
    function, shapes = LAYERS[layer]

    def loss(*args: torch.Tensor) -> torch.Tensor:
        return function(*args, variant=variant).square().sum()

    args = [leaf(2, *shape) for shape in shapes]
    numbers = tuple(range(len(args)))
    by_one = (torch.func.grad(loss, numbers)(*a) for a in zip(*args, strict=True))
    expected = [torch.stack(grads) for grads in zip(*by_one, strict=True)]
    by_autograd = torch.autograd.grad(sum(loss(*a) for a in zip(*args, strict=True)), args)
    torch.testing.assert_close(expected, list(by_autograd))
    many = torch.vmap(torch.func.grad(loss, numbers))(*args)
    torch.testing.assert_close(list(many), expected)
    of_sum = torch.func.grad(lambda *a: torch.vmap(loss)(*a).sum(), numbers)(*args)
    torch.testing.assert_close(list(of_sum), expected)


def test_gradients_of_each_image() -> None:
    model = jitconv.SimpleConvNet()
    images, labels = torch.rand(3, 1, 28, 28), torch.arange(3)
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: dict[str, torch.Tensor], image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(model, weights, image[None]), label[None])

    found = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, images, labels)
    for i in range(3):
        expected = torch.autograd.grad(F.cross_entropy(model(images[i : i + 1]), labels[i : i + 1]), model.conv.weight)
        torch.testing.assert_close(found["conv.weight"][i], expected[0])


def test_many_gradients_at_once() -> None:
    x = leaf(2, 3)
    out = F.relu(x)
    grads = torch.randn(4, 2, 3, dtype=torch.float64)
    (found,) = torch.autograd.grad(out, x, grads, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(
        found, torch.stack([torch.autograd.grad(out, x, g, retain_graph=True)[0] for g in grads])
    )


@pytest.mark.parametrize("layer", [name for name in LAYERS if name != "flatten"])
def test_forward_derivatives_are_refused_not_lost(layer: str) -> None:
    function, shapes = LAYERS[layer]
    args = tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(function, args, args)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        function(*(torch.autograd.forward_ad.make_dual(a, a) for a in args))


def test_third_derivatives_work_or_say_that_they_do_not() -> None:
    x = leaf(2, 3)
    for layer in (F.relu, lambda x: F.softmax(x, 1), lambda x: F.cross_entropy(x, torch.tensor([0, 1]))):
        value = layer(x).square().sum()
        for _ in range(3):
            (grad,) = torch.autograd.grad(value, x, create_graph=True)
            value = grad.square().sum()
        assert grad.isfinite().all()


@pytest.mark.parametrize("needed", range(3))
@pytest.mark.parametrize("layer", ["conv2d", "linear"])
def test_gradients_of_one_argument_alone(layer: str, needed: int, variant: str) -> None:
    function, shapes = LAYERS[layer]
    args = [leaf(*shape).detach() for shape in shapes]
    args[needed].requires_grad_()
    (found,) = torch.autograd.grad(function(*args, variant=variant).sum(), args[needed])
    torch.testing.assert_close(found, torch.autograd.grad(function(*args, variant="torch").sum(), args[needed])[0])


@pytest.mark.parametrize("layer", LAYERS)
def test_deterministic_algorithms_are_what_it_has(layer: str, variant: str) -> None:
    function, shapes = LAYERS[layer]
    torch.use_deterministic_algorithms(True)
    try:
        results(lambda *args: function(*args, variant=variant), *(leaf(*shape) for shape in shapes))
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_meta_device_has_shapes_only() -> None:
    model = jitconv.SimpleConvNet().to("meta")
    logits = model(torch.empty(0, 1, 28, 28, device="meta"))
    assert (logits.shape, logits.device.type) == ((0, 10), "meta")
    F.cross_entropy(logits, torch.empty(0, device="meta", dtype=torch.int64)).backward()
    assert model.conv.weight.grad.is_meta


def test_hooks_copies_and_pickles() -> None:
    model = jitconv.SimpleConvNet("jit")
    seen: list[str] = []
    model.conv.register_forward_hook(lambda *_: seen.append("forward"))
    model.conv.register_full_backward_hook(lambda *_: seen.append("backward"))
    model(torch.rand(1, 1, 28, 28)).sum().backward()
    assert seen == ["forward", "backward"]
    model = jitconv.SimpleConvNet("jit")
    x = torch.rand(2, 1, 28, 28)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
        assert other.conv.variant == "jit"


def test_weights_change_hands_with_torchs_layers() -> None:
    plain = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(18, 4))
    ours = torch.nn.Sequential(jitconv.nn.Conv2d(1, 2, 3), jitconv.nn.Flatten(), jitconv.nn.Linear(18, 4))
    x = torch.rand(2, 1, 5, 5)
    for source, target in ((plain, ours), (ours, plain)):
        for weight in target.parameters():
            torch.nn.init.normal_(weight)
        target.load_state_dict(source.state_dict())
        torch.testing.assert_close(target(x), source(x))


def test_memory_saving_checkpoints_and_hooks_of_saved_tensors() -> None:
    model = jitconv.SimpleConvNet()
    x = torch.rand(2, 1, 28, 28)
    expected = torch.autograd.grad(model(x).sum(), model.conv.weight)
    again = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(again.sum(), model.conv.weight), expected)
    with torch.autograd.graph.save_on_cpu():
        torch.testing.assert_close(torch.autograd.grad(model(x).sum(), model.conv.weight), expected)


def test_writing_into_what_a_gradient_needs_is_noticed(variant: str) -> None:
    x, w = leaf(1, 1, 3, 3) * 1, leaf(1, 1, 2, 2)
    out = F.conv2d(x, w, variant=variant)
    x.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
