"""Every rewrite alone: it changes a graph that it is for, and the graph computes what it did."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from jitconv import variants
from jitconv.plan.buffers import Buffer, assign
from jitconv.plan.capture import Captured, capture
from jitconv.plan.rewrite import REWRITES
from jitconv.plan.run import build


class Module(nn.Module):
    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def norm(channels: int) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(channels)
    for tensor in (made.running_var, made.weight):
        nn.init.uniform_(tensor, 0.5, 2)  # type: ignore[arg-type]
    for tensor in (made.running_mean, made.bias):
        nn.init.normal_(tensor)  # type: ignore[arg-type]
    return made


def pooled(m: Any, x: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(m.a(x)), 2)


CASES: dict[str, tuple[Callable[[], nn.Module], int]] = {  # a graph for a rewrite, and how many places it changes
    "canonical": (lambda: Module(lambda m, x: F.relu(m.a(x)).clone(), a=nn.Conv2d(3, 8, 3)), 3),
    "join_reshapes": (lambda: Module(lambda m, x: m.a(x).flatten(1).view(2, -1, 8), a=nn.Conv2d(3, 8, 3)), 1),
    "fold_affine": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.Conv2d(8, 8, 1, bias=False), norm(8)), 2),
    "fuse_residual": (lambda: Module(lambda m, x: m.a(x) + x, a=nn.Conv2d(3, 3, 3, padding=1)), 1),
    "fuse_activation": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(512, 3), nn.ReLU()),
        2,
    ),
    "fuse_max_pool": (lambda: Module(pooled, a=nn.Conv2d(3, 8, 3)), 1),
}


def captured(name: str) -> tuple[nn.Module, Tensor, Captured]:
    model, x = CASES[name][0]().eval(), torch.randn(2, 3, 10, 10)
    return model, x, capture(model, (x,))


def check(got: Any, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        wanted = model(x)
    assert torch.allclose(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_every_rewrite_has_a_case() -> None:
    assert CASES.keys() == REWRITES.keys()


@pytest.mark.parametrize("name", REWRITES)
def test_a_rewrite_changes_its_graph_and_not_what_that_computes(name: str) -> None:
    model, x, made = captured(name)
    graph = made.graph.graph
    for before, rewrite in REWRITES.items():  # those that it builds on
        count = rewrite(graph)
        if before == name:
            break
    assert count == CASES[name][1]
    results = fx.GraphModule(made.graph, graph)(*[source.of([x]) for source in made.sources])
    check(results[0], model, x)


@pytest.mark.parametrize("name", REWRITES)
def test_a_plan_computes_the_same_without_a_rewrite(name: str) -> None:
    model, x, made = captured(name)
    for off in ((), (name,)):
        program = build(capture(model, (x,)), variants.get("jit-tiled"), off)
        check(program([x])[0], model, x)


def test_what_is_used_twice_is_not_fused_away() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        z = m.a(x)
        return F.relu(m.n(z)) + z.abs() + F.max_pool2d(z, 1)

    model, x = Module(forward, a=nn.Conv2d(3, 8, 3), n=norm(8)).eval(), torch.randn(2, 3, 10, 10)
    program = build(capture(model, (x,)), variants.get("jit-tiled"))
    check(program([x])[0], model, x)


def test_buffers_that_live_together_do_not_overlap() -> None:
    torch.manual_seed(0)
    for _ in range(50):
        buffers = []
        for _ in range(20):
            first, length, size = (int(n) for n in torch.randint(0, 10, (3,)))
            buffers.append(Buffer("arena", 100 * size, first=first, last=first + length))
        total = assign(buffers)
        for i, a in enumerate(buffers):
            assert a.offset % 64 == 0
            assert a.offset + a.nbytes <= total
            for b in buffers[:i]:
                together = a.first <= b.last and b.first <= a.last
                apart = a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset
                assert apart or not together or a.nbytes * b.nbytes == 0


def test_memory_is_used_again() -> None:
    model, x = nn.Sequential(*[nn.Conv2d(8, 8, 3, padding=1) for _ in range(8)]), torch.randn(2, 8, 16, 16)
    program = build(capture(model, (x,)), variants.get("jit-tiled"))
    assert program.arena <= 2 * 2 * 16 * 16 * 16 * 4
