"""Private names of torch and Numba: in compat.py, and nowhere else."""

import ast
from pathlib import Path

import pytest

import jitconv

PACKAGE = Path(jitconv.__file__).parent
FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file.name != "compat.py"]
OWN = {"_replace", "_make", "_fields", "_asdict"}  # NamedTuple's documented methods


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _is_operator(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "aten"


def _trees() -> dict[Path, ast.Module]:
    return {file: ast.parse(file.read_text()) for file in FILES}


def _defined(trees: dict[Path, ast.Module]) -> set[str]:
    """The private names that jitconv itself defines, as functions, classes, variables and attributes of self."""
    names = set(OWN)
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
                names.add(node.attr)
    return names


def foreign_private_names(tree: ast.Module, own: set[str]) -> list[str]:
    """What a module imports or reads that begins with an underscore and that jitconv did not define."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] != "jitconv":
            path = (node.module or "").split(".")
            found += [name for name in (*path, *(alias.name for alias in node.names)) if _private(name)]
        elif isinstance(node, ast.Import):
            found += [name for alias in node.names for name in alias.name.split(".") if _private(name)]
        elif _is_operator(node):  # torch.ops.aten._softmax: the name of an operator
            continue
        elif isinstance(node, ast.Attribute) and _private(node.attr) and node.attr not in own:
            found.append(node.attr)
    return found


def test_private_names_are_in_compat_only() -> None:
    trees = _trees()
    own = _defined(trees)
    found = {
        str(file.relative_to(PACKAGE)): names
        for file, tree in trees.items()
        if (names := foreign_private_names(tree, own))
    }
    assert not found


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from torch._C import _any_requires_grad", "_any_requires_grad"),
        ("import torch._prims_common", "_prims_common"),
        ("torch._C._profiler_enabled()", "_C"),
        ("dispatcher._cache = 1", "_cache"),
    ],
)
def test_what_is_found(source: str, name: str) -> None:
    assert name in foreign_private_names(ast.parse(source), set())
