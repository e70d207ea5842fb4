"""What a launch tells Numba, with Numba replaced by one that writes it down: needs no GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numba_cuda")

from jitconv.variants.cuda import launch
from jitconv.variants.cuda.launch import Kernel


class Numba:
    """In the place of a compiled kernel: notes each launch, with the torch device that was current then.

    stream: the number of torch's current stream.
    """

    def __init__(self) -> None:
        self.stream, self.device = 1, ""
        self.launches: list[tuple[Any, ...]] = []

    def __getitem__(self, configuration: tuple[Any, ...]) -> Any:
        return lambda *args: self.launches.append((configuration, self.device, args))

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        before, self.device = self.device, str(device)
        yield
        self.device = before


@pytest.fixture
def numba(monkeypatch: pytest.MonkeyPatch) -> Numba:
    numba = Numba()
    monkeypatch.setattr(launch.cuda, "jit", lambda function: numba)
    monkeypatch.setattr(launch.cuda, "external_stream", lambda number: f"stream {number}")
    monkeypatch.setattr(launch.cuda, "as_cuda_array", lambda tensor, sync: (tensor, sync))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=numba.stream))
    monkeypatch.setattr(torch.cuda, "device", numba.on)
    return numba


def test_the_stream_is_read_at_every_launch(numba: Numba) -> None:
    kernel, x = Kernel(lambda x: None), torch.ones(3)
    for numba.stream in (1, 7):
        kernel.launch((2, 3), 64, x)
    assert [configuration for configuration, _, _ in numba.launches] == [
        ((2, 3), 64, "stream 1"), ((2, 3), 64, "stream 7"),
    ]  # fmt: skip


def test_a_launch_goes_to_the_device_of_its_tensors(numba: Numba) -> None:
    Kernel(lambda x: None).launch_for(3, torch.ones(3))
    assert [device for _, device, _ in numba.launches] == ["cpu"]
    assert numba.device == "", "as it was before"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arguments(numba: Numba, dtype: str) -> None:
    x = torch.ones(3, dtype=getattr(torch, dtype), requires_grad=True)
    Kernel(lambda x, smoothing, index, stride: None).launch((1, 1), 32, x, 0.5, 9, (1, 2))
    ((tensor, sync), smoothing, index, stride), *_ = [args for _, _, args in numba.launches]
    assert (tensor.data_ptr(), tensor.requires_grad) == (x.data_ptr(), False), "torch would refuse to give its address"
    assert sync is False, "nothing waits for the GPU"
    assert (smoothing, smoothing.dtype) == (0.5, np.dtype(dtype)), "float32 would become float64"
    assert (index, stride) == (9, (1, 2))
