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
from jitconv.cases import CASES
from jitconv.variants.cuda.launch import Kernel, parameters
from jitconv.verify import Expected, results

NAMES = ("cuda", "cuda-tiled")
LAYERS = ("conv2d", "max_pool2d", "flatten", "linear", "relu", "softmax", "log_softmax", "cross_entropy")
MOST_REGISTERS = 255


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Kernel, int, tuple[Any, ...]]]]:
    """The launches of a test, which run nothing: every kernel with its number of threads and its arguments."""
    seen: list[tuple[Kernel, int, tuple[Any, ...]]] = []
    monkeypatch.setattr(Kernel, "launch", lambda self, blocks, threads, *args: seen.append((self, threads, args)))
    before = dict(variants._loaded)
    for name in NAMES:
        variants.add(replace(variants.get(name), name=f"{name} unlaunched", device="cpu", tensors=True))
    yield seen
    variants._loaded.clear()
    variants._loaded.update(before)


def run(layer: str, name: str, dtype: str) -> None:
    case = next(case for case in CASES if case.layer == layer)
    expected = Expected(case, dtype)
    results(partial(getattr(functional, layer), variant=f"{name} unlaunched"), case, expected.inputs, expected.grad)


@pytest.mark.parametrize(
    ("capability", "dtype"), [((8, 0), "float32"), ((9, 0), "float32"), ((9, 0), "float64")], ids=str
)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", NAMES)
def test_every_kernel_compiles_to_lean_code(
    name: str, layer: str, dtype: str, capability: tuple[int, int], launched: Any, tmp_path: Path
) -> None:
    run(layer, name, dtype)
    assert launched
    for kernel, threads, args in launched:
        ptx = kernel.ptx(capability, *args)
        assert not re.search(r"^\s+call", ptx, re.MULTILINE), "a function was not inlined"
        assert not re.search(r"(ld|st)\.local", ptx), "an array of a thread was left in memory"
        if dtype == "float32":
            assert not re.search(r"\w\.f64\s", ptx), "float32 became float64"
        assert [size for _, size in re.findall(r"\.param \.([fu])(\d+)", ptx)] == slot_sizes(args)
        if shutil.which("ptxas"):
            assert registers(ptx, capability, tmp_path) * threads <= 65_536


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
