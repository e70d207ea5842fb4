"""What the machine is said to be, and what is found wrong with it."""

import json
import subprocess
import sys

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
