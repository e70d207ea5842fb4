"""What the machine is said to be, and what is found wrong with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from jitconv import machine


def test_the_description_can_be_written_and_names_what_numbers_depend_on() -> None:
    facts = json.loads(json.dumps(machine.describe()))
    assert facts["cpu"]
    assert 1 <= facts["cores"] <= psutil.cpu_count()
    assert facts["vector_bits"] in (128, 256, 512)
    assert facts["torch_threads"] == torch.get_num_threads()
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["blas"]
    assert (facts["gpu"] is not None) == torch.cuda.is_available()


def test_numba_may_be_told_another_processor() -> None:
    code = (
        "from jitconv import machine; facts = machine.describe(); print(facts['numba_target'], facts['cpu_features'])"
    )
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "generic []\n", done.stderr


def test_importing_it_is_cheap() -> None:
    code = "import sys; import jitconv.machine; print([name for name in ('torch', 'numba') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_more_threads_than_cores_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    assert any("torch takes 10000 threads" in problem for problem in machine.problems())


def test_a_busy_machine_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    for load, busy in ((0.1, False), (10_000.0, True)):
        monkeypatch.setattr(psutil, "getloadavg", lambda load=load: (load, load, load))
        assert any("other programs" in problem for problem in machine.problems()) == busy


def test_a_cache_folder_that_is_not_used_is_a_problem(tmp_path: Path) -> None:
    """Numba takes another one without a word."""
    file = tmp_path / "file"
    file.touch()
    code = "from jitconv import machine; print(*machine.problems(), sep='\\n')"
    for folder, said in ((file / "below", True), (tmp_path, False)):
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert (f"NUMBA_CACHE_DIR={folder} is not writable" in done.stdout) == said, done.stdout + done.stderr


def test_a_second_pool_of_threads_is_a_problem() -> None:
    """Numba's own, of a user's parallel loop, and other engines', which the program itself has to ask for."""
    code = """if True:
        import sys, numba, torch
        from jitconv import machine
        from jitconv.variants import threads

        def said(): return [it for it in machine.problems() if "beside torch's threads" in it]

        torch.set_num_threads(2)
        threads.layer()
        print(said())
        sys.modules["onnxruntime"] = object()
        @numba.njit(parallel=True)
        def total(n):
            s = 0
            for i in numba.prange(n):
                s += i
            return s
        total(3)
        print(said()[0].split(" in this")[0])
        torch.set_num_threads(1)
        print(said())"""
    spinning = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=spinning)
    assert done.stdout == "[]\nbeside torch's threads there are onnxruntime and Numba's\n[]\n", done.stderr
