"""The CUDA kernels really compiled, for GPUs that need not be there, with the arguments that layers launch them with.

What the simulator cannot see shows here: types, double precision in a float32 kernel, calls, arrays left in memory.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jitconv import functional, variants
from jitconv.cases import CASES, Case
from jitconv.variants.cuda import matmul
from jitconv.variants.cuda.launch import Kernel, parameters
from jitconv.variants.cuda.sizes import LARGE
from jitconv.verify import Expected, results

NAMES = ("cuda", "cuda-tiled")
SEEN = [
    next(case for case in CASES if case.layer == layer)
    for layer in ("conv2d", "max_pool2d", "flatten", "linear", "relu", "softmax", "log_softmax", "cross_entropy")
]
TILED = ("conv2d: tile remainders, many channels", "linear: tile remainders")
PRODUCTS = [case for case in CASES if str(case) in TILED]
SEEN += PRODUCTS
REGISTERS = 65_536  # of a multiprocessor: a block that asks for more cannot start
Launches = list[tuple[Kernel, int, tuple[Any, ...]]]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """The launches of a test, which run nothing: every kernel with its number of threads and its arguments."""
    seen: Launches = []
    monkeypatch.setattr(Kernel, "launch", lambda self, blocks, threads, *args: seen.append((self, threads, args)))
    before = dict(variants._loaded)
    for name in NAMES:
        variants.add(replace(variants.get(name), name=f"{name} unlaunched", device="cpu", tensors=True))
    yield seen
    variants._loaded.clear()
    variants._loaded.update(before)


def run(case: Case, name: str, dtype: str) -> None:
    expected = Expected(case, dtype)
    layer = partial(getattr(functional, case.layer), variant=f"{name} unlaunched")
    results(layer, case, expected.inputs, expected.grad)


@pytest.mark.parametrize("target", [((8, 0), "float32"), ((9, 0), "float32"), ((9, 0), "float64")], ids=str)
@pytest.mark.parametrize("case", SEEN, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_kernel_compiles_to_lean_code(
    name: str, case: Case, target: tuple[tuple[int, int], str], launched: Launches, tmp_path: Path
) -> None:
    capability, dtype = target
    run(case, name, dtype)
    assert launched
    for kernel, threads, args in launched:
        lean(kernel.ptx(capability, *args), capability, dtype, threads, args, tmp_path)


@pytest.mark.parametrize("case", PRODUCTS, ids=str)
def test_large_tiles_compile_to_lean_code(
    case: Case, launched: Launches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "BUSY", 1)
    run(case, "cuda-tiled", "float32")
    large = [launch for launch in launched if launch[1] == LARGE.threads]
    assert len(large) >= 3
    for kernel, threads, args in large:
        ptx = kernel.ptx((9, 0), *args)
        lean(ptx, (9, 0), "float32", threads, args, tmp_path)
        assert "ld.shared.v4" in ptx


def lean(ptx: str, capability: tuple[int, int], dtype: str, threads: int, args: tuple[Any, ...], folder: Path) -> None:
    assert not re.search(r"^\s+call", ptx, re.MULTILINE), "a function was not inlined"
    assert not re.search(r"(ld|st)\.local", ptx), "an array of a thread was left in memory"
    if dtype == "float32":
        assert not re.search(r"\w\.f64\s", ptx), "float32 became float64"
    assert re.findall(r"\.param \.[fu](\d+)", ptx) == slot_sizes(args)
    if shutil.which("ptxas"):
        assert registers(ptx, capability, folder) * threads <= REGISTERS


def slot_sizes(args: tuple[Any, ...]) -> list[str]:
    return ["32" if code == "f" else "64" for code in re.sub(r"\dx|=", "", parameters(args).format)]


def registers(ptx: str, capability: tuple[int, int], folder: Path) -> int:
    """The registers of a thread, as the assembler counts them; fails where some were spilled to memory."""
    source = folder / "kernel.ptx"
    source.write_text(re.sub(r"\.version \d+\.\d+", ".version 8.0", ptx))  # older assemblers refuse newer numbers
    command = ["ptxas", f"-arch=sm_{capability[0]}{capability[1]}", "-v", str(source), "-o", str(folder / "kernel")]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "0 bytes spill stores" in report
    return int(re.search(r"Used (\d+) registers", report)[1])  # type: ignore[index]
