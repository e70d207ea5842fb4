"""The command line: exit codes, what goes where, and what is not imported."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import jitconv
from jitconv import cli, variants


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments)


def test_help_and_report_do_without_torch(tmp_path: Path) -> None:
    (tmp_path / "verify.json").write_text(
        json.dumps({"kind": "jitconv-verify", "machine": MACHINE, "digits": [], "cases": []})
    )
    for arguments in (["--help"], ["report", "--help"], ["report", str(tmp_path), "-o", str(tmp_path / "page.html")]):
        code = (
            f"import sys; from jitconv.cli import main; main({arguments}, standalone_mode=False);"
            "print([name for name in ('torch', 'numba') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "page.html").is_file()


MACHINE = {
    "cpu": "a processor", "cores": 1, "cpu_features": [], "numba_target": "generic", "vector_bits": 128,
    "memory_gib": 1, "system": "Linux", "python": "3", "versions": {}, "blas": [], "torch_cpu": "",
    "gpu": None, "load": 0.0,
}  # fmt: skip


def test_verify_finds_every_result_right(tmp_path: Path) -> None:
    file = tmp_path / "verify.json"
    result = call("verify", "--variant", "vector", "--images", "1", "--json", str(file))
    assert result.exit_code == 0, result.output
    assert "Every result is right." in result.stdout
    content = json.loads(file.read_text())
    assert content["kind"] == "jitconv-verify"
    assert {check["case"] for check in content["digits"]} >= {"conv", "pool", "fc1", "fc2", "loss"}
    assert all(check["ok"] for check in content["digits"])


def test_verify_ends_with_3_where_a_layer_is_wrong() -> None:
    def doubled(x, out):  # type: ignore[no-untyped-def]
        out[...] = 2 * x

    jitconv.register_variant("wrong", base="vector", relu=doubled)
    result = call("verify", "--variant", "wrong", "--layer", "relu")
    assert result.exit_code == 3
    assert "wrong: wrong relu" in result.stdout


def test_verify_names_the_case_in_which_a_kernel_raises_and_goes_on() -> None:
    def square(x, weight, bias, stride, padding, dilation, out):  # type: ignore[no-untyped-def]
        if stride[0] != stride[1]:
            raise RuntimeError("strides differ")
        variants.get("vector").ops["conv2d"](x, weight, bias, stride, padding, dilation, out)

    jitconv.register_variant("square", base="vector", conv2d=square)
    result = call("verify", "--variant", "square", "--layer", "conv2d", "--sample")
    assert result.exit_code == 3
    raised = "wrong: square conv2d everything at once raised RuntimeError at test_cli.py"
    assert raised in " ".join(result.stdout.split())
    assert "\n1 of " in result.stdout, "the others are right"


def test_verify_can_be_told_the_layers(tmp_path: Path) -> None:
    file = tmp_path / "verify.json"
    chosen = ("--variant", "torch", "--layer", "relu", "--layer", "flatten")
    result = call("verify", *chosen, "--all", "--json", str(file))
    assert result.exit_code == 0, result.output
    assert result.stdout.count("grad input") == 4, "two layers in two dtypes"
    content = json.loads(file.read_text())
    assert {check["layer"] for check in content["digits"] + content["cases"]} == {"relu", "flatten"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_verify_says_why_a_variant_cannot_run_here() -> None:
    result = call("verify", "--variant", "cuda")
    assert result.exit_code == 2
    assert "variant 'cuda' cannot " in result.stderr


def test_train_writes_its_results_and_tells_where(tmp_path: Path) -> None:
    arguments = ("train", "--variant", "torch", "--epochs", "1", "--limit", "64", "--out", str(tmp_path))
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(tmp_path / "result.json")
    assert "epoch 1:" in result.stderr
    assert call(*arguments, "--resume").exit_code == 0
    assert call(*arguments).exit_code == 2, "nothing is overwritten"


def test_an_interrupted_training_can_be_resumed(tmp_path: Path) -> None:
    """Ctrl-C in the second epoch, on a real process: the first one stays."""
    options = ["train", "--variant", "torch", "--threads", "1", "--limit", "640", "--out", str(tmp_path)]
    # In the background of a shell SIGINT is ignored, and children inherit that.
    heeded = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heeded}; from jitconv.cli import main; main({[*options, '--epochs', '10000']})"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("epoch 1:")
        process.send_signal(signal.SIGINT)
        _, output = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED
    assert "Traceback" not in output
    assert "--resume goes on from there" in output
    done = len(json.loads((tmp_path / "result.json").read_text())["epochs"])
    assert done >= 1
    resumed = call(*options, "--epochs", str(done + 1), "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert f"epoch {done + 1}:" in resumed.stderr


def test_a_missing_network_or_package_ends_with_4(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ConnectionError, ImportError):

        def fails(*_: object, error: type[Exception] = error) -> None:
            raise error("install it")

        monkeypatch.setattr("jitconv.data.load", fails)
        result = call("train", "--variant", "torch")
        assert result.exit_code == cli.UNFIT
        assert result.stderr == "Error: install it\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--variant", "fast"], "variant must be one of"),
        (["train", "--epochs", "0"], "epochs"),
        (["train", "--data", "cifar", "--variant", "torch"], "name must be one of"),
        (["train", "--variant", "cuda"], "runs on cuda, but input is on cpu"),
        (["train", "--device", "abacus", "--variant", "torch"], "device must be one that torch knows, got 'abacus'"),
        (["verify", "--variant", "fast"], "variant must be one of"),
        (["verify", "--layer", "conv"], "layer must be one of conv2d, "),
        (["report"], "RESULTS"),
        (["report", "missing.json"], "missing.json"),
    ],
)
def test_wrong_usage_ends_with_2_and_names_it(arguments: list[str], message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    for content in ("{}", "not json", "[1]"):
        file = tmp_path / "strange.json"
        file.write_text(content)
        result = call("report", str(file), "-o", str(tmp_path / "page.html"))
        assert result.exit_code == 2
        assert "strange.json" in result.stderr


def test_doctor() -> None:
    result = call("doctor")
    assert result.exit_code in (0, cli.UNFIT)
    assert "threading layer" in result.stdout
    assert ("fix:" in result.stdout) == (result.exit_code == cli.UNFIT)
    assert result.stdout.startswith("```\njitconv: ")
    assert "register tile" in result.stdout


def test_doctor_as_json_says_what_the_machine_can_do() -> None:
    content = json.loads(call("doctor", "--json").stdout)
    assert content["kind"] == "jitconv-doctor"
    assert 0.1 < content["machine"]["peak_gflops"] < 1e4
    assert 0.1 < content["machine"]["bandwidth_gb_s"] < 1e4
    assert content["machine"]["versions"]["torch"] == torch.__version__
    assert isinstance(content["fix"], list)


def test_doctor_names_what_to_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jitconv.variants.compiling.cache_folder", lambda: None)
    result = call("doctor")
    assert result.exit_code == cli.UNFIT
    assert "set NUMBA_CACHE_DIR" in result.stdout
