"""It never takes the process down: threads, forks, a read-only disk, cold processes that start at once."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CPU_VARIANTS

from jitconv import functional as F
from jitconv.variants import compiling, threads

x, w, b = torch.randn(8, 3, 20, 20), torch.randn(6, 3, 3, 3), torch.randn(6)
expected = torch.nn.functional.conv2d(x, w, b).numpy()

FORWARD = """
import torch
from jitconv import functional as F
torch.manual_seed(0)
x, w = torch.randn(4, 3, 12, 12), torch.randn(5, 3, 3, 3)
assert torch.allclose(F.conv2d(x, w, variant="jit-parallel"), torch.nn.functional.conv2d(x, w), atol=1e-5)
print("right", torch.get_num_threads())
"""


def convolve(variant: str) -> torch.Tensor:
    return F.conv2d(x[:1] if variant == "interpreted" else x, w, b, variant=variant)


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


def test_the_threads_of_torch_are_honoured_and_never_changed() -> None:
    before = torch.get_num_threads()
    try:
        for count in (2, 1, before):
            torch.set_num_threads(count)
            convolve("jit-parallel")
            assert torch.get_num_threads() == count
            assert threads.count() == min(count, os.cpu_count() or 1)
    finally:
        torch.set_num_threads(before)


def test_many_python_threads_at_once(variant: str) -> None:
    alone = convolve(variant)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(convolve, [variant] * 16))
    assert all(torch.equal(result, alone) for result in results)


def test_many_python_threads_on_the_threading_layer_that_cannot() -> None:
    code = (
        FORWARD
        + """
from concurrent.futures import ThreadPoolExecutor
torch.set_num_threads(2)
with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda _: F.conv2d(x, w, variant="jit-parallel"), range(64)))
import numba
print(numba.threading_layer())
"""
    )
    done = run(code, NUMBA_THREADING_LAYER="workqueue")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "workqueue"


def _child(depth: int, variant: str) -> None:
    result = convolve(variant).numpy()  # NumPy from here on: torch's own threads do not survive a fork
    if depth:
        _in_fork(depth - 1, variant)
    os._exit(0 if np.allclose(result, expected[: len(result)], atol=1e-4) else 1)


def _in_fork(depth: int, variant: str) -> None:
    process = multiprocessing.get_context("fork").Process(target=_child, args=(depth, variant))
    process.start()
    process.join(30)
    if process.is_alive():
        process.kill()
        raise AssertionError("the forked process hangs")
    assert process.exitcode == 0


@pytest.mark.parametrize("variant", [name for name in CPU_VARIANTS if name != "torch"])
def test_a_fork_and_a_fork_of_a_fork(variant: str) -> None:
    convolve(variant)
    _in_fork(1, variant)


def test_a_fork_while_another_thread_compiles() -> None:
    code = """
import os, threading
from jitconv.variants import compiling
def loop(n):
    total = 0
    for i in range(n):
        total += i
    return total
kernels = [compiling.njit(lambda n, k=k: n + k, cache=False) for k in range(40)]
busy = threading.Thread(target=lambda: [kernel(1) for kernel in kernels[:-1]])
busy.start()
child = os.fork()
if child == 0:
    os._exit(kernels[-1](1) - 40)
_, status = os.waitpid(child, 0)
busy.join()
print("status", status)
"""
    done = run(code)
    assert done.stdout.strip() == "status 0", done.stderr


def test_data_loader_workers() -> None:
    convolve("jit-tiled")
    loader = torch.utils.data.DataLoader(_Convolved(), batch_size=2, num_workers=2)
    for batch in loader:
        torch.testing.assert_close(batch, torch.nn.functional.conv2d(x[:2], w, b), rtol=1e-4, atol=1e-4)


class _Convolved(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        return F.conv2d(x[index], w, b)


def test_two_cold_processes_at_once_share_one_cache(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    starts = [
        subprocess.Popen([sys.executable, "-c", FORWARD], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in starts]
    assert all(output.startswith("right") for output in outputs)
    assert list(tmp_path.rglob("*.nbc"))
    assert run(FORWARD, NUMBA_CACHE_DIR=str(tmp_path)).stdout.startswith("right")


def test_a_damaged_cache_is_compiled_anew(tmp_path: Path) -> None:
    assert run(FORWARD, NUMBA_CACHE_DIR=str(tmp_path)).returncode == 0
    files = [*tmp_path.rglob("*.nbc"), *tmp_path.rglob("*.nbi")]
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    assert run(FORWARD, NUMBA_CACHE_DIR=str(tmp_path)).stdout.startswith("right")
    assert any(len(file.read_bytes()) > 100 for file in files)


def test_an_edit_in_any_kernel_file_makes_the_cache_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))

    def increment(n):  # type: ignore[no-untyped-def]
        return n + 1

    def misses() -> int:
        kernel = compiling.njit(increment)
        kernel(1)
        return sum(kernel.stats.cache_misses.values())

    assert [misses(), misses()] == [1, 0]
    monkeypatch.setattr(compiling, "_kernel_sources", lambda: b"edited")
    assert [misses(), misses()] == [1, 0]


def test_nowhere_to_write_compiles_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_trusted", lambda folder: False)
    kernel = compiling.njit(lambda n: n + 1)
    assert kernel(1) == 2
    assert kernel.stats.cache_path is None


def test_importing_starts_nothing() -> None:
    code = """
import sys, threading, jitconv
assert "torch" not in sys.modules
jitconv.nn, jitconv.functional, jitconv.SimpleConvNet, jitconv.optim
import numba
loaded = [name for name in ("numba.cuda", "torchvision") if name in sys.modules]
from jitconv.variants import jit
kernels = [*jit.VARIANTS[0].ops.values(), *(step.serial for step in jit.DESCENT.values())]
compiled = [f for f in kernels if f.signatures]
print(loaded, compiled, threading.active_count())
"""
    assert run(code).stdout.strip() == "[] [] 1"
