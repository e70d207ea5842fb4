"""What this machine is: the part of a measurement that a number means nothing without."""

import os
import platform
import sys
import warnings
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

try:
    import psutil
except ImportError:  # a GPU machine may have no more than torch and numba
    psutil = None

PACKAGES = ("numpy", "numba", "llvmlite", "torch", "torchvision", "numba-cuda", "onnxruntime", "openvino", "jax")
THREADED_ENGINES = ("onnxruntime", "openvino", "jax")  # with threads of their own
CPU_FEATURES = ("avx512f", "avx512bf16", "avx2", "fma", "avx", "sse4.2", "neon", "sve")


def describe() -> dict[str, Any]:
    """Return the processor, the memory, what Numba compiles for, versions, BLAS libraries, threads, GPU and load.

    Every value can be written as JSON; memory is in GiB, the load is the mean number of running processes in a minute.
    """
    import numba
    import torch

    from jitconv.variants import simd

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": cores(),
        "cpu_features": [feature for feature in CPU_FEATURES if f"+{feature}" in simd.FEATURES],
        "numba_target": simd.TARGET,
        "vector_bits": simd.REGISTER_BYTES * 8,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1) if psutil else None,
        "python": platform.python_version(),
        "versions": versions(),
        "blas": sorted(_blas() | ({"mkl (in torch)"} if torch.backends.mkl.is_available() else set())),
        "torch_cpu": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
        "numba_threads": numba.config.NUMBA_NUM_THREADS,  # type: ignore[attr-defined]
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": round(_load(), 2),
    }


def _blas() -> set[str]:
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return set()
    return {
        f"{pool['internal_api']} {pool.get('version')} {pool.get('architecture') or ''}".strip()
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    }


def _load() -> float:
    return (psutil or os).getloadavg()[0]  # psutil has it on Windows too


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that the study measures or stands on; torch's names its build."""
    import torch

    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found | {"torch": str(torch.__version__)}


def cpu_name() -> str:
    """Return the processor's name, as the system gives it."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def problems() -> list[str]:
    """Return what makes this process unfit for measuring, each problem with its cure; empty where nothing does.

    `jitconv doctor` asks in a process of its own; which other engines a program has loaded shows in the program only.
    """
    import torch

    from jitconv.variants import compiling

    found: list[str] = []
    compiling.refused.clear()
    with warnings.catch_warnings(action="ignore", category=compiling.UntrustedCache):
        folder = compiling.cache_folder()
    found += compiling.refused
    wanted = os.environ.get("NUMBA_CACHE_DIR")
    if folder is None:
        found.append("no folder for compiled code is writable, so every process compiles: set NUMBA_CACHE_DIR")
    elif wanted and not compiling.refused and Path(wanted).resolve() not in folder.resolve().parents:
        found.append(f"NUMBA_CACHE_DIR={wanted} is not writable, so compiled code is in {folder}: set another one")
    passive = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"  # torch's threads sleep, and ours
    if torch.get_num_threads() > 1 and not passive and (pools := _other_pools()):
        found.append(
            f"beside torch's threads there are {' and '.join(pools)}'s in this process, and they take its cores: "
            "give each engine a process of its own, or one thread, or set OMP_WAIT_POLICY=passive"
        )
    if torch.get_num_threads() > cores():
        found.append(f"torch takes {torch.get_num_threads()} threads on {cores()} cores: set OMP_NUM_THREADS={cores()}")
    if _load() > cores() + 0.5:
        found.append("other programs use the cores, so times will be far too long: wait until they are done")
    return found


def _other_pools() -> list[str]:
    """Who else has threads in this process that wait for work by spinning."""
    import numba

    from jitconv.variants import threads

    found = [engine for engine in THREADED_ENGINES if engine in sys.modules]
    with suppress(ValueError):  # Numba's are not started
        layer = f"Numba's {numba.threading_layer()}"
        found += ["Numba"] if threads.layer() != layer and numba.get_num_threads() > 1 else []
    return found


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
