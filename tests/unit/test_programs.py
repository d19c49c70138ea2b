# SPDX-License-Identifier: GPL-2.0-only
"""Program files: what supervisord reads is what was meant, whatever the words are."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from supervisor.options import ClientOptions, ServerOptions

from bdr.common.errors import PERMANENT_EXIT_CODES
from bdr.common.host import config, programs
from bdr.common.host.conflicts import problems
from bdr.common.host.keys import keys_of
from bdr.common.host.programs import Program
from bdr.common.host.tables import Host, Source, Target
from bdr.services.supervise.supervisord import Supervision

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


ODD_NAMES = ["a b", "100%", "%(x)s", "it's", 'x"y', "semi;colon#", "[a]", "back\\slash", "ümlaut"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_directory_of_logs_survives_supervisord(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    log_dir = tmp_path / name
    log_dir.mkdir()
    program = Program("db", "reader", 1, ["r"])
    groups = read(tmp_path, programs.files([program], log_dir=str(log_dir)), monkeypatch)
    (process,) = groups["db-reader"].process_configs
    assert process.stdout_logfile == str(log_dir / "db-reader.log")


@pytest.mark.parametrize("name", [name for name in ODD_NAMES if "[" not in name])
def test_any_run_directory_survives_supervisord(tmp_path: Path, name: str) -> None:
    """Those that do not are refused: `common.host.conflicts`."""
    run_dir = tmp_path / name
    host = Host(run_dir=str(run_dir), log_dir=str(run_dir / "log"))
    assert not problems(host, {})
    supervision = Supervision(str(run_dir))
    supervision.prepare(log_dir=host.log_dir)
    supervision.write([Program("db", "reader", 1, ["r"])], log_dir=host.log_dir)
    options = ServerOptions()
    options.realize(["--configuration", str(supervision.conf)], doc="")
    assert [group.name for group in options.process_group_configs] == ["db-reader"]
    assert options.pidfile == str(run_dir / "supervisord.pid")
    assert options.logfile == str(run_dir / "log" / "supervisord.log")
    (server,) = options.server_configs
    assert server["file"] == str(supervision.socket)
    client = ClientOptions()
    client.realize(["--configuration", str(supervision.conf)], doc="")
    assert client.serverurl == f"unix://{supervision.socket}"


@pytest.mark.parametrize("name", ["a ;b", "a #b", "a\t;b", "a ", "a\n", "a\rb", "a*", "a?", "[a]"])
def test_a_run_directory_that_supervisord_cannot_have_is_refused(name: str) -> None:
    assert problems(Host(run_dir=f"/run/{name}"), {})


@pytest.mark.parametrize("name", ["a ;b", "a #b", "a ", "a\n", "a\rb", "\udcff"])
def test_a_directory_of_logs_that_supervisord_cannot_have_is_refused(name: str) -> None:
    assert problems(Host(log_dir=f"/log/{name}"), {})


@pytest.mark.parametrize("text", ["/a\nb", "/a\rb", "/a\0b", "/\udcff"])
def test_a_text_that_a_program_file_cannot_have_is_refused(text: str) -> None:
    """Anything else is quoted, as the test of words shows."""
    for kind in (keys_of(Target)["target"].kind, keys_of(Source)["chardev"].kind):
        with pytest.raises(ValueError):  # noqa: PT011
            kind.check(text)
    with pytest.raises(ValueError):  # noqa: PT011
        keys_of(Host)["on_event"].kind.check(["/hook", text])


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
                "before_resync": ["/b", "a b"], "before_resync_failure": "proceed",
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
        "--target /dev/t --journal /dev/j --journal-size 1073741824 --state /s "
        "--before-resync /b 'a b' --before-resync-seconds 60 --before-resync-failure proceed "
        "--debug"
    )
    assert "--on-event /own" in commands["web-monitor"]
    expected = {"BDR_LOG_FORMAT": "json", "BDR_RETRY": "always"}
    assert all(p.environment == expected for p in make(tree))


def test_scaled_numbers_replace_configured_ones() -> None:
    tree = {"volume": {"db": {"role": "source", "address": "a", "chardev": "/c", "senders": 2}}}
    names = {program.name for program in make(tree, {("db", "sender"): 3})}
    assert {name for name in names if "sender" in name} == {f"db-sender-{n}" for n in (1, 2, 3)}
