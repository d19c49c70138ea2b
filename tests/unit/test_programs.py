# SPDX-License-Identifier: GPL-2.0-only
"""Program files: what supervisord reads is what was meant, whatever the words are."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from supervisor.options import ServerOptions

from bdr.common.errors import PERMANENT_EXIT_CODES
from bdr.common.host import config, programs
from bdr.common.host.programs import Program

ROOT = Path(__file__).parent.parent.parent
WORDS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\r\n", exclude_categories=["C", "Z"]),
    min_size=1,
)


def read(directory: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What supervisord makes of the files, under the shipped configuration."""
    include = directory / "programs"
    include.mkdir(exist_ok=True)
    for name, text in files.items():
        (include / name).write_text(text)
    monkeypatch.setenv("BDR_RUN_DIR", str(directory))
    monkeypatch.setenv("BDR_LOG_DIR", str(directory))
    options = ServerOptions()
    # Its own way of reading arguments, without becoming a daemon.
    options.realize(["--configuration", str(ROOT / "supervisord.conf")], doc="")
    return {group.name: group for group in options.process_group_configs}


def test_a_stage_of_many_is_a_group_and_any_other_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [
        Program("db", "reader", 1, ["r"]),
        Program("db", "sender", 1, ["s"]),
        Program("db", "sender", 10, ["s"]),
        Program("db", "sender", 2, ["s"]),
        Program("db-sender", "monitor", 1, ["m"]),
    ]
    groups = read(tmp_path, programs.files(made, log_dir=str(tmp_path)), monkeypatch)
    assert {name: [p.name for p in group.process_configs] for name, group in groups.items()} == {
        "db-reader": ["db-reader"],
        "db-sender": ["db-sender-1", "db-sender-2", "db-sender-10"],
        "db-sender-monitor": ["db-sender-monitor"],
    }
    assert made[2].namespec == "db-sender:db-sender-10"
    assert made[0].namespec == "db-reader"


def test_what_supervisord_does_with_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program("db", "reader", 1, ["r"])
    groups = read(tmp_path, programs.files([program], log_dir=str(tmp_path)), monkeypatch)
    (process,) = groups["db-reader"].process_configs
    assert tuple(process.exitcodes) == PERMANENT_EXIT_CODES
    assert process.startsecs == 0
    assert process.autorestart.__name__ == "RestartWhenExitUnexpected"
    assert process.stopasgroup
    assert process.killasgroup
    assert process.redirect_stderr
    assert process.stdout_logfile == str(tmp_path / "db-reader.log")
    assert process.stdout_logfile_maxbytes == programs.LOG_BYTES


@given(words=st.lists(WORDS, min_size=1), value=WORDS)
def test_words_reach_the_process_as_they_were(words: list[str], value: str) -> None:
    program = Program("db", "reader", 1, words, {"X": value})
    section = program.section(log_dir=None)
    (command,) = (x for x in section.splitlines() if x.startswith("command="))
    # As supervisord does: expansion, then shlex.
    expanded = command.removeprefix("command=") % {}
    assert shlex.split(expanded) == words


def test_words_and_variables_survive_supervisord(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["a b", "100%", "%(x)s", 'say "hi"', "back\\slash", "it's", "semi;colon", "a ;b"]
    words.append("a #b ; c")
    program = Program("db", "reader", 1, words, {"BDR_LOG_FORMAT": "json"})
    groups = read(tmp_path, programs.files([program], log_dir=str(tmp_path)), monkeypatch)
    (process,) = groups["db-reader"].process_configs
    assert shlex.split(process.command) == words
    assert process.environment == {"BDR_LOG_FORMAT": "json"}


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("db-reader", "reader"),
        ("db-sender-1", "sender"),
        ("db-sender-12", "sender"),
        ("db-sender.group", None),
        ("db-sender", None),
        ("db-sender-x", None),
        ("db-reader-1", None),
        ("db2-reader", None),
        ("db-x-reader", None),
    ],
)
def test_stage_of_knows_a_volumes_own(name: str, stage: str | None) -> None:
    assert programs.stage_of(name, volume="db") == stage


def make(tree: dict[str, Any], counts: dict[tuple[str, str], int] | None = None) -> list[Program]:
    found = config.check(tree, where="x")
    return programs.from_config(found, python="/py", programs_dir="/p", counts=counts or {})


def test_every_key_reaches_its_process() -> None:
    tree = {
        "host": {"log_level": "debug", "log_format": "json", "on_event": ["/h", "a b"]},
        "volume": {
            "db": {
                "role": "source", "address": "a", "port": 1000, "chardev": "/dev/c",
                "senders": 2, "scan_rate": "1MiB", "underdev": "/u", "assume_clean": True,
                "rpo_seconds": 2.5, "metrics_port": 9, "metrics_address": "::1",
            },
            "web": {
                "role": "target", "target": "/dev/t", "journal": "/dev/j",
                "journal_size": "1GiB", "state": "/s", "on_event": ["/own"],
            },
        },
    }  # fmt: skip
    commands = {program.name: " ".join(program.command) for program in make(tree)}
    assert set(commands) == {
        "db-reader", "db-sender-1", "db-sender-2", "db-scanner-1", "db-monitor", "web-applier",
        "web-monitor",
    }  # fmt: skip
    link = "--address a --port 1000 --chardev /dev/c"
    start = "/py -m bdr.services.{} --volume {} --run-dir /run/bdr/{}"
    assert commands["db-reader"] == (
        f"{start.format('reader', 'db', 'db')} {link} --scan-rate 1048576 --assume-clean "
        "--state /var/lib/bdr/db.source --debug"
    )
    assert commands["db-scanner-1"] == (
        f"{start.format('scanner', 'db', 'db')} {link} --underdev /u --debug"
    )
    assert commands["db-sender-2"] == f"{start.format('sender', 'db', 'db')} {link} --debug"
    assert commands["db-monitor"] == (
        f"{start.format('monitor', 'db', 'db')} --role source --chardev /dev/c "
        "--rpo-seconds 2.5 --metrics-address ::1 --metrics-port 9 --on-event /h 'a b' "
        "--programs-dir /p --debug"
    )
    assert commands["web-applier"] == (
        f"{start.format('applier', 'web', 'web')} --address * --port 8437 "
        "--target /dev/t --journal /dev/j --journal-size 1073741824 --state /s --debug"
    )
    assert "--on-event /own" in commands["web-monitor"]
    assert all(p.environment == {"BDR_LOG_FORMAT": "json"} for p in make(tree))


def test_scaled_numbers_replace_configured_ones() -> None:
    tree = {"volume": {"db": {"role": "source", "address": "a", "chardev": "/c", "senders": 2}}}
    names = {program.name for program in make(tree, {("db", "sender"): 3})}
    assert {name for name in names if "sender" in name} == {f"db-sender-{n}" for n in (1, 2, 3)}
