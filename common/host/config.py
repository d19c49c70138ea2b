# SPDX-License-Identifier: GPL-2.0-only
"""`bdr.toml`: what runs on this host, and how.

The file has one table `[host]` and one table `[volume.NAME]` for each volume, of
role "source" or "target"; `tables` declares their keys. All mistakes are reported at once; each
error names the file, the key, the value found and what is allowed.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from bdr.common.host import conflicts
from bdr.common.host.keys import ConfigError, keys_of
from bdr.common.host.tables import ROLE, TABLES, Host, Source, Volume

T = TypeVar("T")

DEFAULT_PATH = "/etc/bdr/bdr.toml"


@dataclass(frozen=True)
class Config:
    """A whole file."""

    host: Host = field(default_factory=Host)
    volume: Mapping[str, Volume] = field(default_factory=dict)

    def run_dir_of(self, name: str) -> str:
        """Directory of a volume's sockets."""
        return f"{self.host.run_dir}/{name}"

    def state_of(self, name: str, volume: Volume) -> str:
        """The file that remembers a replica's place, or who a source is."""
        ending = "source" if isinstance(volume, Source) else "state"
        return volume.state or f"{self.host.state_dir}/{name}.{ending}"

    def effective(self, name: str) -> Volume:
        """A volume with inherited and derived values filled in."""
        volume = self.volume[name]
        on_event = volume.on_event or self.host.on_event
        return replace(volume, on_event=on_event, state=self.state_of(name, volume))


def load(path: str | Path) -> Config:
    """Reads and checks a file.

    Raises:
        ConfigError: missing, unreadable, not TOML, or invalid.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            [
                f"{path}: {error.strerror}; wanted a configuration file: "
                "copy bdr.example.toml there, or name another with --config"
            ]
        ) from error
    try:
        tree = tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: byte {error.start}: found no UTF-8; wanted TOML"]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: found no valid TOML: {error}"]) from error
    return check(tree, where=str(path))


def check(tree: Mapping[str, object], *, where: str) -> Config:
    """Checks a tree of tables; `where` starts each message.

    Raises:
        ConfigError: with one line for each mistake.
    """
    host, volumes, problems = Host(), {}, []
    try:
        host = _fill(Host, _tables(tree, "host", where="host"), where="host")
    except ConfigError as error:
        problems += error.problems
    try:
        named = _tables(tree, "volume", where="volume")
    except ConfigError as error:
        named = {}
        problems += error.problems
    for name in named:
        try:
            volumes[name] = _volume(named, name)
        except ConfigError as error:
            problems += error.problems
    known = ("host", "volume")
    problems += [_unknown(name, known, where="") for name in tree if name not in known]
    config = Config(host, volumes)
    # Conflicts between tables can be checked only if each table is valid.
    problems = problems or conflicts.problems(host, volumes)
    if problems:
        raise ConfigError([f"{where}: {problem}" for problem in problems])
    return config


def as_toml(title: str, table: Host | Volume) -> str:
    """A table in TOML, with every effective value."""
    values = asdict(table)
    tree: dict[str, Any] = {key: value for key, value in values.items() if value is not None}
    for name in reversed(title.split(".")):
        tree = {name: tree}
    unset = [f"# {key}: not set\n" for key, value in values.items() if value is None]
    return tomli_w.dumps(tree) + "".join(unset)


def _volume(named: Mapping[str, object], name: str) -> Volume:
    where = f"volume.{name}"
    values = _tables(named, name, where=where)
    if "role" not in values:
        raise ConfigError([f"{where}.role: missing; wanted {ROLE.wanted}"])
    role = values["role"]
    if not isinstance(role, str) or role not in TABLES:
        raise ConfigError([f"{where}.role: found {role!r}; wanted {ROLE.wanted}"])
    return _fill(TABLES[role], values, where=where)


def _tables(tree: Mapping[str, object], name: str, *, where: str) -> Mapping[str, object]:
    found = tree.get(name, {})
    if not isinstance(found, dict):
        raise ConfigError([f"{where}: found {found!r}; wanted a table"])
    return found


def _fill(cls: type[T], values: Mapping[str, object], *, where: str) -> T:
    """Builds a table from its TOML values.

    Raises:
        ConfigError: with one line for each mistake; each starts with `where`.KEY.
    """
    known, checked, problems = keys_of(cls), {}, []
    for name, declared in known.items():
        if name not in values:
            if declared.is_required:
                problems.append(f"{where}.{name}: missing; wanted {declared.kind.wanted}")
            continue
        try:
            checked[name] = declared.kind.check(values[name])
        except ValueError:
            problems.append(
                f"{where}.{name}: found {values[name]!r}; wanted {declared.kind.wanted}"
            )
    problems += [_unknown(name, known, where=f"{where}.") for name in values if name not in known]
    if problems:
        raise ConfigError(problems)
    return cls(**checked)


def _unknown(name: str, known: Iterable[str], *, where: str) -> str:
    """The message for an unknown key."""
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{where}{name}: unknown key; {hint}wanted one of {', '.join(known)}"
