"""What the driver is told at a launch, with the driver replaced by one that writes it down: needs no GPU."""

import ctypes
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("numba_cuda")

from jitconv.variants.cuda import launch
from jitconv.variants.cuda.launch import Kernel

Launch = tuple[Any, ...]


def scaled(x, factors, shift, count):
    """A kernel of every kind of argument; never run here."""


class Driver:
    """Notes grid, stream and parameters of each launch; CPU tensors stand for those of GPU −1, the current one.

    stream: that of GPU −1; the one of GPU n is 100 + n. gpus: the current GPU at each launch.
    """

    def __init__(self) -> None:
        self.stream, self.gpu = 1, -1
        self.gpus: list[int] = []
        self.launches: list[Launch] = []
        self.parameters: list[list[int]] = []

    def cuLaunchKernel(self, code: Any, *others: int) -> Launch:  # noqa: N802
        *grid, stream, pointers, _ = others
        slots = ctypes.cast(pointers, ctypes.POINTER(ctypes.c_void_p))
        # 5 + 2·2 for the matrix, 5 + 2 and 1 for the tuple of a vector and a number, 2 for numbers
        self.parameters.append([ctypes.c_int64.from_address(slots[i]).value for i in range(19)])
        self.launches.append((tuple(grid), stream))
        self.gpus.append(self.gpu)
        return (SimpleNamespace(value=0),)

    @contextmanager
    def on(self, gpu: int) -> Iterator[None]:
        before, self.gpu = self.gpu, gpu
        yield
        self.gpu = before


class Elsewhere(torch.Tensor):
    """A CPU tensor that stands for one on GPU 3."""

    def get_device(self) -> int:
        return 3


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    driver = Driver()
    monkeypatch.setattr(launch, "driver", driver)
    monkeypatch.setattr(launch, "_use_context", lambda device: None)
    monkeypatch.setattr(launch, "_load", lambda ptx, capability: ptx)
    monkeypatch.setattr(Kernel, "ptx", lambda *_: "code")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: driver.gpu)
    monkeypatch.setattr(torch.cuda, "device", driver.on)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    stream = lambda gpu: driver.stream if gpu < 0 else 100 + gpu  # noqa: E731
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", stream, raising=False)
    yield driver
    launch._thread.calls.clear()


def test_parameters_lie_where_numba_expects_them(driver: Driver) -> None:
    x, factors = torch.zeros(3, 5), torch.zeros(5)
    Kernel(scaled).launch((2, 3, 4), 64, x, (factors, 7), 0.5, 9)
    half = struct.unpack("<i", struct.pack("<f", 0.5))[0]
    (values,) = driver.parameters
    assert values[:9] == [0, 0, 15, 4, x.data_ptr(), 3, 5, 20, 4]
    assert values[9:17] == [0, 0, 5, 4, factors.data_ptr(), 5, 4, 7]
    assert values[17:] == [half, 9]
    assert driver.launches == [((2, 3, 4, 64, 1, 1, 0), 1)]


def test_every_launch_reads_addresses_numbers_and_the_stream_anew(driver: Driver) -> None:
    kernel, factors = Kernel(scaled), torch.zeros(5)
    inputs = torch.zeros(3, 5), torch.zeros(3, 5), torch.zeros(2, 5), torch.zeros(3, 5)
    for stream, x in enumerate(inputs):
        driver.stream = stream
        kernel.launch((1, 1, 1), 32, x, (factors, 7), 0.5, 9)
    kernel.launch((1, 1, 1), 32, inputs[0], (factors, 8), 0.5, 9)
    assert [values[4] for values in driver.parameters[:4]] == [x.data_ptr() for x in inputs]
    assert [values[5] for values in driver.parameters] == [3, 3, 2, 3, 3]
    assert [values[16] for values in driver.parameters] == [7, 7, 7, 7, 8]
    assert [stream for _, stream in driver.launches] == [0, 1, 2, 3, 3]
    assert len(launch._thread.calls) == 3, "two equal launches are prepared once"


def test_a_launch_goes_to_the_gpu_of_its_tensors(driver: Driver) -> None:
    kernel, factors = Kernel(scaled), torch.zeros(5)
    for x in (torch.zeros(3, 5), torch.zeros(3, 5).as_subclass(Elsewhere), torch.zeros(3, 5)):
        kernel.launch((1, 1, 1), 32, x, (factors, 7), 0.5, 9)
    assert driver.gpus == [-1, 3, -1]
    assert [stream for _, stream in driver.launches] == [1, 103, 1], "the current one of that GPU"
    assert len(launch._thread.calls) == 2, "code is prepared for each GPU"


def test_every_host_thread_has_a_context_before_it_launches(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    ready: list[int] = []
    monkeypatch.setattr(launch, "_use_context", lambda device: ready.append(threading.get_ident()))

    def work() -> None:  # as autograd's threads do in backward
        Kernel(scaled).launch((1, 1, 1), 32, torch.zeros(3, 5), (torch.zeros(5), 7), 0.5, 9)

    work()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ready == [threading.get_ident(), thread.ident]
    assert len(driver.launches) == 2


def test_threads_do_not_share_parameters(driver: Driver) -> None:
    kernel, found = Kernel(scaled), []

    def prepare() -> None:
        kernel.launch((1, 1, 1), 32, torch.zeros(3, 5), (torch.zeros(5), 7), 0.5, 9)
        found.append(list(launch._thread.calls.values()))

    threads = [threading.Thread(target=prepare) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    (first,), (second,) = found
    assert first.pointers_at != second.pointers_at


def test_code_is_not_loaded_during_a_capture(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, arguments = Kernel(scaled), (torch.zeros(3, 5), (torch.zeros(5), 7), 0.5, 9)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"scaled must have run on torch\.float32 before a CUDA graph is captured"):
        kernel.launch((1, 1, 1), 32, *arguments)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    kernel.launch((1, 1, 1), 32, *arguments)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    kernel.launch((1, 1, 1), 32, *arguments)
    assert len(driver.launches) == 2
