# SPDX-License-Identifier: GPL-2.0-only
"""What `services.supervise` uses of supervisor's insides: there, and of the meaning it has here.

supervisor promises none of it. Where another version of it breaks these tests, `rpc.py` or
`supervisord.py` of that folder needs to be looked at before the version is allowed.
"""

from __future__ import annotations

import ast
import importlib.metadata
import logging
from pathlib import Path
from typing import Any

import pytest
from supervisor import xmlrpc
from supervisor.http import NOT_DONE_YET
from supervisor.options import ServerOptions
from supervisor.states import STOPPED_STATES, ProcessStates
from supervisor.supervisord import Supervisor

from bdr.common.host import programs
from bdr.common.host.programs import Program
from bdr.services.supervise.rpc import BdrInterface

ROOT = Path(__file__).parents[2]
VERSION = importlib.metadata.version("supervisor")

USED: dict[str, set[str]] = {
    "Supervisor": {"options", "process_groups", "add_process_group", "remove_process_group"},
    "ServerOptions": {"process_config", "process_group_configs"},
    "ProcessGroupConfig": {"name", "process_configs"},
    "ProcessGroup": {"config", "processes", "get_unstopped_processes"},
    "ProcessConfig": {"name", "create_autochildlogs", "make_process"},
    "Subprocess": {
        "config", "get_state", "stop", "give_up", "laststart", "administrative_stop",
    },
    "ProcessStates": {"RUNNING", "STARTING", "BACKOFF"},
    "Faults": {"CANT_REREAD"},
    "SupervisorTransport": {"_get_connection", "close"},
    "UnixStreamHTTPConnection": {"connect"},
}  # fmt: skip
"""Class, to the attributes of its instances that rpc.py and supervisord.py use."""


class Host:
    """A supervisor that has read its files, and runs nothing."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        (directory / "programs").mkdir()
        monkeypatch.setenv("BDR_RUN_DIR", str(directory))
        monkeypatch.setenv("BDR_LOG_DIR", str(directory))
        self.write(Program("v", "reader", 1, ["r"]), Program("v", "sender", 1, ["s"]))
        options = ServerOptions()
        options.realize(["--configuration", str(ROOT / "supervisord.conf")], doc="")
        self.supervisor = Supervisor(options)
        for group in options.process_group_configs:
            self.supervisor.add_process_group(group)

    def write(self, *wanted: Program) -> None:
        """Makes the program files those of these programs."""
        for path in (self._directory / "programs").iterdir():
            path.unlink()
        for name, text in programs.files(wanted, log_dir=str(self._directory)).items():
            (self._directory / "programs" / name).write_text(text)

    def update(self) -> dict[str, list[str]]:
        """What `bdr.update()` does, and answers."""
        poll = BdrInterface(self.supervisor).update()
        answer: Any = poll()
        assert answer is not NOT_DONE_YET
        return dict(answer)

    def process(self, name: str) -> Any:
        """A process by its name."""
        return {
            each: process
            for group in self.supervisor.process_groups.values()
            for each, process in group.processes.items()
        }[name]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


@pytest.fixture
def instances(host: Host) -> dict[str, Any]:
    group = host.supervisor.process_groups["v-sender"]
    return {
        "Supervisor": host.supervisor,
        "ServerOptions": host.supervisor.options,
        "ProcessGroupConfig": host.supervisor.options.process_group_configs[0],
        "ProcessGroup": group,
        "ProcessConfig": group.processes["v-sender-1"].config,
        "Subprocess": group.processes["v-sender-1"],
        "ProcessStates": ProcessStates,
        "Faults": xmlrpc.Faults,
        "SupervisorTransport": xmlrpc.SupervisorTransport(None, None, "unix:///nowhere"),
        "UnixStreamHTTPConnection": xmlrpc.UnixStreamHTTPConnection("localhost"),
    }


@pytest.mark.parametrize("name", USED)
def test_supervisor_has_what_is_used(name: str, instances: dict[str, Any]) -> None:
    missing = {each for each in USED[name] if not hasattr(instances[name], each)}
    assert not missing, f"supervisor {VERSION}: {name} lacks {missing}, which bdr uses"


def test_every_attribute_that_the_extension_uses_is_named_here() -> None:
    tree = ast.parse((ROOT / "services" / "supervise" / "rpc.py").read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    own |= {each for each in used if each.startswith("_")} | {"added", "removed", "changed"}
    builtin = {name for each in (dict, set, list) for name in dir(each)}
    # Of the function that supervisor polls, and that it looks for these on.
    polled = {"delay", "rpcinterface"}
    named = set().union(*USED.values())
    assert used - own - builtin - polled <= named


def test_a_process_that_is_made_counts_as_never_started(host: Host) -> None:
    process = host.process("v-reader")
    assert process.get_state() == ProcessStates.STOPPED
    assert process.get_state() in STOPPED_STATES
    assert (process.laststart, process.administrative_stop) == (0, False)


def test_files_that_are_read_again_give_equal_configurations(host: Host) -> None:
    before = {name: group.config for name, group in host.supervisor.process_groups.items()}
    host.supervisor.options.process_config(do_usage=False)
    after = {config.name: config for config in host.supervisor.options.process_group_configs}
    for name, config in before.items():
        assert config is not after[name]
        assert config.process_configs == after[name].process_configs


def test_nothing_changed_leaves_every_process_as_it_is(host: Host) -> None:
    before = [host.process("v-reader"), host.process("v-sender-1")]
    assert host.update() == {"added": [], "removed": [], "changed": []}
    assert [host.process("v-reader"), host.process("v-sender-1")] == before


def test_a_member_is_added_and_removed_beside_the_others(host: Host) -> None:
    sender, reader = host.process("v-sender-1"), Program("v", "reader", 1, ["r"])
    two = [Program("v", "sender", at, ["s"]) for at in (1, 2)]
    host.write(reader, *two)
    assert host.update() == {"added": ["v-sender-2"], "removed": [], "changed": []}
    assert host.process("v-sender-1") is sender
    host.write(reader, two[1])
    assert host.update() == {"added": [], "removed": ["v-sender-1"], "changed": []}
    assert list(host.supervisor.process_groups["v-sender"].processes) == ["v-sender-2"]
    host.write(two[1])
    assert host.update() == {"added": [], "removed": ["v-reader"], "changed": []}
    assert set(host.supervisor.process_groups) == {"v-sender"}


def test_what_was_stopped_by_hand_is_not_started_when_it_changes(host: Host) -> None:
    held = host.process("v-reader")
    held.administrative_stop, held.laststart = True, 5.0
    host.write(Program("v", "reader", 1, ["other"]), Program("v", "sender", 1, ["other"]))
    assert host.update()["changed"] == ["v-reader", "v-sender-1"]
    made = host.process("v-reader")
    assert made is not held
    assert (made.administrative_stop, made.laststart) == (True, 5.0)
    other = host.process("v-sender-1")
    assert (other.administrative_stop, other.laststart) == (False, 0)


def test_supervisor_starts_by_itself_what_was_never_started_and_nothing_else(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    for name in ("v-reader", "v-sender-1"):
        process = host.process(name)
        monkeypatch.setattr(process, "spawn", lambda name=name: started.append(name))
    host.process("v-reader").laststart = 5.0
    host.supervisor.options.logger = logging.getLogger("supervisor")
    for group in host.supervisor.process_groups.values():
        group.transition()
    assert started == ["v-sender-1"]
