"""It never takes the process down: threads, forks, a read-only disk, cold processes that start at once."""

import errno
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


NO_OPENMP = """
from jitconv import compat
compat.openmp_of_torch = lambda: None
"""
MANY_AT_ONCE = (
    FORWARD
    + """
from concurrent.futures import ThreadPoolExecutor
from jitconv.variants import threads
torch.set_num_threads(2)
with ThreadPoolExecutor(8) as executor:
    list(executor.map(lambda _: F.conv2d(x, w, variant="jit-parallel"), range(64)))
assert torch.get_num_threads() == 2
print(threads.layer())
"""
)


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_where_torch_has_no_openmp_numbas_threads_do_the_work(layer: str) -> None:
    """Also on the layer that ends the process when two threads use it at once."""
    done = run(NO_OPENMP + MANY_AT_ONCE, NUMBA_THREADING_LAYER=layer)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"Numba's {layer}"


@pytest.mark.skipif("OpenMP" not in torch.__config__.parallel_info().partition("backend:")[2], reason="another backend")
@pytest.mark.skipif(sys.platform != "linux", reason="torch's OpenMP is not GNU's")
def test_kernels_run_on_torchs_own_threads() -> None:
    code = (
        MANY_AT_ONCE
        + """
import os
for variant in ("jit-parallel", "jit-tiled"):
    for layer in (lambda v: F.conv2d(x, w, variant=v), lambda v: F.relu(x.repeat(64, 1, 1, 1), variant=v)):
        torch.relu(torch.randn(1 << 20))
        before = len(os.listdir("/proc/self/task"))
        layer(variant)
        assert len(os.listdir("/proc/self/task")) == before
print(*sorted({line.split()[-1] for line in open("/proc/self/maps") if "omppool" in line or "libgomp" in line}))
"""
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    *_, name, libraries = done.stdout.splitlines()
    assert name == "torch's OpenMP"
    assert len(libraries.split()) == 1, "one OpenMP runtime, and nothing of Numba's"


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


def test_a_full_disk_or_one_that_became_read_only_costs_a_compilation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    real = open
    for error in (errno.ENOSPC, errno.EROFS):

        def refuse(file, mode="r", *args, error=error, **options):  # type: ignore[no-untyped-def]
            if "w" in mode and str(file).startswith(str(tmp_path)):
                raise OSError(error, os.strerror(error), str(file))
            return real(file, mode, *args, **options)

        def increment(n):  # type: ignore[no-untyped-def]
            return n + 1

        kernel = compiling.njit(increment)
        with monkeypatch.context() as patched:
            patched.setattr("builtins.open", refuse)
            assert kernel(1) == 2
        assert not [file for file in tmp_path.rglob("*") if file.suffix in (".nbi", ".nbc")]


@pytest.mark.parametrize("delay", [0.05, 0.3, 0.8])
def test_ctrl_c_while_a_kernel_is_compiled(delay: float, tmp_path: Path) -> None:
    """It ends as Python does, and the next process finds a sound cache, or none."""
    loads = "from jitconv.variants import get; import torch; from jitconv import functional as F; get('jit')\n"
    call = "print(float(F.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2), variant='jit').sum()), flush=True)\n"
    for attempt in range(5):
        cache = str(tmp_path / str(attempt))
        interrupt = (
            "import signal, time, _thread, threading\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            f"threading.Timer({delay + 0.03 * attempt}, _thread.interrupt_main).start()\n"
        )
        done = run(loads + interrupt + call + "time.sleep(2)", NUMBA_CACHE_DIR=cache)
        assert run(loads + call, NUMBA_CACHE_DIR=cache).stdout == "16.0\n"
        if done.returncode != 0:
            assert done.stderr.rstrip().endswith("KeyboardInterrupt"), done.stderr
            return
        # Python cannot raise out of a function that LLVM calls, or out of a destructor: it reports the interrupt there,
        # and goes on. Nothing may be lost by it; the next attempt comes at another moment.
        assert "Exception ignored" in done.stderr, done.stderr
        assert done.stderr.rstrip().endswith("KeyboardInterrupt:"), done.stderr
        assert done.stdout == "16.0\n"
    raise AssertionError("no interrupt ended the process")


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


def test_importing_changes_nothing() -> None:
    """Nor does building a network: the first kernel does what is to be done in the process."""
    code = """
import atexit, gc, os, signal, sys, threading, warnings
import numba, torch  # what these do is theirs

forks = []
register = os.register_at_fork
os.register_at_fork = lambda **hooks: forks.append(hooks) or register(**hooks)

def state():
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    libraries = sorted({line.split()[-1] for line in open("/proc/self/maps") if "omppool" in line or "gomp" in line})
    tasks = os.listdir("/proc/self/task") if sys.platform == "linux" else threading.active_count()
    switches = sys.getswitchinterval(), gc.get_threshold(), sys.getrecursionlimit(), sys.excepthook, os.umask(0o22)
    return dict(
        handlers=handlers, libraries=libraries, tasks=tasks, switches=switches, environment=dict(os.environ),
        warnings=list(warnings.filters), threads=torch.get_num_threads(), dtype=torch.get_default_dtype(),
        forks=len(forks), exits=atexit._ncallbacks(), finders=list(sys.meta_path), hooks=list(sys.path_hooks),
        relu=torch.nn.functional.relu, linear=torch.nn.Linear.forward, seed=torch.manual_seed,
    )

before = state()
import jitconv
from jitconv import functional, nn
jitconv.nn, jitconv.functional
jitconv.SimpleConvNet()
jitconv.nn.convert(torch.nn.Sequential(torch.nn.Linear(2, 2)))
after = state()
print([name for name in before if before[name] != after[name]])
loaded = ("jitconv.variants.", "numba.cuda", "torchvision", "torch._dynamo")
print([name for name in sys.modules if name.startswith(loaded)])
"""
    done = run(code)
    assert done.stdout.splitlines() == ["[]", "[]"], done.stdout + done.stderr


def test_importing_jitconv_loads_neither_torch_nor_numba() -> None:
    assert run("import sys, jitconv; print('torch' in sys.modules, 'numba' in sys.modules)").stdout == "False False\n"


def test_loading_a_variant_compiles_nothing() -> None:
    code = """
from jitconv.variants import jit
print([f for f in jit.VARIANTS[0].ops.values() if f.signatures])
print([f for f in jit.VARIANTS[1].ops.values() if f.function.signatures])
"""
    assert run(code).stdout.splitlines() == ["[]", "[]"]
