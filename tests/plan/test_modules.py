"""Plans of modules as users write them: torch's numbers, its structures, its errors; and what a plan leaves alone."""

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jitconv

Forward = Callable[..., Any]


class Module(nn.Module):
    """Layers, and a forward that gets this module and the inputs."""

    def __init__(self, forward: Forward, **layers: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Any) -> Any:
        return self.run(self, *inputs)


def conv(c_in: int, c_out: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, **options)


def close(got: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    """Equal structures of tensors, numbers within 1e-5 of the largest."""
    if isinstance(wanted, Tensor):
        assert isinstance(got, Tensor)
        assert got.shape == wanted.shape
        assert got.dtype == wanted.dtype
        scale = wanted.abs().max() if wanted.numel() else 1.0
        assert torch.allclose(got, wanted, rtol=0, atol=float(tolerance * scale), equal_nan=True)
    elif isinstance(wanted, dict):
        assert list(got) == list(wanted)
        for name in wanted:
            close(got[name], wanted[name], tolerance)
    elif isinstance(wanted, (tuple, list)):
        assert type(got) is type(wanted)
        for ours, theirs in zip(got, wanted, strict=True):
            close(ours, theirs, tolerance)
    else:
        assert got == wanted


def branches(m: Any, x: Tensor) -> Tensor:
    z = F.relu(m.a(x))
    return torch.cat([F.relu(m.b(z)), m.c(z), z], 1)


def nested(m: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Parts of two concatenations, of which one is a part of the other; p and `inner` are results as well."""
    p = m.a(x)
    q = m.b(p)
    r = m.b(q)
    inner = torch.cat([r, p], 1)
    return torch.cat([torch.cat([r, q], 1), r, q], 1), torch.cat([inner, r, x], 1), inner, p.flatten(1)


def same_part(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    p = m.a(x)
    q = m.b(p)
    return torch.cat([torch.cat([q, q], 1), q], 1), torch.cat([p.flatten(1), torch.cat([q, p], 1).flatten(1)], 1)


def empty_part(m: Any, x: Tensor) -> Tensor:
    return m.b(torch.cat([m.a(x), x, x[:, :0]], 1))


def twice(m: Any, x: Tensor) -> Tensor:
    return m.a(F.relu(m.a(x)))


def in_place(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    z = m.a(x)
    y = z.view(z.shape[0], -1)
    F.relu_(z)
    return z, y + 1


def views(m: Any, x: Tensor) -> Tensor:
    z = m.a(x)
    return m.fc(z.permute(0, 2, 3, 1).reshape(-1, 8)).transpose(0, 1)[:, 2:5] * 2


def structures(m: Any, x: Tensor, more: dict[str, Tensor]) -> dict[str, Any]:
    z = m.a(x + more["y"])
    return {"pair": (z, z.mean((2, 3))), "input": more["y"], "none": None, "list": [F.softmax(z.flatten(1), 1)]}


X = (2, 4, 9, 10)
MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "functional": (lambda: Module(lambda m, x: F.max_pool2d(F.relu(m.a(x)), 2).flatten(1), a=conv(4, 8)), (X,)),
    "residual": (lambda: Module(lambda m, x: F.relu(m.b(F.relu(m.a(x))) + x), a=conv(4, 8), b=conv(8, 4)), (X,)),
    "branches": (lambda: Module(branches, a=conv(4, 8), b=conv(8, 3), c=conv(8, 5, 1)), (X,)),
    "one image": (lambda: Module(branches, a=conv(4, 8), b=conv(8, 3), c=conv(8, 5, 1)), ((1, *X[1:]),)),
    "nested concatenations": (lambda: Module(nested, a=conv(3, 3), b=conv(3, 3)), ((1, 3, 6, 7),)),
    "nested concatenations of whole blocks": (lambda: Module(nested, a=conv(16, 16), b=conv(16, 16)), ((1, 16, 6, 7),)),
    "nested concatenations of two images": (lambda: Module(nested, a=conv(3, 3), b=conv(3, 3)), ((2, 3, 6, 7),)),
    "one image twice in a concatenation": (lambda: Module(same_part, a=conv(3, 3), b=conv(3, 3)), ((1, 3, 6, 7),)),
    "an empty part of a concatenation": (lambda: Module(empty_part, a=conv(3, 3), b=conv(6, 3)), ((1, 3, 6, 7),)),
    "a cast": (lambda: Module(lambda m, x: m.b(m.a(x).double().to(x.dtype)), a=conv(4, 8), b=conv(8, 4)), (X,)),
    "a layer called twice": (lambda: Module(twice, a=conv(4, 4)), (X,)),
    "in place": (lambda: Module(in_place, a=conv(4, 8)), (X,)),
    "views": (lambda: Module(views, a=conv(4, 8), fc=nn.Linear(8, 6)), (X,)),
    "structures": (lambda: Module(structures, a=conv(4, 8)), (X, {"y": X})),
    "no batch": (lambda: Module(lambda m, x: F.max_pool2d(F.relu(m.a(x)), 2), a=conv(4, 8)), (X[1:],)),
    "batch norm": (
        lambda: nn.Sequential(nn.BatchNorm2d(4), conv(4, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout()),
        (X,),
    ),
    "batch norm in training": (lambda: nn.Sequential(conv(4, 8), nn.BatchNorm2d(8), nn.ReLU()).train(), (X,)),
    "bounded": (lambda: nn.Sequential(conv(4, 8), nn.ReLU6(), conv(8, 8), nn.Hardswish(), conv(8, 4), nn.SiLU()), (X,)),
    "too much for the second-level cache": (
        lambda: nn.Sequential(
            *(conv(3, 48, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2), conv(48, 96), conv(96, 96, groups=96, stride=2))
        ),
        ((1, 3, 216, 214),),
    ),
    "depthwise": (lambda: nn.Sequential(conv(4, 4, groups=4), nn.ReLU6(), conv(4, 6, 1), nn.AvgPool2d(3, 2, 1)), (X,)),
    "adaptive": (lambda: nn.Sequential(conv(4, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)), (X,)),
    "linear alone": (
        lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3), nn.LogSoftmax(-1)),
        ((2, 3, 5),),
    ),
    "linear and norm": (lambda: nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Sigmoid()), ((6, 5),)),
    "ours": (lambda: nn.Sequential(jitconv.nn.Conv2d(4, 8, 3), jitconv.nn.ReLU(), jitconv.nn.MaxPool2d(2)), (X,)),
    "same padding": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, padding="same"), nn.Conv2d(8, 4, 2, padding="same")),
        (X,),
    ),
    "reflected padding": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect")), (X,)),
    "torch's own": (
        lambda: nn.Sequential(conv(4, 8), nn.GELU(), nn.GroupNorm(2, 8), nn.ConvTranspose2d(8, 4, 2)),
        (X,),
    ),
    "nothing at all": (lambda: nn.Sequential(), (X,)),
    "no image": (lambda: nn.Sequential(conv(4, 8), nn.ReLU()), ((0, *X[1:]),)),
}


def made(shapes: Any, dtype: torch.dtype) -> Any:
    if isinstance(shapes, dict):
        return {name: made(shape, dtype) for name, shape in shapes.items()}
    return torch.randn(shapes, dtype=dtype)


def prepared(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, list[Any]]:
    build, shapes = MODULES[name]
    model = build().to(dtype)
    if name != "batch norm in training":
        model.eval()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model, [made(shape, dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_modules_give_torchs_numbers(name: str, dtype: torch.dtype) -> None:
    model, inputs = prepared(name, dtype)
    reference = copy.deepcopy(model)
    plan = jitconv.plan(model, *inputs)
    for scale in (1.0, -2.0):
        given = [torch.utils._pytree.tree_map(torch.tensor(scale, dtype=dtype).mul, x) for x in inputs]
        with torch.no_grad():
            wanted = reference(*given)
        close(plan(*given), wanted, 1e-5 if dtype == torch.float32 else 1e-13)
    for ours, theirs in zip(model.state_dict().values(), reference.state_dict().values(), strict=True):
        close(ours, theirs)  # the statistics of a batch norm in training among them


def simple() -> tuple[nn.Module, Tensor]:
    return prepared("residual")[0], torch.randn(X)


def test_any_variant_can_compute_a_plan(variant: str) -> None:
    model, x = simple()
    x = x[:1, :, :4, :4]
    with torch.no_grad():
        close(jitconv.plan(model, x, variant=variant)(x), model(x))


def test_results_are_new_each_time_and_inputs_stay() -> None:
    model, x = simple()
    plan, before = jitconv.plan(model, x), x.clone()
    first = plan(x)
    kept = first.clone()
    plan(torch.randn(X))
    assert torch.equal(first, kept)
    assert torch.equal(x, before)


def test_an_input_that_the_model_changes_in_place_is_changed() -> None:
    model, x = nn.ReLU(inplace=True), torch.randn(3, 4)
    plan, wanted = jitconv.plan(model, x.clone()), x.relu()
    result = plan(x)
    assert torch.equal(x, wanted)
    assert torch.equal(result, wanted)


def test_another_batch_is_planned_when_it_comes() -> None:
    model, x = simple()
    plan = jitconv.plan(model, x)
    for batch in (1, 5, 2):
        x = torch.randn(batch, *X[1:])
        with torch.no_grad():
            close(plan(x), model(x))


def test_arrays_give_arrays() -> None:
    model, x = simple()
    plan = jitconv.plan(model, x.numpy())
    result = plan(np.asfortranarray(x.numpy()))
    assert isinstance(result, np.ndarray)
    with torch.no_grad():
        close(torch.from_numpy(result), model(x))


def test_any_strides_and_a_negative_view_are_read_as_they_mean() -> None:
    model, x = simple()
    plan = jitconv.plan(model, x)
    negative = torch.complex(x, x).conj().imag
    assert negative.is_neg()
    with torch.no_grad():
        for given in (x.to(memory_format=torch.channels_last), x.flip(2).transpose(2, 3).transpose(3, 2), negative):
            close(plan(given), model(given))


def change_in_place(model: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(X)).square().sum().backward()
    optimizer.step()


def load(model: Any) -> None:
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})


def replace_parameter(model: Any) -> None:
    model.a.weight = nn.Parameter(torch.randn_like(model.a.weight))


def replace_data(model: Any) -> None:
    model.a.weight.data = torch.randn_like(model.a.weight)


def replace_module(model: Any) -> None:
    model.a = conv(4, 8)


def add_bias(model: Any) -> None:
    model.a.bias = nn.Parameter(torch.randn(8))


def change_statistics(model: Any) -> None:
    model.n.running_var.mul_(3)


CHANGES = (change_in_place, load, replace_parameter, replace_data, replace_module, add_bias, change_statistics)


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_seen_by_the_next_call(change: Callable[[Any], None]) -> None:
    model: Any = Module(
        lambda m, x: m.n(m.b(F.relu(m.a(x)))), a=conv(4, 8, bias=False), b=conv(8, 4), n=nn.BatchNorm2d(4)
    )
    model.eval()
    x = torch.randn(X)
    plan = jitconv.plan(model, x)
    before = plan(x)
    change(model)
    with torch.no_grad():
        close(plan(x), model(x))
    assert not torch.allclose(plan(x), before)


def test_what_torch_does_not_count_is_seen_after_refresh() -> None:
    model, x = prepared("batch norm")[0], torch.randn(X)
    plan = jitconv.plan(model, x)
    plan(x)
    model[1].weight.data.mul_(2)  # type: ignore[index, operator, union-attr]
    plan.refresh()
    with torch.no_grad():
        close(plan(x), model(x))


def test_weights_that_are_computed_are_packed_at_each_call() -> None:
    model: Any = Module(
        lambda m, x: F.conv2d(F.conv2d(x, m.w, m.b(x[0, 0, 0])), m.a(x[0, 0, 0]).view(16, 16, 1, 1)),
        a=nn.Linear(X[3], 256), b=nn.Linear(X[3], 16),
    )  # fmt: skip
    model.w = nn.Parameter(torch.randn(16, X[1], 3, 3))
    plan = jitconv.plan(model, torch.randn(X))
    for _ in range(3):
        x = torch.randn(X)
        with torch.no_grad():
            close(plan(x), model(x))


def test_two_inputs_may_be_one_tensor_and_then_two() -> None:
    model: Any = Module(lambda m, x, y: m.a(x) + y[:, :1], a=conv(X[1], 8))
    x, y = torch.randn(X), torch.randn(X)
    plan = jitconv.plan(model, x, y)
    for pair in ((x, x), (x, y), (y, x)):
        with torch.no_grad():
            close(plan(*pair), model(*pair))


def test_weights_that_are_not_finite_give_what_torch_gives() -> None:
    model: Any = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2))
    x = torch.randn(1, 1, 8, 8)
    plan = jitconv.plan(model, x)
    for value in (float("inf"), 1.0):
        with torch.no_grad():
            model[0].weight[0, 0, 0, 0] = value
            torch.testing.assert_close(plan(x), model(x), equal_nan=True)


def test_batch_sizes_share_what_was_packed() -> None:
    model: Any = nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 16), nn.Flatten()).eval()
    plan = jitconv.plan(model, torch.randn(1, 3, 8, 8))
    plan(torch.randn(1, 3, 8, 8))
    plan(torch.randn(5, 3, 8, 8))
    one, five = ({t.data_ptr() for t in p.now.contiguous.values()} for p in plan._programs.values() if p.now)
    assert one == five


def test_shared_weights_that_part_are_seen() -> None:
    model: Any = Module(lambda m, x: m.b(m.a(x)), a=conv(4, 4), b=conv(4, 4))
    model.b.weight = model.a.weight
    x = torch.randn(X)
    plan = jitconv.plan(model, x)
    plan(x)
    model.b.weight = nn.Parameter(torch.randn_like(model.a.weight))
    with torch.no_grad():
        close(plan(x), model(x))


def test_the_model_is_left_as_it_was() -> None:
    model, x = simple()
    called: list[int] = []
    model.register_forward_hook(lambda *args: called.append(1))
    state, keys = copy.deepcopy(model.state_dict()), set(vars(model))
    jitconv.plan(model, x)(x)
    assert set(vars(model)) == keys
    assert list(model.state_dict()) == list(state)
    called.clear()
    model(x)
    assert called == [1]
    net = jitconv.SimpleConvNet()
    jitconv.plan(net, torch.randn(1, 1, 28, 28))
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        close(copied.state_dict(), net.state_dict())


def test_two_threads_may_call_one_plan() -> None:
    model, x = simple()
    plan = jitconv.plan(model, x)
    inputs = [torch.randn(X) for _ in range(4)]
    with torch.no_grad():
        wanted = [model(each) for each in inputs]
    failed: list[BaseException] = []

    def call(i: int) -> None:
        try:
            for _ in range(200):
                close(plan(inputs[i]), wanted[i])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_ten_thousand_calls_take_no_memory() -> None:
    model, x = simple()
    plan = jitconv.plan(model, x)
    for _ in range(1000):
        plan(x)
    before = psutil.Process().memory_info().rss
    for _ in range(10_000):
        plan(x)
    assert psutil.Process().memory_info().rss - before < 2 << 20


class Depends(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # data decides
            return x
        return -x


WRONG: dict[str, tuple[Callable[[Any, Tensor], Any], type[Exception], str]] = {
    "no module": (lambda p, x: jitconv.plan(F.relu, x), TypeError, "model must be a torch.nn.Module"),  # type: ignore[arg-type]
    "no example": (lambda p, x: jitconv.plan(nn.ReLU()), ValueError, "example must be at least one input"),
    "unknown variant": (lambda p, x: jitconv.plan(nn.ReLU(), x, variant="fast"), ValueError, "variant must be one of"),
    "half": (lambda p, x: p(x.half()), TypeError, "input 0 must be float32 or float64, got torch.float16"),
    "other dtype": (lambda p, x: p(x.double()), TypeError, "must be torch.float32 as in the example"),
    "other shape": (lambda p, x: p(x[:, :, :5]), ValueError, "must have the example's shape"),
    "no tensor": (lambda p, x: p(3), ValueError, "input 0 must be"),
    "too many": (lambda p, x: p(x, x), ValueError, "inputs must have the example's structure"),
    "meta": (lambda p, x: p(x.to("meta")), TypeError, "input 0 must be a plain tensor"),
    "gradient": (lambda p, x: p(x.requires_grad_()), ValueError, "must not require a gradient"),
    "vmap": (lambda p, x: torch.vmap(p)(x[None]), TypeError, "outside torch.func's transforms"),
    "data decides": (lambda p, x: jitconv.plan(Depends(), x), ValueError, r"cannot be captured.*test_modules.py.*line"),
}


@pytest.mark.parametrize("what", WRONG)
def test_errors_name_the_argument_its_value_and_the_rule(what: str) -> None:
    call, kind, message = WRONG[what]
    model, x = simple()
    plan = jitconv.plan(model, x)
    with pytest.raises(kind, match=message):
        call(plan, x)


def test_a_torch_step_that_fails_names_itself_and_its_line() -> None:
    class Gather(nn.Module):
        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            return x[index]

    x, index = torch.randn(3, 2), torch.tensor([0, 1])
    plan = jitconv.plan(Gather(), x, index)
    with pytest.raises(IndexError) as caught:
        plan(x, torch.tensor([0, 7]))
    assert "in the step torch aten.index" in "".join(caught.value.__notes__)


def test_the_name_plan_is_the_function_whatever_is_imported() -> None:
    import jitconv.plan.run

    assert callable(jitconv.plan)
    assert isinstance(jitconv.plan(nn.ReLU(), torch.randn(2)), jitconv.plan.run.Plan)


def test_a_plan_and_its_profile_name_every_step() -> None:
    model: Any = nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.ReLU(), nn.GELU(), nn.Flatten(), nn.Linear(2880, 10)
    )
    x = torch.randn(1, 1, 28, 28)
    plan = jitconv.plan(model, x)
    assert "conv2d + max_pool2d" in str(plan)
    assert "torch aten.gelu" in str(plan)
    profile = plan.profile(x, repeats=3)
    assert len(profile.rows) == len(plan.program.steps) > 3
    assert all(row.microseconds > 0 for row in profile.rows)
    assert profile.rows[0].gflops > 0
    assert "GFLOP/s" in str(profile)
