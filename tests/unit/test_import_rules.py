# SPDX-License-Identifier: GPL-2.0-only
"""Which room may import which, what is pure, and what a process may load.

A **room** is a folder of `common` or `services`; a file right in `services` is a room of its
own (a stage). Every import of a project's module is checked against one table.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    path
    for folder in ("common", "services")
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "__init__.py"
)

STAGES = frozenset(
    f"services.{name}" for name in ("reader", "sender", "scanner", "applier", "monitor")
)

PROTOCOL = {
    "common.copies",
    "common.errors",
    "common.facts",
    "common.machine",
    "common.ring",
    "common.wire",
}
MAY_IMPORT: dict[str, set[str]] = {
    "common.errors": set(),
    "common.copies": {"common.errors"},
    "common.facts": set(),
    "common.machine": {"common.errors"},
    "common.ring": {"common.errors"},
    "common.wire": {"common.errors", "common.ring"},
    "common.capture": {"common.errors", "common.ring"},
    "common.scan": PROTOCOL,
    "common.source": PROTOCOL | {"common.capture", "common.scan"},
    "common.target": PROTOCOL,
    "common.journal": PROTOCOL | {"common.target"},
    "common.storage": PROTOCOL
    | {"common.capture", "common.source", "common.target", "common.journal"},
    "common.host": PROTOCOL | {"common.capture"},
    "common.status": PROTOCOL | {"common.capture", "common.host"},
    "services.runtime": PROTOCOL | {"common.host", "common.status"},
}
"""Room to those that its files may import, besides their own."""

EVERYTHING_BELOW = {*MAY_IMPORT}
_PARTS = {"services.source", "services.target", "services.monitoring", "services.supervise"}
MAY_IMPORT |= dict.fromkeys(_PARTS, EVERYTHING_BELOW)
MAY_IMPORT |= dict.fromkeys(STAGES, EVERYTHING_BELOW | _PARTS)
MAY_IMPORT["services.cli"] = EVERYTHING_BELOW | _PARTS

IMPURE = {
    "common.ring.mapping",
    "common.capture.dm",
    "common.capture.nbd",
    "common.capture.memory",
    "common.capture.opening",
    "common.host.attach",
    "common.host.config",
}
IMPURE_ROOMS = {"common.storage"}
ALLOWED_IN_PURE = {
    "__future__",
    "abc",
    "bisect",
    "collections",
    "dataclasses",
    "difflib",
    "datetime",
    "enum",
    "itertools",
    "json",
    "math",
    "msgpack",
    "numpy",
    "operator",
    "re",
    "shlex",
    "struct",
    "types",
    "typing",
    "xxhash",
}
"""What a pure module may import from outside: no sockets, files, threads or clocks."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def room_of(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:2])


def imported_by(path: Path, *, for_types_too: bool = True) -> Iterator[str]:
    """Names of modules, also of those imported inside functions; BDR's without the package."""
    tree = ast.parse(path.read_text())
    if not for_types_too:
        tree.body = [node for node in tree.body if not _is_for_types(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("bdr.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = (node.module or "").removeprefix("bdr.")
            for alias in node.names:
                inner = ROOT / Path(*module.split("."), f"{alias.name}.py")
                yield f"{module}.{alias.name}" if inner.exists() else module


def _is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def is_ours(name: str) -> bool:
    return name.split(".", maxsplit=1)[0] in ("common", "services")


def is_pure(name: str) -> bool:
    return name.startswith("common.") and name not in IMPURE and room_of(name) not in IMPURE_ROOMS


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_room_imports_only_the_rooms_of_the_table(path: Path) -> None:
    room = room_of(name_of(path))
    allowed = MAY_IMPORT[room] | ({room} if room not in STAGES else set())
    assert {room_of(name) for name in imported_by(path) if is_ours(name)} <= allowed


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_that_ships_imports_tests_or_scripts(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported_by(path)} & {"tests", "deploy"}


@pytest.mark.parametrize("path", [path for path in MODULES if is_pure(name_of(path))], ids=name_of)
def test_pure_module_imports_and_calls_nothing_that_does_io(path: Path) -> None:
    for other in imported_by(path, for_types_too=False):
        assert is_pure(other) if is_ours(other) else other.split(".")[0] in ALLOWED_IN_PURE, other
    called = [
        node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    ]
    calls = {func.id for func in called if isinstance(func, ast.Name)}
    assert not calls & {"open", "input", "print", "exec", "eval", "__import__"}
    methods = {func.attr for func in called if isinstance(func, ast.Attribute)}
    assert not methods & {"now", "utcnow", "today"}, "the clock of a date or time"


def test_no_circle_of_imports() -> None:
    imports = {
        name_of(path): {name for name in imported_by(path) if is_ours(name)} for path in MODULES
    }
    while True:
        leaves = {name for name, others in imports.items() if not others & imports.keys()}
        if not leaves:
            break
        imports = {name: others for name, others in imports.items() if name not in leaves}
    assert not imports


def test_every_room_stands_in_the_table() -> None:
    assert {room_of(name_of(path)) for path in MODULES} == set(MAY_IMPORT)


HEAVY = {"asyncio", "ssl", "rich", "prometheus_client", "supervisor", "numpy"}
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
        f"import sys, bdr.services.{stage}, bdr.common.capture.dm, bdr.common.capture.nbd; "
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert set(done.stdout.split()) & HEAVY <= allowed
