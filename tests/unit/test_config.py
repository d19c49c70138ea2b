# SPDX-License-Identifier: GPL-2.0-only
"""bdr.toml: each key wrong in turn, each message with file, key, value and what is allowed."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdr.common.host import config
from bdr.common.host.keys import ConfigError, keys_of
from bdr.common.host.sizes import parse_size, show_size
from bdr.common.host.tables import Host, Source, Target

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "deploy" / "bdr.example.toml"

GOOD: dict[str, Any] = {
    "host": {},
    "volume": {
        "db": {"role": "source", "address": "b.example", "chardev": "/dev/c", "underdev": "/dev/u"},
        "web": {"role": "target", "target": "/dev/t", "port": 9000},
    },
}

WRONG: dict[tuple[str, ...], list[Any]] = {
    ("host", "run_dir"): ["run", "", 3, "/" + "x" * 120],
    ("host", "state_dir"): ["state", False],
    ("host", "log_dir"): [["/a"], "a\nb"],
    ("host", "log_format"): ["xml", 1],
    ("host", "log_level"): ["loud"],
    ("host", "on_event"): ["/bin/x", [], [1]],
    ("volume", "db", "role"): ["both", 1],
    ("volume", "db", "address"): ["", "a b", 7],
    ("volume", "db", "port"): [0, 65535, "8437", 1.5, True],
    ("volume", "db", "chardev"): ["bdr-db", 5],
    ("volume", "db", "underdev"): ["sda", 5],
    ("volume", "db", "mapper"): ["a/b", "", 5],
    ("volume", "db", "buffer_writes"): [0, 7, 1 << 29, "64M"],
    ("volume", "db", "region_sectors"): [100, 4, 1 << 21, "128"],
    ("volume", "db", "stable"): ["never", True],
    ("volume", "db", "discard"): ["never", True],
    ("volume", "db", "senders"): [0, 65, "2", 1.0],
    ("volume", "db", "scanners"): [0, 17, "2"],
    ("volume", "db", "scan_rate"): [0, "fast", 1 << 10],
    ("volume", "db", "assume_clean"): ["yes", 1],
    ("volume", "db", "state"): ["s", 1],
    ("volume", "db", "rpo_seconds"): [
        0,
        -1,
        "soon",
        "60",
        True,
        10**400,
        float("nan"),
        float("inf"),
    ],
    ("volume", "db", "metrics_address"): ["", 1],
    ("volume", "db", "metrics_port"): [0, 65536, "9437"],
    ("volume", "db", "on_event"): ["/bin/x", []],
    ("volume", "web", "role"): ["both"],
    ("volume", "web", "address"): ["", 1],
    ("volume", "web", "port"): [0, 65535],
    ("volume", "web", "target"): ["t", 1],
    ("volume", "web", "journal"): ["None", "journal", 1],
    ("volume", "web", "journal_size"): ["1 apple", -1, "1K", 1.5, True],
    ("volume", "web", "state"): ["s", 1],
    ("volume", "web", "before_resync"): ["/bin/x", [], [1]],
    ("volume", "web", "before_resync_seconds"): [0, "soon"],
    ("volume", "web", "before_resync_failure"): ["never", True],
    ("volume", "web", "rpo_seconds"): [0],
    ("volume", "web", "metrics_address"): [""],
    ("volume", "web", "metrics_port"): [0],
    ("volume", "web", "on_event"): [[]],
}


def problems(tree: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.check(tree, where="/etc/bdr/bdr.toml")
    assert caught.value.exit_code == 64
    return caught.value.problems


def test_the_table_of_wrong_values_has_every_key() -> None:
    tables = {("host",): Host, ("volume", "db"): Source, ("volume", "web"): Target}
    keys = {(*place, key) for place, model in tables.items() for key in keys_of(model)}
    assert keys == set(WRONG)


@pytest.mark.parametrize(
    ("place", "value"), [(place, value) for place, values in WRONG.items() for value in values]
)
def test_each_key_wrong_in_turn_is_named(place: tuple[str, ...], value: Any) -> None:
    tree = copy.deepcopy(GOOD)
    table = tree
    for step in place[:-1]:
        table = table[step]
    table[place[-1]] = value
    (problem, *_) = problems(tree)
    assert problem.startswith(f"/etc/bdr/bdr.toml: {'.'.join(place)}: found ")
    assert "wanted " in problem
    if not isinstance(value, list):
        assert repr(value) in problem


@pytest.mark.parametrize(
    ("place", "key"),
    [("db", "role"), ("db", "address"), ("db", "chardev"), ("web", "role"), ("web", "target")],
)
def test_a_key_that_is_needed_is_missed(place: str, key: str) -> None:
    tree = copy.deepcopy(GOOD)
    del tree["volume"][place][key]
    (problem,) = problems(tree)
    assert problem.startswith(f"/etc/bdr/bdr.toml: volume.{place}.{key}: missing; wanted ")


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"hosts": {}}, "hosts: unknown key; did you mean host? wanted one of host, volume"),
        ({"host": {"logdir": "/x"}}, "host.logdir: unknown key; did you mean log_dir?"),
        ({"host": 3}, "host: found 3; wanted a table"),
        ({"volume": {"a": 3}}, "volume.a: found 3; wanted a table"),
        ({"volume": 3}, "volume: found 3; wanted a table"),
        (
            {"volume": {"a b": {"role": "target", "target": "/t"}}},
            "volume.a b: found the name 'a b'; wanted 1 to 64 letters, digits and dashes",
        ),
    ],
)
def test_wrong_tables_are_named(tree: dict[str, Any], said: str) -> None:
    (problem,) = problems(tree)
    assert problem.startswith(f"/etc/bdr/bdr.toml: {said}")


def test_a_target_with_a_source_key_is_told_what_it_may_have() -> None:
    tree = copy.deepcopy(GOOD)
    tree["volume"]["web"]["senders"] = 2
    (problem,) = problems(tree)
    assert "volume.web.senders: unknown key; wanted one of " in problem


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"port": 9000}, "port: found 9000, which is also that of volume.web.port"),
        ({"port": 9001}, "port: found 9001, which is also that of volume.web.port + 1"),
        ({"port": 8999}, "port + 1: found 9000, which is also that of volume.web.port"),
        ({"target": "/dev/t"}, "target: found '/dev/t', which is also that of volume.web.target"),
        ({"state": "/dev/t"}, "state: found '/dev/t', which is also that of volume.web.target"),
        ({"metrics_port": 9100}, "metrics_port: found 9100, which is also that of volume.db"),
    ],
)
def test_two_volumes_may_not_share(change: dict[str, Any], said: str) -> None:
    tree = copy.deepcopy(GOOD)
    tree["volume"]["db"]["metrics_port"] = 9100
    tree["volume"]["c"] = {"role": "target", "target": "/dev/c2", "port": 9500} | change
    assert f"volume.c.{said}" in problems(tree)[0]


def test_a_mapper_needs_what_it_attaches() -> None:
    tree = copy.deepcopy(GOOD)
    tree["volume"]["db"] |= {"mapper": "m", "chardev": "/run/x/ring.sock"}
    del tree["volume"]["db"]["underdev"]
    found = problems(tree)
    assert len(found) == 2
    assert "volume.db.underdev: missing" in found[0]
    assert "volume.db.chardev: found '/run/x/ring.sock'; wanted /dev/NAME" in found[1]


def test_all_mistakes_are_told_at_once() -> None:
    tree = copy.deepcopy(GOOD)
    tree["volume"]["db"] |= {"port": 0, "senders": 0}
    tree["host"]["log_level"] = "x"
    assert len(problems(tree)) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[host\n", "found no valid TOML: "),
        (b"a = 1\na = 2\n", "found no valid TOML: "),
        (b'[host]\nlog_dir = "\xff"\n', "found no UTF-8"),
    ],
)
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bdr.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(str(path))) as caught:
        config.load(path)
    assert said in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="the message differs")
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=said) as caught:
            config.load(path)
        assert "--config" in str(caught.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ),
    st.sampled_from([(), ("host",), ("volume",), ("volume", "db"), ("volume", "db", "role")]),
)
def test_any_tree_gives_a_configuration_or_the_typed_error(
    value: Any, place: tuple[str, ...]
) -> None:
    tree: Any = {"x": copy.deepcopy(GOOD)}
    table, key = tree, "x"
    for step in place:
        table, key = table[key], step
    table[key] = value
    if not isinstance(tree["x"], dict):
        return  # TOML's root is a table
    with contextlib.suppress(ConfigError):  # any other error fails the test
        config.check(tree["x"], where="x")


def test_the_example_explains_every_key_and_is_good() -> None:
    found = config.load(EXAMPLE)
    assert {volume.role for volume in found.volume.values()} == {"source", "target"}
    text = EXAMPLE.read_text()
    tree = tomllib.loads(re.sub(r"(?m)^# (\w+ = )", r"\1", text))
    config.check(tree, where="example")
    tables = [("host", tree["host"], Host), ("db", tree["volume"]["db"], Source)]
    tables.append(("web", tree["volume"]["web"], Target))
    for name, table, model in tables:
        assert set(table) == set(keys_of(model)), name
    # A line of explanation stands before each key's first occurrence.
    for key in {key for _, table, _ in tables for key in table}:
        lines = text.splitlines()
        at = next(i for i, line in enumerate(lines) if re.match(rf"(# )?{key} = ", line))
        above = lines[at - 1]
        # Pairs share theirs.
        assert above.startswith("#") or re.match(r"(role|metrics_address) = |\[", above), key


def test_the_example_shows_the_defaults() -> None:
    tree = tomllib.loads(EXAMPLE.read_text())
    shown = {"mapper", "underdev", "metrics_port", "journal_size", "port"}
    for table, model in (
        (tree["host"], Host),
        (tree["volume"]["db"], Source),
        (tree["volume"]["web"], Target),
    ):
        for key, declared in keys_of(model).items():
            if not declared.is_required and key in table and key not in shown:
                assert table[key] == declared.default, key


def test_the_documentation_has_every_key() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    for model in (Host, Source, Target):
        for key in keys_of(model):
            assert f"`{key}`" in text, key


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("4K", 4096), ("1 GiB", 1 << 30), ("2gb", 2 << 30), (" 1T ", 1 << 40)],
)
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (200 << 20, "200.0 MiB"),
        (1 << 50, "1024.0 TiB"),
    ],
)
def test_sizes_are_shown_in_binary_units(size: int, text: str) -> None:
    assert show_size(size) == text
