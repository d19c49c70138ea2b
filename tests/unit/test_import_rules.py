# SPDX-License-Identifier: GPL-2.0-only
"""Who may import what: the protocol stays pure, and data flows one way through files."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMON = sorted((ROOT / "common").glob("*.py"))

PURE = (
    "errors",
    "layout",
    "ring",
    "wire",
    "extents",
    "record",
    "sequencer",
    "replica",
    "journal",
    "journal_recovery",
    "journal_engine",
    "scan",
    "tickets",
    "comparer",
    "exclusions",
)
"""No sockets, files, threads or clocks; those that do not exist yet are looked for too."""

ALLOWED_IN_PURE = {
    "__future__",
    "collections",
    "dataclasses",
    "enum",
    "itertools",
    "math",
    "msgpack",
    "numpy",
    "operator",
    "struct",
    "typing",
    "xxhash",
}
ONLY_TYPES = {"common.capture"}
"""Impure modules of which pure ones may import dataclasses and protocols."""


def imported_by(path: Path) -> set[str]:
    """Names of modules, also of those imported inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module in ("common", "services"):
                found |= {f"{module}.{alias.name}" for alias in node.names}
            else:
                found.add(module)
    return found


def pure_paths() -> list[Path]:
    return [path for path in COMMON if path.stem in PURE]


@pytest.mark.parametrize("path", pure_paths(), ids=lambda path: path.stem)
def test_pure_module_imports_nothing_that_does_io(path: Path) -> None:
    for name in imported_by(path):
        if name.startswith("common."):
            assert name.removeprefix("common.") in PURE or name in ONLY_TYPES, name
        else:
            assert name.split(".")[0] in ALLOWED_IN_PURE, name


@pytest.mark.parametrize("path", pure_paths(), ids=lambda path: path.stem)
def test_pure_module_opens_nothing(path: Path) -> None:
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"open", "input", "print", "exec", "eval", "__import__"}


@pytest.mark.parametrize("path", COMMON, ids=lambda path: path.stem)
def test_common_never_imports_services(path: Path) -> None:
    assert not {name for name in imported_by(path) if name.split(".")[0] == "services"}


@pytest.mark.parametrize(
    "path", [*COMMON, *sorted((ROOT / "services").glob("*.py"))], ids=lambda path: path.stem
)
def test_what_ships_never_imports_tests(path: Path) -> None:
    assert not {name for name in imported_by(path) if name.split(".")[0] == "tests"}


def test_the_rule_looks_at_what_it_names() -> None:
    stems = {path.stem for path in pure_paths()}
    assert {"errors", "ring", "wire", "extents", "record", "sequencer", "replica"} <= stems


HEAVY = {"asyncio", "ssl", "rich", "pydantic", "prometheus_client", "supervisor", "numpy"}
"""Modules of several MiB each that a process which runs for years has no use for."""


@pytest.mark.parametrize(
    ("stage", "allowed"),
    [
        ("reader", {"numpy"}),
        ("sender", set()),
        ("scanner", {"numpy"}),
        ("applier", {"numpy"}),
        ("monitor", set()),
    ],
)
def test_a_process_imports_nothing_that_it_does_not_use(stage: str, allowed: set[str]) -> None:
    code = (
        f"import sys, services.{stage}, common.capture_dm, common.capture_nbd; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert set(done.stdout.split()) & HEAVY <= allowed
