"""The package's own rules: one-way imports, small files, one step, few dependencies."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

import filteropt

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "filteropt").rglob("*.py"))
ROOMS = [  # a room may import those above it
    {"blocks", "dtypes", "flat"},
    {"types"},
    {"rounding"},
    {"hyperparameters", "trees"},
    {"leading"},
    {"linalg"},
    {"regression", "matrix_normal"},
    {"stationary_pair"},
    {"models", "approximations"},
    {"engine"},
    {"measure", "signature", "checkpoint", "labels"},
    {"finite", "gathering", "recipe", "report"},
    {"execute", "belief", "draws"},
    {"sampling"},
    {"upkeep"},
    {"stepping"},
    {"optimizer"},
    {"batch_statistics", "priors"},
    {"passes"},
    {"predictive", "posterior_file"},
    {"presets"},
    {"sweeping"},
    {"testing"},
    {"__init__"},
]


def room(path):
    return path.relative_to(ROOT / "filteropt").parts[0].removesuffix(".py")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "filteropt":
                yield from (alias.name for alias in node.names)
            elif node.module.startswith("filteropt."):
                yield node.module.split(".")[1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_rooms_above_them(path):
    level = {name: i for i, names in enumerate(ROOMS) for name in names}
    for other in imported_rooms(path):
        if room(path) != other and other in level:
            assert level[other] < level[room(path)], f"{room(path)} imports {other}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= 300


def test_there_is_one_step():
    steps = [
        (path.name, node.name)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "step"
    ]
    assert set(steps) == {("filter.py", "step"), ("optimizer.py", "step")}


def test_core_depends_on_torch_and_numpy_only():
    allowed = {"torch", "numpy", "filteropt", *sys.stdlib_module_names}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert {name.split(".")[0] for name in names} <= allowed


def test_every_public_name_exists_and_is_documented():
    for name in filteropt.__all__:
        assert getattr(filteropt, name).__doc__
    for part in (*filteropt.models.__all__, *filteropt.approximations.__all__):
        home = filteropt.models if part in filteropt.models.__all__ else filteropt.approximations
        doc = getattr(home, part).__doc__
        assert re.search(r"Example:\n\s+>>>", doc), f"{part} has no runnable example"


def test_version_is_stated_once_in_every_place():
    assert f'version = "{filteropt.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"version: {filteropt.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"[{filteropt.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_types_are_shipped():
    assert (ROOT / "filteropt" / "py.typed").exists()
