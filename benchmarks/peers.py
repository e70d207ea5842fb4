"""Other engines on the same network, each in processes of its own; one that is not installed is a named gap."""

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

MOMENTUM, RATE = 0.9, 0.01


def _onnx(model: nn.Module, batch: int) -> bytes:
    """SimpleConvNet as an ONNX file."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    weights = [onnx.numpy_helper.from_array(value.numpy(), name) for name, value in model.state_dict().items()]
    nodes = [
        make.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["a"]),
        make.make_node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2]),
        make.make_node("Flatten", ["b"], ["c"]),
        make.make_node("Gemm", ["c", "fc1.weight", "fc1.bias"], ["d"], transB=1),
        make.make_node("Relu", ["d"], ["e"]),
        make.make_node("Gemm", ["e", "fc2.weight", "fc2.bias"], ["z"], transB=1),
    ]
    ends = [
        make.make_tensor_value_info(name, kind, shape)
        for name, shape in (("x", [batch, 1, 28, 28]), ("z", [batch, 10]))
    ]
    graph = make.make_graph(nodes, "SimpleConvNet", ends[:1], ends[1:], weights)
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9).SerializeToString()


def onnxruntime(model: nn.Module, images: Tensor, threads: int) -> Callable[[], Any]:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    return _onnxruntime_session(ort, _onnx(model, len(images)), images, threads)


def _onnxruntime_session(ort: Any, file: bytes, images: Tensor, threads: int) -> Callable[[], Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    x = images.numpy()
    return lambda: session.run(None, {"x": x})[0]


def openvino(model: nn.Module, images: Tensor, threads: int) -> Callable[[], Any]:
    ov = pytest.importorskip("openvino", reason="openvino is not installed")
    return _openvino_request(ov, ov.Core().read_model(_onnx(model, len(images))), images, threads)


def _openvino_request(ov: Any, network: Any, images: Tensor, threads: int) -> Callable[[], Any]:
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(network, "CPU", settings).create_infer_request()
    x = images.numpy()
    return lambda: request.infer([x])[0]


def _jax_logits(jax: Any) -> Callable[[Any, Any], Any]:
    def logits(weights: Any, x: Any) -> Any:
        numpy, lax = jax.numpy, jax.lax
        x = lax.conv(x, weights["conv.weight"], (1, 1), "VALID") + weights["conv.bias"][:, None, None]
        x = lax.reduce_window(x, -numpy.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID").reshape(len(x), -1)
        x = numpy.maximum(x @ weights["fc1.weight"].T + weights["fc1.bias"], 0)
        return x @ weights["fc2.weight"].T + weights["fc2.bias"]

    return logits


def _jax() -> Any:
    """JAX, which takes its number of threads from the cores that this process has when it is imported."""
    return pytest.importorskip("jax", reason="jax is not installed")


def jax(model: nn.Module, images: Tensor, threads: int) -> Callable[[], Any]:
    library = _jax()
    weights = {name: library.numpy.asarray(value.numpy()) for name, value in model.state_dict().items()}
    x, forward = library.numpy.asarray(images.numpy()), library.jit(_jax_logits(library))
    return lambda: np.array(forward(weights, x).block_until_ready())


def jax_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], Any]:
    library = _jax()
    logits = _jax_logits(library)

    def loss(weights: Any, x: Any, y: Any) -> Any:
        log_p = library.nn.log_softmax(logits(weights, x))
        return -log_p[library.numpy.arange(len(y)), y].mean()

    @library.jit
    def step(weights: Any, speed: Any, x: Any, y: Any) -> Any:
        value, slope = library.value_and_grad(loss)(weights, x, y)
        speed = library.tree.map(lambda v, g: MOMENTUM * v + g, speed, slope)
        return library.tree.map(lambda w, v: w - RATE * v, weights, speed), speed, value

    weights = {name: library.numpy.asarray(value.numpy()) for name, value in model.state_dict().items()}
    state = [weights, library.tree.map(library.numpy.zeros_like, weights)]
    x, y = library.numpy.asarray(images.numpy()), library.numpy.asarray(labels.numpy())

    def run() -> Any:
        *state[:], value = step(*state, x, y)
        return value.block_until_ready()

    return run


def torch_compile(model: nn.Module, images: Tensor, threads: int) -> Callable[[], Any]:
    compiled = torch.compile(_plain(model), dynamic=False)
    return lambda: compiled(images)


def torch_compile_step(
    model: nn.Module, images: Tensor, labels: Tensor, backend: str = "inductor"
) -> Callable[[], Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    compiled = torch.compile(_plain(model), dynamic=False, backend=backend)

    def run() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(compiled(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return run


def _plain(model: Any) -> nn.Module:
    """The network as torch's own layers, on the model's parameters."""
    plain = nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2880, 500), nn.ReLU(), nn.Linear(500, 10)
    )
    for place, layer in ((0, model.conv), (3, model.fc1), (5, model.fc2)):
        plain[place].weight, plain[place].bias = layer.weight, layer.bias
    return plain


def torch_compile_model(model: nn.Module, images: Tensor, threads: int) -> Callable[[], Any]:
    compiled = torch.compile(model, dynamic=False)
    return lambda: compiled(images)


def openvino_model(model: nn.Module, images: Tensor, threads: int) -> Callable[[], Any]:
    ov = pytest.importorskip("openvino", reason="openvino is not installed")
    return _openvino_request(
        ov, ov.convert_model(model, example_input=images, input=list(images.shape)), images, threads
    )


def onnxruntime_model(model: nn.Module, images: Tensor, threads: int) -> Callable[[], Any]:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    file: Any = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (images,), file, dynamo=False, input_names=["x"])
    return _onnxruntime_session(ort, file.getvalue(), images, threads)


Forward = Callable[[nn.Module, Tensor, int], Callable[[], Any]]
Step = Callable[[nn.Module, Tensor, Tensor], Callable[[], Any]]
FORWARD: dict[str, Forward] = {
    "torch.compile": torch_compile,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "jax": jax,
}
STEP: dict[str, Step] = {"jax": jax_step, "torch.compile": torch_compile_step}
MODELS: dict[str, Forward] = {
    "torch.compile": torch_compile_model,
    "onnxruntime": onnxruntime_model,
    "openvino": openvino_model,
}
