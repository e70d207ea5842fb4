"""The CUDA variants on a GPU against torch on the same GPU; skipped where there is none."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import jitconv
from jitconv import functional, nn, variants
from jitconv.cases import CASES, Case
from jitconv.train import Config, Run
from jitconv.verify import check

MISSING = variants.missing("cuda")
if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

NAMES = ("cuda", "cuda-tiled")


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(params=NAMES)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_equal_torch(case: Case, variant: str, dtype: str) -> None:
    wrong = [result for result in check(case, variant, dtype, device="cuda") if not result.ok]
    assert not wrong


def test_layers_with_relu() -> None:
    ops = variants.get("cuda-tiled").ops
    for images, filters in ((2, 2), (2, 40)):  # by one thread an element, and in tiles
        x, weight = torch.randn(images, 3, 9, 9, device="cuda"), torch.randn(filters, 3, 3, 3, device="cuda")
        bias, (z, out) = torch.randn(filters, device="cuda"), torch.empty(2, images, filters, 7, 7, device="cuda")
        ops["conv2d"](x, weight, bias, (1, 1), (0, 0), (1, 1), z)
        ops["conv2d_relu"](x, weight, bias, (1, 1), (0, 0), (1, 1), out)
        assert torch.equal(out, z.relu())
    for inputs in (3, 2880):  # in one block, and split between blocks
        x, weight = torch.randn(64, inputs, device="cuda"), torch.randn(500, inputs, device="cuda")
        bias, (z, out) = torch.randn(500, device="cuda"), torch.empty(2, 64, 500, device="cuda")
        ops["linear"](x, weight, bias, z)
        ops["linear_relu"](x, weight, bias, out)
        assert torch.equal(out, z.relu())


@pytest.mark.parametrize("shape", [(4096, 2880, 500), (64, 2880, 500), (1031, 517, 2053)], ids=str)
def test_products_of_every_tile(shape: tuple[int, int, int], variant: str) -> None:
    N, I, O = shape
    x, weight, bias = torch.randn(N, I, device="cuda"), torch.randn(O, I, device="cuda"), torch.randn(O, device="cuda")
    exact = x.double() @ weight.double().T + bias.double()
    allowed = 4 * torch.finfo(torch.float32).eps * (x.abs().double() @ weight.abs().double().T + bias.abs().double())
    assert ((functional.linear(x, weight, bias, variant=variant) - exact).abs() <= allowed).all()


def test_launches_go_to_the_current_stream(variant: str) -> None:
    x = torch.randn(64, 3, 32, 32, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # what the default stream did not wait for would run before this ends
        x.fill_(2.0)
        out = functional.relu(x, variant=variant)
    stream.synchronize()
    assert (out == 2).all()


def test_a_captured_step_replays_on_new_inputs(variant: str) -> None:
    model = jitconv.SimpleConvNet(variant=variant).cuda()
    images, labels = torch.randn(8, 1, 28, 28, device="cuda"), torch.arange(8, device="cuda")

    def step() -> torch.Tensor:
        loss = functional.cross_entropy(model(images), labels, variant=variant)
        return torch.autograd.grad(loss, model.fc1.weight)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    images.normal_()
    graph.replay()
    replayed = captured.clone()
    assert torch.equal(replayed, step())


@pytest.mark.parametrize("name", [*NAMES, "torch"])
def test_training_with_captured_steps_is_training(name: str, tmp_path: Path) -> None:
    losses = []
    for graph in (False, True):
        config = Config(name, device="cuda", epochs=2, limit=64 * 8 + 5, graph=graph)  # the last batch is smaller
        result = Run(config, tmp_path / str(graph)).run(lambda done, total: None, lambda epoch: None)
        losses.append(result["first_losses"] + [epoch["loss"] for epoch in result["epochs"]])
    # torch adds up some gradients in another order each time.
    assert losses[1] == pytest.approx(losses[0], rel=1e-2 if name == "torch" else 1e-6)


def test_host_threads_with_streams_of_their_own(variant: str) -> None:
    def work(number: int) -> bool:
        with torch.cuda.stream(torch.cuda.Stream()):
            results = []
            for _ in range(50):
                x = torch.full((257,), float(number), device="cuda")
                results.append(functional.relu(x, variant=variant))
            return all(bool((result == number).all()) for result in results)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(32)))


def test_more_elements_than_32_bits_count(variant: str) -> None:
    images = 2**31 // (4 * 1024) + 1
    if torch.cuda.mem_get_info()[0] < 5 * 4 * images * 4 * 1024:
        pytest.skip("too little memory")
    x = torch.zeros(images, 1, 4, 1024, device="cuda")
    x[-1, 0, -1, -1] = x[0, 0, 0, 0] = 3.0
    result = functional.relu(x, variant=variant)
    assert result[-1, 0, -1, -1] == result[0, 0, 0, 0] == 3
    assert result.sum() == 6
    pooled = functional.max_pool2d(x, 2, variant=variant)
    assert pooled[-1, 0, -1, -1] == pooled[0, 0, 0, 0] == 3
    assert pooled.sum() == 6


class Segmenter(torch.nn.Module):
    """Every layer, a depthwise convolution and samples side by side in memory among them: (N, 4, H, W) → loss."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4, 8, 3, padding=1, groups=4, variant=variant)
        self.pool, self.relu = nn.MaxPool2d(2, variant=variant), nn.ReLU(variant=variant)
        self.wide, self.last = nn.Conv2d(8, 40, 3, variant=variant), nn.Conv2d(40, 40, 1, variant=variant)
        self.variant = variant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.last(self.relu(self.wide(self.pool(self.depthwise(x)))))
        labels = torch.arange(logits[:, 0].numel(), device=x.device).view_as(logits[:, 0]) % 40
        return functional.cross_entropy(logits, labels, label_smoothing=0.1, variant=self.variant)


def gradients(model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(model(x), list(model.parameters())))


def close(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(ours, theirs, strict=True))


def models(variant: str, device: str) -> tuple[Segmenter, Segmenter]:
    ours, theirs = Segmenter(variant).to(device), Segmenter("torch").to(device)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_forward_and_backward_on_another_gpu_than_the_current(variant: str) -> None:
    for device in ("cuda:0", "cuda:1", "cuda:0"):  # with equal shapes: nothing prepared for one may serve the other
        ours, theirs = models(variant, device)
        x = torch.randn(3, 4, 16, 12, device=device)
        assert close(gradients(ours, x), gradients(theirs, x))
        assert torch.cuda.current_device() == 0


def test_backward_runs_on_the_stream_of_its_forward(variant: str) -> None:
    ours, theirs = models(variant, "cuda")
    batch = torch.randn(3, 4, 16, 12, device="cuda")
    gradients(ours, batch)
    expected = gradients(theirs, batch)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = torch.zeros_like(batch)
        torch.cuda._sleep(100_000_000)
        x.copy_(batch)
        loss = ours(x)
    loss.backward()  # by autograd's thread; from the default stream, which has not waited
    torch.cuda.synchronize()
    assert close([parameter.grad for parameter in ours.parameters()], expected)


def test_nothing_waits_for_the_gpu(variant: str) -> None:
    ours, _ = models(variant, "cuda")
    x = torch.randn(3, 4, 16, 12, device="cuda")
    gradients(ours, x)
    torch.cuda.set_sync_debug_mode("error")  # of torch's own calls
    try:
        gradients(ours, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_every_layer_is_captured(variant: str) -> None:
    ours, _ = models(variant, "cuda")
    x = torch.randn(3, 4, 16, 12, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        gradients(ours, x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(ours, x)
    x.normal_()
    graph.replay()
    replayed = [grad.clone() for grad in captured]
    assert all(map(torch.equal, replayed, gradients(ours, x)))


def test_training_follows_torch(variant: str) -> None:
    images, labels = torch.randn(32, 1, 28, 28, device="cuda"), torch.arange(32, device="cuda") % 10
    losses = []
    for name in ("torch", variant):
        torch.manual_seed(0)
        model = jitconv.SimpleConvNet(variant=name).cuda()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        history = []
        for _ in range(10):
            optimiser.zero_grad()
            loss = functional.cross_entropy(model(images), labels, variant=name)
            loss.backward()
            optimiser.step()
            history.append(loss.item())
        losses.append(history)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
