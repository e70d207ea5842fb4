"""Variants by fixture: a test that takes `variant` runs once for each variant of this machine's CPU."""

from collections.abc import Iterator

import pytest
import torch

from jitconv import variants
from jitconv.cases import COMPILES_EACH

CPU_VARIANTS = variants.available("cpu")
COMPILED = tuple(name for name in CPU_VARIANTS if name not in ("interpreted", "torch"))
ANY_SHAPE = tuple(name for name in COMPILED if name not in COMPILES_EACH)  # whose code takes any shape


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="all rows where a sample is tested otherwise (guard pages)")


@pytest.fixture(params=CPU_VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _added_variants_go_again() -> Iterator[None]:
    before = variants.names()
    yield
    for name in set(variants.names()) - set(before):
        del variants._loaded[name]


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _cores_are_given_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
