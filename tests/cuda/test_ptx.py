"""The CUDA kernels really compiled, for GPUs that need not be there, with the arguments that layers launch them with.

What the simulator cannot see shows here: types, double precision in a float32 kernel, calls, arrays left in memory,
registers that do not suffice.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from cuda.bindings import nvjitlink
from fused import FUSED, Fused
from fused import LARGE as LAYERS_OF_A_GPU
from shifted import shifted

from jitconv import functional, variants
from jitconv.cases import CASES, Case
from jitconv.variants.cuda import matmul
from jitconv.variants.cuda.launch import Kernel, parameters
from jitconv.variants.cuda.quads import aligned
from jitconv.variants.cuda.sizes import LARGE
from jitconv.verify import Expected, results

NAMES = ("cuda", "cuda-tiled")
SEEN = [
    next(case for case in CASES if case.layer == layer)
    for layer in ("conv2d", "max_pool2d", "flatten", "linear", "relu", "softmax", "log_softmax", "cross_entropy")
]
TILED = (  # kernels of `cuda-tiled` that those do not reach
    "conv2d: tile remainders, many channels", "conv2d: depthwise", "conv2d: depthwise, a large window",
    "linear: tile remainders", "linear: rows of multiples of four", "max_pool2d: ResNet's", "softmax: many classes",
    "log_softmax: many classes", "cross_entropy: many classes", "softmax: many classes of pixels",
    "log_softmax: many classes of pixels", "cross_entropy: many classes of pixels",
)  # fmt: skip
SEEN_TILED = [case for case in CASES if str(case) in TILED]
PRODUCTS = [case for case in SEEN_TILED if case.layer in ("conv2d", "linear") and "depthwise" not in case.name]
TARGETS = [((8, 0), "float32"), ((9, 0), "float32"), ((9, 0), "float64")]
REGISTERS = 65_536  # of a multiprocessor: a block that asks for more cannot start
Launches = list[tuple[Kernel, int, tuple[Any, ...]]]
_lean: set[tuple[Any, ...]] = set()  # kernels are shared by layers, and take seconds to compile


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


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize(
    ("name", "case"),
    [*((name, case) for name in NAMES for case in SEEN), *(("cuda-tiled", case) for case in SEEN_TILED)],
    ids=str,
)
def test_every_kernel_compiles_to_lean_code(
    name: str, case: Case, target: tuple[tuple[int, int], str], launched: Launches
) -> None:
    capability, dtype = target
    run(case, name, dtype)
    assert launched or (name, case.layer) == ("cuda-tiled", "flatten"), "which is a view"
    all_lean(launched, capability, dtype)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("fused", [*FUSED, *LAYERS_OF_A_GPU], ids=str)
def test_layers_in_one_pass_compile_to_lean_code(
    fused: Fused, target: tuple[tuple[int, int], str], launched: Launches
) -> None:
    capability, dtype = target
    fused.results("cuda-tiled unlaunched", getattr(torch, dtype))
    all_lean(launched, capability, dtype)


def test_pooling_takes_no_kernel_of_its_own(launched: Launches) -> None:
    fused = next(each for each in LAYERS_OF_A_GPU if each.name == "conv2d_max_pool2d")
    fused.results("cuda-tiled unlaunched")
    forward = [kernel.function.__name__ for kernel, _, _ in launched if "grad" not in kernel.function.__name__]
    assert forward.count("conv2d") == 2, "once in one pass, once in turn"
    assert forward.count("max_pool2d") == 1, "in turn"


@pytest.mark.parametrize("case", PRODUCTS[::2], ids=str)
def test_large_tiles_compile_to_lean_code(case: Case, launched: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "BUSY", 1)
    run(case, "cuda-tiled", "float32")
    large = [launch for launch in launched if launch[1] == LARGE.threads]
    assert len(large) >= 3
    for kernel, threads, args in large:
        ptx = kernel.ptx((9, 0), *args)
        lean(ptx, (9, 0), "float32", threads, args)
        assert ptx.count("ld.shared.v4") == 4 * 4, "the quads of a thread's rows and columns, for four terms"
        if case.name == "rows of multiples of four":
            assert re.search(r"ld\.global\S*\.v4", ptx)


@pytest.mark.parametrize("case", [*SEEN, *(case for case in SEEN_TILED if "of four" in case.name)], ids=str)
def test_no_quad_is_read_where_arrays_begin_anywhere(case: Case, launched: Launches) -> None:
    expected = Expected(case)
    layer = partial(getattr(functional, case.layer), variant="cuda-tiled unlaunched")
    inputs = {name: shifted(value) for name, value in expected.inputs.items()}
    results(layer, case, inputs, shifted(expected.grad.float()))
    for kernel, _, args in launched:
        given = [arg for arg in args[:-1] if isinstance(arg, torch.Tensor)]
        assert aligned(*given) or not re.search(r"(ld|st)\.global\S*\.v", kernel.ptx((9, 0), *args))


@pytest.mark.parametrize("case", [case for case in CASES if any(0 in shape for shape in case.arrays.values())], ids=str)
def test_no_grid_is_empty(case: Case, launched: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    grids: list[tuple[int, ...]] = []
    monkeypatch.setattr(Kernel, "launch", lambda self, blocks, threads, *args: grids.append((*blocks, threads)))
    for name in NAMES:
        run(case, name, "float32")
    assert all(min(grid) > 0 for grid in grids), "which the driver refuses"


@pytest.mark.parametrize("layer", ["relu", "max_pool2d", "softmax"])
def test_threads_are_counted_in_64_bits(layer: str, launched: Launches) -> None:
    run(next(case for case in SEEN if case.layer == layer), "cuda-tiled", "float32")
    assert launched
    for kernel, _, args in launched:
        ptx = kernel.ptx((9, 0), *args)
        (block,) = re.findall(r"mov\.u32\s+(%r\d+), %ctaid\.x", ptx)
        uses = [line.split()[0] for line in ptx.splitlines() if re.search(rf"{block}\b", line)]
        assert uses == ["mov.u32", "mul.wide.s32"]


def all_lean(launched: Launches, capability: tuple[int, int], dtype: str) -> None:
    for kernel, threads, args in launched:
        if (kernel, capability, dtype) not in _lean:
            lean(kernel.ptx(capability, *args), capability, dtype, threads, args)
            _lean.add((kernel, capability, dtype))


def lean(ptx: str, capability: tuple[int, int], dtype: str, threads: int, args: tuple[Any, ...]) -> None:
    assert not re.search(r"^\s+call", ptx, re.MULTILINE), "a function was not inlined"
    assert not re.search(r"(ld|st)\.local", ptx), "an array of a thread was left in memory"
    if dtype == "float32":
        assert not re.search(r"\w\.f64\s", ptx), "float32 became float64"
    assert re.findall(r"\.param \.[fu](\d+)", ptx) == slot_sizes(args)
    report = assembled(ptx, capability)
    assert "0 bytes spill stores, 0 bytes spill loads" in report
    assert int(re.search(r"Used (\d+) registers", report)[1]) * threads <= REGISTERS  # type: ignore[index]


def slot_sizes(args: tuple[Any, ...]) -> list[str]:
    return ["32" if code == "f" else "64" for code in re.sub(r"\dx|=", "", parameters(args).format)]


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
