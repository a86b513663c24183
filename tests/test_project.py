"""Promises of the project itself: floors, docstrings, recipes, packaging."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import uhrseg
from uhrseg.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "uhrseg").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


def public_without_docstring(tree: ast.AST, prefix: str = "") -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield f"{prefix}{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from public_without_docstring(node, f"{prefix}{node.name}.")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_public_function_and_class_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert list(public_without_docstring(tree)) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_package_has_no_print_and_no_machine_paths(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
    assert not [word for word in ("/home/", "/root/", "/work/", "/mnt/") if word in text]


def test_imports_go_down_the_floors_only() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_every_recipe_loads_and_names_itself(path: Path) -> None:
    recipe = Recipe.read(path, [])
    assert recipe.name
    assert not Path(recipe.data.root).is_absolute(), "a recipe in the repository must run on any machine"


@pytest.mark.parametrize("name", uhrseg.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(uhrseg, name) is not None
    assert name in dir(uhrseg)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = uhrseg.nonsense


def test_the_continuous_integration_calls_make_test() -> None:
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0].startswith("set -e")
    assert lines[-1] == "make test"


def test_torch_is_not_pinned_to_one_build() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    torch = [line for line in project["dependencies"] if line.startswith("torch")]
    assert torch
    assert not [line for line in torch if "==" in line or "+cpu" in line or "@" in line]


def test_notice_and_examples_say_that_the_features_are_artificial() -> None:
    for name in ("NOTICE", "examples/README.md"):
        assert "artificial" in (ROOT / name).read_text(encoding="utf-8").lower()


@pytest.mark.parametrize("path", sorted((ROOT / "uhrseg" / "weights").glob("*/card.toml")), ids=lambda p: p.parent.name)
def test_shipped_weights_are_small_and_are_those_of_their_card(path: Path) -> None:
    card = uhrseg.ModelCard.read(path.parent)
    weights = path.parent / card.weights.file
    from uhrseg.card import sha256_of

    assert sha256_of(weights) == card.weights.sha256
    assert weights.stat().st_size <= 20e6
    assert card.name == path.parent.name
    assert "artificial" in card.description.lower() or "implanted" in card.description.lower()
