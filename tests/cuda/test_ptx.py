"""The CUDA kernels compiled to PTX and assembled, with the arguments that layers launch them with; needs no GPU.

What the simulator cannot see shows here: types, double precision in a float32 kernel, calls, arrays of a thread left in
memory, registers that do not suffice.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda")

from cuda.bindings import nvjitlink
from numba import cuda, typeof, types

from jitconv import functional, variants
from jitconv.cases import CASES, Case
from jitconv.variants.cuda import launch
from jitconv.variants.cuda.launch import Kernel
from jitconv.verify import Expected, results

NAMES = ("cuda", "cuda-tiled")
FIRST = [next(case for case in CASES if case.layer == layer) for layer in functional.LAYERS]
TILED = (  # kernels of `cuda-tiled` that those do not reach
    "conv2d: tile remainders, many channels", "conv2d: depthwise", "linear: tile remainders", "max_pool2d: ResNet's",
    "softmax: many classes", "log_softmax: many classes", "cross_entropy: many classes",
)  # fmt: skip
SEEN = [(name, case) for name in NAMES for case in FIRST]
SEEN += [("cuda-tiled", case) for case in CASES if str(case) in TILED]
TARGETS = [((8, 0), "float32"), ((9, 0), "float32"), ((9, 0), "float64")]
REGISTERS = 65_536  # of a multiprocessor: a block that asks for more cannot start
Launches = list[tuple[Kernel, tuple[int, int], int, tuple[Any, ...]]]
_lean: set[tuple[Any, ...]] = set()  # kernels are shared by layers, and take seconds to compile


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """The launches of a test, which run nothing: every kernel with its grid, number of threads and arguments."""
    seen: Launches = []
    monkeypatch.setattr(Kernel, "launch", lambda *launch: seen.append((*launch[:3], launch[3:])))
    before = dict(variants._loaded)
    for name in NAMES:
        variants.add(replace(variants.get(name), name=f"{name} unlaunched", device="cpu"))
    yield seen
    variants._loaded.clear()
    variants._loaded.update(before)


def run(case: Case, name: str, dtype: str) -> None:
    expected = Expected(case, dtype)
    layer = partial(getattr(functional, case.layer), variant=f"{name} unlaunched")
    results(layer, case, expected.inputs, expected.grad)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize(("name", "case"), SEEN, ids=str)
def test_every_kernel_compiles_to_lean_code(
    name: str, case: Case, target: tuple[tuple[int, int], str], launched: Launches
) -> None:
    capability, dtype = target
    run(case, name, dtype)
    assert launched or (name, case.layer) == ("cuda-tiled", "flatten"), "which is a view"
    all_lean(launched, capability, dtype)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_layers_with_relu_compile_to_lean_code(target: tuple[tuple[int, int], str], launched: Launches) -> None:
    capability, dtype = target
    ops = variants.get("cuda-tiled").ops
    x, weight, bias = (np.zeros(shape, dtype) for shape in ((2, 1, 5, 5), (40, 1, 5, 5), 40))
    ops["conv2d_relu"](x, weight, bias, (1, 1), (0, 0), (1, 1), np.zeros((2, 40, 1, 1), dtype))
    ops["linear_relu"](x.reshape(2, 25), weight.reshape(40, 25), bias, np.zeros((2, 40), dtype))
    assert len(launched) == 2, "relu takes no kernel of its own"
    all_lean(launched, capability, dtype)


@pytest.mark.parametrize("case", [case for case in CASES if any(0 in shape for shape in case.arrays.values())], ids=str)
def test_no_grid_is_empty(case: Case, launched: Launches) -> None:
    for name in NAMES:
        run(case, name, "float32")
    assert all(min(grid) > 0 for _, grid, _, _ in launched), "which the driver refuses"


def all_lean(launched: Launches, capability: tuple[int, int], dtype: str) -> None:
    for kernel, _, threads, args in launched:
        if (kernel, capability, dtype) not in _lean:
            lean(ptx(kernel, capability, args), capability, dtype, threads)
            _lean.add((kernel, capability, dtype))


def ptx(kernel: Kernel, capability: tuple[int, int], args: tuple[Any, ...]) -> str:
    signature = types.void(*(typeof(launch.argument(arg, args[0])) for arg in args))
    return cuda.compile(kernel.function, signature, device=False, cc=capability, abi="numba")[0]


def lean(ptx: str, capability: tuple[int, int], dtype: str, threads: int) -> None:
    assert not re.search(r"^\s+call", ptx, re.MULTILINE), "a function was not inlined"
    assert not re.search(r"(ld|st)\.local", ptx), "an array of a thread was left in memory"
    if dtype == "float32":
        assert not re.search(r"\w\.f64\s", ptx), "float32 became float64"
    report = assembled(ptx, capability)
    assert "0 bytes spill stores, 0 bytes spill loads" in report
    assert int(re.search(r"Used (\d+) registers", report)[1]) * threads <= REGISTERS  # type: ignore[index]


def assembled(ptx: str, capability: tuple[int, int]) -> str:
    """What the assembler, which is part of the linker that comes with numba-cuda, says of the registers it needs."""
    code = ptx.encode()
    linker = nvjitlink.create(2, [f"-arch=sm_{capability[0]}{capability[1]}", "-verbose"])
    try:
        nvjitlink.add_data(linker, nvjitlink.InputType.PTX, code, len(code), "kernel")
        nvjitlink.complete(linker)
        report = bytearray(nvjitlink.get_info_log_size(linker))
        nvjitlink.get_info_log(linker, report)
    finally:
        nvjitlink.destroy(linker)
    return report.decode()
