"""The registry: what a user adds is used, verified and listed like what is built in."""

import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import numpy as np
import pytest
import torch

import jitconv
from jitconv import functional, variants
from jitconv.cases import CASES
from jitconv.verify import check


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    before = dict(variants._loaded)
    yield
    variants._loaded.clear()
    variants._loaded.update(before)


def shifted_relu(x: np.ndarray, out: np.ndarray) -> None:
    np.maximum(x, 0, out=out)
    out += 1


def test_the_ladder_of_the_readme_is_the_registrys() -> None:
    text = (
        (Path(__file__).parents[1] / "README.md")
        .read_text(encoding="utf-8")
        .partition("## The ladder")[2]
        .partition("Read on:")[0]
    )
    rows = [line.split("|")[1:4] for line in text.splitlines() if line.startswith("| `")]
    ladder = [(name, runs_on) for names, _, runs_on in rows for name in re.findall("`(.+?)`", names)]
    assert [name for name, _ in ladder] == [*variants.names()[: len(variants._BUILT_IN)]]
    for name, runs_on in ladder:
        assert (name in variants.available("cpu")) == ("CPU" in runs_on or "both" in runs_on)


@pytest.mark.parametrize("name", [*variants.available("cpu"), "cuda", "cuda-tiled"])
def test_every_kernel_variant_has_every_op(name: str) -> None:
    if name.startswith("cuda"):  # loading needs no GPU
        pytest.importorskip("numba_cuda")
    variant = variants.get(name)
    optional = {"flatten", "flatten_grad_input", *variants.FUSED_OPS}
    assert variant.whole or set(variant.ops) | optional == {*variants.OPS, *variants.FUSED_OPS}


def test_a_registered_variant_is_used_for_its_op_and_the_base_for_the_others() -> None:
    mine = jitconv.register_variant("mine", base="jit", relu=shifted_relu)
    assert mine.name in jitconv.available()
    x = torch.tensor([-1.0, 2.0])
    assert functional.relu(x, variant="mine").tolist() == [1.0, 3.0]
    assert mine.ops["conv2d"] is variants.get("jit").ops["conv2d"]
    assert jitconv.nn.ReLU(variant="mine")(x).tolist() == [1.0, 3.0]


def test_verification_sees_that_a_registered_variant_is_wrong() -> None:
    jitconv.register_variant("mine", base="jit", relu=shifted_relu)
    case = next(case for case in CASES if case.layer == "relu")
    wrong = {result.quantity: result for result in check(case, "mine")}
    assert not wrong["forward"].ok
    assert wrong["forward"].max_error == pytest.approx(1)
    right = [case for case in CASES if case.layer == "linear"][:1]
    assert all(result.ok for case in right for result in check(case, "mine"))


def test_what_cannot_be_registered() -> None:
    with pytest.raises(ValueError, match="conv must be an op of jit, one of conv2d, "):
        jitconv.register_variant("mine", base="jit", conv=shifted_relu)
    with pytest.raises(ValueError, match="name must not be a built-in variant's, got 'torch'"):
        jitconv.register_variant("torch", base="jit")
    with pytest.raises(ValueError, match="variant must be one of"):
        jitconv.register_variant("mine", base="fast")
    with pytest.raises(TypeError, match="relu must be a function, got 3"):
        jitconv.register_variant("mine", base="jit", relu=3)  # type: ignore[arg-type]


def test_other_packages_offer_variants_through_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = EntryPoint("theirs", f"{__name__}:offered_variant", variants.ENTRY_POINTS)
    monkeypatch.setattr(variants, "entry_points", lambda group: EntryPoints([offered]) if group else ())
    monkeypatch.setattr(variants, "_entry_points_read", False)
    assert "theirs" in variants.names()
    assert functional.relu(np.array([-1.0]), variant="theirs") == 1.0


def offered_variant() -> variants.Variant:
    base = variants.get("jit")
    return variants.Variant("theirs", "cpu", {**base.ops, "relu": shifted_relu})
