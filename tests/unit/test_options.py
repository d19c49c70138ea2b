# SPDX-License-Identifier: GPL-2.0-only
"""A key is declared once: bdr.toml, options, command lines and documentation agree."""

from __future__ import annotations

import importlib
import os
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from bdr.common.errors import UsageError
from bdr.common.host import config, programs
from bdr.common.host.keys import ConfigError, Key, checked_texts, keys_of
from bdr.common.host.tables import TABLES, VOLUME, Host, Source, Target
from bdr.services.cli.attach import attach
from bdr.services.cli.foreground import client, server
from bdr.services.cli.scan import resync, verify
from bdr.services.runtime import log, options
from bdr.services.runtime.options import KeyOption

ROOT = Path(__file__).parents[2]
STAGES = {
    stage: importlib.import_module(f"bdr.services.{stage}").main for stage in programs.PRIORITIES
}
COMMANDS: dict[str, click.Command] = {
    **STAGES,
    "client": client,
    "server": server,
    "attach": attach,
}
KEYS = [
    pytest.param(key, id=f"{table.__name__}.{key.name}")
    for table in (Host, Source, Target)
    for key in keys_of(table).values()
]


def keys_in(command: click.Command) -> dict[str, Key]:
    return {param.key.name: param.key for param in command.params if isinstance(param, KeyOption)}


def parsed(command: click.Command, words: list[str]) -> dict[str, Any]:
    """What the function of a command would get."""
    texts = command.make_context("test", list(words), resilient_parsing=False).params
    return texts | checked_texts(keys_in(command).values(), texts)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_options_of_the_keys_that_name_it(name: str) -> None:
    declared = {
        key.name: key
        for table in (Host, Source, Target)
        for key in keys_of(table).values()
        if name in key.accepted_by
    }
    assert set(keys_in(COMMANDS[name])) - {"volume"} == set(declared)
    accepted_by = {taker for key in declared.values() for taker in key.accepted_by}
    assert accepted_by <= set(COMMANDS)


def test_a_foreground_source_has_every_key_but_those_of_attaching() -> None:
    attaching = {"mapper", "buffer_writes", "region_sectors", "stable", "discard"}
    assert set(keys_of(Source)) - attaching - {"role"} <= set(keys_in(client))
    assert set(keys_of(Target)) - {"role"} <= set(keys_in(server))


FULL: dict[str, Any] = {
    "host": {"on_event": ["/h", "it's"], "log_format": "json"},
    "volume": {
        "db": {
            "role": "source", "address": "a", "port": 1000, "chardev": "/dev/c",
            "underdev": "/u", "scan_rate": "2MiB", "assume_clean": True, "rpo_seconds": 2.5,
            "metrics_port": 9, "metrics_address": "::1", "on_event": ["/own", 'a "b" c'],
        },
        "web": {
            "role": "target", "address": "::", "target": "/dev/t", "journal": "none",
            "journal_size": 1 << 30,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("tree", [FULL, FULL | {"host": {}}], ids=["all", "little"])
def test_what_a_process_is_started_with_is_what_the_configuration_says(
    tree: dict[str, Any],
) -> None:
    found = config.check(tree, where="here")
    made = programs.from_config(found, python="/py", programs_dir="/p", counts={})
    for program in made:
        volume = found.effective(program.volume)
        words = list(program.command)
        assert words[:3] == ["/py", "-m", f"bdr.services.{program.stage}"]
        got = parsed(STAGES[program.stage], words[3:])
        assert got["volume"] == program.volume
        assert got["run_dir"] == found.run_dir_of(program.volume)
        for name, key in keys_of(type(volume)).items():
            if program.stage in key.accepted_by:
                assert got[name] == getattr(volume, name), (program.name, name)


def test_what_the_host_says_holds_for_a_volume_that_says_nothing() -> None:
    found = config.check(FULL, where="here")
    own, other = found.effective("db"), found.effective("web")
    assert isinstance(own, Source)
    assert isinstance(other, Target)
    assert own.state == "/var/lib/bdr/db.source"
    assert own.on_event == ["/own", 'a "b" c']
    assert other.on_event == ["/h", "it's"]
    assert other.state == "/var/lib/bdr/web.state"


@pytest.mark.parametrize("key", KEYS)
def test_a_default_is_allowed_and_survives_as_an_option(key: Key) -> None:
    if key.is_required or key.default is None:
        return
    assert key.kind.check(key.default) == key.default
    if not key.kind.is_switch:
        assert key.kind.check(key.kind.of_text(key.kind.to_text(key.default))) == key.default


@pytest.mark.parametrize("table", [Host, Source, Target])
def test_a_table_s_defaults_are_those_that_are_declared(table: type) -> None:
    for field in fields(table):
        key = keys_of(table)[field.name]
        assert (field.default is MISSING) == key.is_required
        assert key.is_required or field.default == key.default


def test_log_formats_are_those_of_the_log() -> None:
    assert keys_of(Host)["log_format"].kind.words == tuple(form.value for form in log.Format)


def made(*params: click.Parameter) -> tuple[click.Command, dict[str, Any]]:
    """A command, and what its function got."""
    got: dict[str, Any] = {}

    def take(**values: Any) -> None:
        got.update(values)

    return options.command(params)(take), got


def test_all_wrong_options_are_told_at_once() -> None:
    command, got = made(*options.of(Source, "client"))
    words = ["--address", "a b", "--chardev", "/c", "--port", "0", "--senders", "x"]
    done = CliRunner().invoke(command, [*words, "--on-event", "x 'y", "--scan-rate", "1K"])
    assert done.exit_code == UsageError.exit_code
    assert done.stderr.splitlines() == [
        "bdr: --address: found 'a b'; wanted a host name or address",
        "bdr: --port: found 0; wanted a whole number from 1 to 65534",
        "bdr: --senders: found 'x'; wanted a whole number from 1 to 64",
        "bdr: --scan-rate: found '1K'; wanted a size of 1 MiB or more, such as \"200MiB\"",
        'bdr: --on-event: found "x \'y": no closing quotation; wanted it quoted as for a shell',
    ]
    assert got == {}


def test_an_option_s_text_becomes_the_value_of_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = os.getcwd()
    command, got = made(*options.of(Target, "server"))
    words = ["--target", "disk", "--journal", "none", "--journal-size", "1 gib"]
    words += ["--rpo-seconds", "1.5", "--on-event", "page 'a b'", "--state", "./x/../s"]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, done.output
    assert got == {
        "address": "*",
        "port": 8437,
        "target": f"{here}/disk",
        "journal": "none",
        "journal_size": 1 << 30,
        "state": f"{here}/s",
        "before_resync": None,
        "before_resync_seconds": 60.0,
        "before_resync_failure": "hold",
        "rpo_seconds": 1.5,
        "metrics_address": "127.0.0.1",
        "metrics_port": None,
        "on_event": ["page", "a b"],
    }


@pytest.mark.parametrize("flag", ["--noreplication", "--no-replication", "--assume-clean"])
def test_every_name_of_an_option_is_taken(flag: str) -> None:
    words = ["--address", "a", "--chardev", "/c"]
    assert parsed(client, words)["assume_clean"] is False
    assert parsed(client, [*words, flag])["assume_clean"] is True


@pytest.mark.parametrize(
    "words",
    [
        "client --address a --port 1 --chardev /c --underdev /u --noreplication --verbose --debug "
        "--noprint",
        "server --address a --port 1 --target /t --verbose --debug --noprint",
    ],
)
def test_the_first_options_are_still_taken(words: str) -> None:
    name, *rest = words.split()
    got = parsed(COMMANDS[name], rest)
    assert (got["address"], got["port"], got["volume"]) == ("a", 1, "bdr")
    assert got["verbose"]
    assert got["debug"]
    assert got["noprint"]


@pytest.mark.parametrize("name", ["", "a b", "é", "a_b", "a" * 65, "../x"])
def test_a_volume_has_the_same_names_everywhere(name: str) -> None:
    with pytest.raises(ConfigError):
        checked_texts([VOLUME], {"volume": name})
    with pytest.raises(ConfigError):
        config.check({"volume": {name: {"role": "target", "target": "/t"}}}, where="here")


@pytest.mark.parametrize("command", [resync, verify])
def test_a_place_needs_all_of_its_options(command: click.Command) -> None:
    done = CliRunner().invoke(command, ["--run-dir", "/nowhere", "--chardev", "/c"])
    assert done.exit_code == 2
    assert "--chardev and --address belong together" in done.output


@pytest.mark.parametrize("stage", STAGES)
def test_help_begins_with_the_volume_and_ends_with_the_log(stage: str) -> None:
    names = [param.name for param in STAGES[stage].params]
    assert names[0] == "volume"
    assert names[-4:] == ["log_format", "verbose", "debug", "noprint"]
    done = CliRunner().invoke(STAGES[stage], ["--help"])
    assert done.exit_code == 0
    for key in keys_in(STAGES[stage]).values():
        assert key.flag in done.output


def row(key: Key) -> str:
    """A line of a table in docs/configuration.md."""
    if key.is_required:
        default = "needed"
    elif key.default is None:
        default = key.fallback
    elif isinstance(key.default, str):
        default = f'"{key.default}"'
    else:
        default = key.kind.to_text(key.default).lower()
    return f"| `{key.name}` | {key.kind.wanted} | {default} | {key.help} |"


@pytest.mark.parametrize("table", [Host, *TABLES.values()])
def test_the_documentation_has_the_table(table: type) -> None:
    lines = ["| key | value | default | |", "|---|---|---|---|"]
    lines += [row(key) for key in keys_of(table).values()]
    # Copy it from here when it differs.
    assert "\n".join(lines) in (ROOT / "docs" / "configuration.md").read_text()
