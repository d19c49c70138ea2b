# SPDX-License-Identifier: GPL-2.0-only
"""Code and docs use the terms of the field: words that are banned, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.unit.test_import_rules import ROOT

FOLDERS = ("common", "services", "deploy", "kern", "docs")
PAGES = ("README.md", "ARCHITECTURE.md", "supervisord.conf", "Makefile")
SUFFIXES = {".py", ".c", ".h", ".md", ".sh", ".mk", ".toml", ".yml", ".json", ".service"}

BANNED = {
    r"(no|some|every)body|someone|whoever": "a process, a host or a thread is meant: name it",
    r"tells|told": "processes send, report or return",
    r"speaks?|spoke": "a peer has a protocol or an ABI version",
    r"heals?|healed": "an error is transient or permanent; a replica is repaired",
    r"for ever": "indefinitely; or name what ends it",
    r"by (the|your) (user's )?word|at its word": "an assertion, or a setting",
    r"gives? (it|them|the \w+|everything) free": "closes or releases",
    r"goes down as|on its way down": "is submitted as",
    r"device below|disk below": "the underlying device",
    r"tickets?": "a lease of a scan, or a write in flight",
    r"farewells?": "close_reason",
    r"setbacks?": "consecutive losses",
    r"(ring|capture|bitmap) (was |is )?looked at": "read or sampled",
    r"is no matter": "is ignored",
    r"greets? (again|anew)": "sends HELLO again",
    r"dies|died": "a process exits, crashes or is killed",
}
"""Pattern of whole words, to what it hides and what to write instead."""

ALLOWED = {
    ("services/runtime/process.py", "dies"),  # of a parent: the term of prctl(2)
    ("services/runtime/options.py", "dies"),
    ("services/runtime/options.py", "died"),
}
"""(file, word) that is a term of the field."""

NAMES = {
    r"\w*(now|began|begun|deadline|since|promoted|accepted)_s": (
        "`_s` is a duration; an instant ends with `_at` (monotonic) or `_utc` (wall clock)"
    ),
    r"farewell|settle": "close_reason; wait_applied or drop_page_cache",
}
"""Pattern of a whole identifier in Python, to what is wrong with it."""

NAMES_OF_OTHERS = {
    ("common/target/record.py", "since_s"),  # on disk
    ("common/target/record.py", "promoted_s"),
    ("common/host/attach.py", "settle"),  # udevadm settle
}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix in SUFFIXES and "build" not in path.parts:
                yield path


def hits(
    paths: Iterable[Path], pattern: str, flags: int = re.IGNORECASE, *, root: Path = ROOT
) -> list[tuple[str, str]]:
    """(file, word) of each match of whole words; a match may be wrapped over two lines."""
    spaced = pattern.replace(" ", r"[\s*#]+")
    found = re.compile(rf"\b(?:{spaced})\b", flags)
    return [
        (str(path.relative_to(root)), match[0].lower())
        for path in paths
        for match in found.finditer(path.read_text())
    ]


@pytest.mark.parametrize(("pattern", "reason"), BANNED.items())
def test_banned_words_are_not_used(pattern: str, reason: str) -> None:
    paths = (*sources(*FOLDERS), *(ROOT / page for page in PAGES))
    assert [hit for hit in hits(paths, pattern) if hit not in ALLOWED] == [], reason


@pytest.mark.parametrize(("pattern", "reason"), NAMES.items())
def test_banned_names_are_not_used(pattern: str, reason: str) -> None:
    paths = (path for path in sources("common", "services") if path.suffix == ".py")
    assert [hit for hit in hits(paths, pattern, 0) if hit not in NAMES_OF_OTHERS] == [], reason


@pytest.mark.parametrize(
    "text",
    ["nobody knows", "is told", "for\n# ever", "the device below", "begins for\n * ever"],
)
def test_a_banned_word_is_found(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(text)
    found = [hit for pattern in BANNED for hit in hits([path], pattern, root=tmp_path)]
    assert [file for file, _ in found] == ["a.py"]
