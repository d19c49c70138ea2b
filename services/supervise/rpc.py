# SPDX-License-Identifier: GPL-2.0-only
"""An extension of supervisord: updates its set of processes individually.

supervisord's own `update` restarts every process of a group of which one was added, removed or
changed. This one does not affect processes whose program file has not changed. It runs inside
supervisord:

    [rpcinterface:bdr]
    supervisor.rpcinterface_factory = bdr.services.supervise.rpc:make_interface

Its only call, `bdr.update()`, reads the configuration again, stops removed and changed processes,
and returns when these have stopped and the others are started. Processes stopped by an operator
stay stopped.

It uses private interfaces of supervisor, of 4.2 and 4.3 so far;
tests/unit/test_supervisor_contract.py checks them. supervisord has one thread and calls this
between two rounds of its loop, so nothing changes concurrently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from supervisor.http import NOT_DONE_YET
from supervisor.states import STOPPED_STATES, ProcessStates
from supervisor.xmlrpc import Faults, RPCError

from bdr.services.supervise.inside import prepare

_STOPPABLE = (ProcessStates.RUNNING, ProcessStates.STARTING)


class BdrInterface:
    """The namespace `bdr` of supervisord's XML-RPC."""

    def __init__(self, supervisord: Any) -> None:
        self._supervisord = supervisord

    def update(self) -> Callable[[], Any]:
        """Updates the running processes to the configuration.

        @return struct result  lists of process names: added, removed, changed
        """
        options = self._supervisord.options
        try:
            options.process_config(do_usage=False)
        except ValueError as error:
            raise RPCError(Faults.CANT_REREAD, str(error)) from error
        wanted = {config.name: config for config in options.process_group_configs}
        change = _Change(self._supervisord, wanted)
        change.stop()

        def poll() -> Any:
            return change.finish() if change.is_stopped() else NOT_DONE_YET

        poll.delay = 0.05  # type: ignore[attr-defined]
        poll.rpcinterface = self  # type: ignore[attr-defined]
        return poll


class _Change:
    """A change from the running groups to the wanted ones."""

    def __init__(self, supervisord: Any, wanted: dict[str, Any]) -> None:
        self._supervisord = supervisord
        self._wanted = wanted
        self._ending: list[Any] = []
        self._held: set[str] = set()
        """Stopped by an operator before."""
        self.changed: set[str] = set()
        self.removed: set[str] = set()
        self.added: set[str] = set()
        for name, group in supervisord.process_groups.items():
            new = {
                config.name: config
                for config in (wanted[name].process_configs if name in wanted else ())
            }
            for process_name, process in group.processes.items():
                if process_name not in new:
                    self.removed.add(process_name)
                elif process.config != new[process_name]:
                    self.changed.add(process_name)
                else:
                    continue
                self._ending.append(process)
                if process.administrative_stop:
                    self._held.add(process_name)

    def stop(self) -> None:
        for process in self._ending:
            if process.get_state() in _STOPPABLE:
                process.stop()
            elif process.get_state() == ProcessStates.BACKOFF:
                process.give_up()

    def is_stopped(self) -> bool:
        return all(process.get_state() in STOPPED_STATES for process in self._ending)

    def finish(self) -> dict[str, list[str]]:
        groups = self._supervisord.process_groups
        for name in list(groups):
            if name in self._wanted:
                self._finish_group(groups[name], self._wanted[name])
            elif not groups[name].get_unstopped_processes():
                self._supervisord.remove_process_group(name)
        for name, config in self._wanted.items():
            if self._supervisord.add_process_group(config):
                self.added.update(groups[name].processes)
        return {
            "added": sorted(self.added),
            "removed": sorted(self.removed),
            "changed": sorted(self.changed),
        }

    def _finish_group(self, group: Any, config: Any) -> None:
        # The group gets the configuration that was read, so that supervisorctl's own `update` finds
        # no changes.
        old = group.processes
        group.processes = {}
        for process_config in config.process_configs:
            name = process_config.name
            if name in old and name not in self.changed:
                group.processes[name] = old[name]
                continue
            if name not in old:
                self.added.add(name)
            process_config.create_autochildlogs()
            process = process_config.make_process(group)
            if name in self._held:
                # supervisord automatically starts processes that were never started.
                process.laststart = old[name].laststart
                process.administrative_stop = True
            group.processes[name] = process
        group.config = config


def make_interface(supervisord: Any, **_config: str) -> BdrInterface:
    """Called by supervisord before it starts any process; see the module's docstring."""
    prepare(supervisord)
    return BdrInterface(supervisord)
