"""Processors with narrower registers, which Numba can compile for here too: AVX2, and x86-64 without any extension."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
AVX2 = "+avx2,+fma,+avx,+sse4.2,+sse4.1,+ssse3,+sse3,+sse2,+sse,+popcnt,+cx16,+mmx,+cmov,+bmi,+bmi2,+lzcnt,+f16c,+movbe"
REGISTERS = "(test_simd or test_elementwise)"
TILES = "test_winograd and (vectors or reach)"
BLOCKED = "test_blocked and test_layouts and float32"
LAYERS = "test_layers and jit-tiled and float32 and (linear or softmax) and not log"


def has(feature: str) -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and feature in cpuinfo.read_text()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="compiles for x86-64")
@pytest.mark.parametrize(
    ("name", "features", "tests"),
    [
        pytest.param(
            "haswell",
            AVX2,
            f"{REGISTERS} or {TILES} or {LAYERS} or {BLOCKED}",
            marks=pytest.mark.skipif(not (has("avx2") and has("fma")), reason="the processor has no AVX2"),
        ),
        ("generic", "", f"{REGISTERS} or {TILES} or {BLOCKED}"),
    ],
)
def test_kernels_compiled_for_narrow_registers(name: str, features: str, tests: str, tmp_path: Path) -> None:
    environment = {
        "NUMBA_CPU_NAME": name,
        "NUMBA_CPU_FEATURES": features,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",  # half as much to compile
    }
    tested = ("test_simd", "test_elementwise", "test_winograd", "test_blocked", "test_layers")
    files = [str(HERE / f"{each}.py") for each in tested]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", tests, *files],
        cwd=HERE.parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
