# SPDX-License-Identifier: GPL-2.0-only
"""Declared keys: type, default and users of each setting.

A table of settings is a class, each key one declaration:

    @table
    class Target:
        port: int = key(whole(1, 65534), "The port for batches.", default=8437,
                        accepted_by=("applier",))

Everything else is derived from it: the table of bdr.toml and its error messages, options of
processes and commands, the command lines of supervisord's programs, and the documentation. A value
has two forms: that of TOML, and the text of an option. No I/O here, and no heavy imports: every
process imports it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, NamedTuple, TypeVar, cast, dataclass_transform

from bdr.common.errors import UsageError
from bdr.common.host.kinds import Kind

T = TypeVar("T")


class ConfigError(UsageError):
    """Invalid settings; `problems` has one line for each mistake."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


REQUIRED = object()
"""The default of a key that must be set."""


class Key(NamedTuple):
    """One setting.

    Attributes:
        name: in bdr.toml.
        kind: its type.
        help: a sentence.
        default: its value if not set; None for none.
        fallback: description of the behaviour without a value.
        accepted_by: processes and commands that take it as an option.
        aliases: other names of that option.
        variable: environment variable that replaces an option that is not given.
    """

    name: str
    kind: Kind
    help: str
    default: object = REQUIRED
    fallback: str = "none"
    accepted_by: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    variable: str | None = None

    @property
    def flag(self) -> str:
        """The name of its option."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def is_required(self) -> bool:
        """Whether it must be set."""
        return self.default is REQUIRED

    def arguments(self, value: object) -> list[str]:
        """Command-line arguments that set the option to this value."""
        if value is None or value is False:
            return []
        return [self.flag] if value is True else [self.flag, self.kind.to_text(value)]


def key(
    kind: Kind,
    help: str,
    *,
    default: object = REQUIRED,
    fallback: str = "none",
    accepted_by: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    variable: str | None = None,
) -> Any:
    """Declares a key in a `table`; see `Key`."""
    return Key("", kind, help, default, fallback, accepted_by, aliases, variable)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(key,))
def table(cls: type[T]) -> type[T]:
    """Turns a class with declared keys into a frozen dataclass."""
    for name in cls.__annotations__:
        declared = cast("Key", getattr(cls, name))._replace(name=name)
        default = MISSING if declared.is_required else declared.default
        setattr(cls, name, field(default=default, metadata={"key": declared}))
    return dataclass(frozen=True, kw_only=True)(cls)


def keys_of(cls: type) -> dict[str, Key]:
    """The keys of a table, by name, in declaration order."""
    return {each.name: each.metadata["key"] for each in fields(cls)}


def checked_texts(keys: Iterable[Key], texts: Mapping[str, object]) -> dict[str, Any]:
    """The values of options, by the names of their keys.

    Args:
        texts: the given texts, by key name; None if not given.

    Raises:
        ConfigError: with one line for each mistake.
    """
    checked: dict[str, Any] = {}
    problems = []
    for each in keys:
        given = texts[each.name]
        try:
            value = each.kind.of_text(given) if isinstance(given, str) else given
        except ValueError as error:
            problems.append(f"{each.flag}: found {given!r}: {error}")
            continue
        try:
            checked[each.name] = None if value is None else each.kind.check(value)
        except ValueError:
            problems.append(f"{each.flag}: found {value!r}; wanted {each.kind.wanted}")
    if problems:
        raise ConfigError(problems)
    return checked
