# SPDX-License-Identifier: GPL-2.0-only
"""Types of settings, in bdr.toml and as options. No I/O here."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard

from bdr.common.host.sizes import parse_size


class Kind(NamedTuple):
    """The type of a setting.

    Attributes:
        wanted: description of allowed values, for error messages.
        check: converts a TOML value to the program's; raises ValueError.
        of_text: converts an option's text to a TOML value, or returns the text; None if not set.
            Raises ValueError with the reason.
        to_text: converts the program's value to an option's text.
        metavar: placeholder of the value in the help of an option.
        hint: addition to that help.
        words: allowed values of a choice, or keywords allowed instead of a path.
        is_path: as an option, a path relative to the working directory is allowed.
        is_switch: the option has no value.
    """

    wanted: str
    check: Callable[[object], Any]
    of_text: Callable[[str], object] = str
    to_text: Callable[[Any], str] = str
    metavar: str = "TEXT"
    hint: str = ""
    words: tuple[str, ...] = ()
    is_path: bool = False
    is_switch: bool = False


def text(wanted: str, is_good: Callable[[str], object]) -> Kind:
    """A text for which `is_good` returns a true value."""

    def check(value: object) -> str:
        if not isinstance(value, str) or not is_good(value):
            raise ValueError
        return value

    return Kind(wanted, check)


def path(*words: str) -> Kind:
    """An absolute path, or one of the given keywords."""
    made = text(
        ", or ".join(["an absolute path", *map(_quoted, words)]),
        lambda value: value in words or (value.startswith("/") and _is_one_line(value)),
    )
    return made._replace(metavar="PATH", words=words, is_path=True)


def choice(*words: str) -> Kind:
    """One of the given values."""
    *others, last = map(_quoted, words)
    made = text(f"{', '.join(others)} or {last}", lambda value: value in words)
    return made._replace(metavar=f"[{'|'.join(words)}]", words=words)


def whole(least: int, most: int, *, is_power_of_two: bool = False, note: str = "") -> Kind:
    """A whole number in a range; `note` is appended to its description."""

    def check(value: object) -> int:
        if not _is_int(value) or not least <= value <= most:
            raise ValueError
        if is_power_of_two and value & (value - 1):
            raise ValueError
        return value

    what = "a power of two" if is_power_of_two else "a whole number"
    return Kind(f"{what} from {least} to {most}{note}", check, _number(int), metavar="NUMBER")


def seconds() -> Kind:
    """A duration above 0."""

    def check(value: object) -> float:
        if not _is_int(value) and not isinstance(value, float):
            raise ValueError
        try:
            duration = float(value)
        except OverflowError as error:
            raise ValueError from error
        if not 0 < duration < math.inf:
            raise ValueError
        return duration

    return Kind(
        "a number of seconds above 0", check, _number(float), "{:g}".format, metavar="SECONDS"
    )


def size(least: str, *, example: str) -> Kind:
    """Bytes, as a number or with a unit."""

    def check(value: object) -> int:
        found = parse_size(value) if isinstance(value, str) else value
        if not _is_int(found) or found < parse_size(least):
            raise ValueError
        return found

    return Kind(f'a size of {least} or more, such as "{example}"', check, metavar="SIZE")


def switch() -> Kind:
    """Yes or no."""

    def check(value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Kind("true or false", check, is_switch=True)


def command() -> Kind:
    """A command as a list of arguments; as an option, quoted as for a shell."""

    def check(value: object) -> list[str]:
        if not isinstance(value, list) or not value:
            raise ValueError
        if not all(isinstance(word, str) and _is_one_line(word) for word in value):
            raise ValueError
        return value

    def of_text(given: str) -> object:
        try:
            return shlex.split(given) or None
        except ValueError as error:
            raise ValueError(f"{str(error).lower()}; wanted it quoted as for a shell") from None

    return Kind(
        'a list of words of one line each, such as ["/usr/local/bin/page", "--urgent"]',
        check,
        of_text,
        shlex.join,
        metavar="COMMAND",
        hint="Quoted as for a shell.",
    )


def _is_one_line(value: str) -> bool:
    """Whether a program file of supervisord can have this text."""
    try:
        value.encode()
    except UnicodeEncodeError:  # an option that is not UTF-8
        return False
    return not any(mark in value for mark in "\0\r\n")


def _number(make: Callable[[str], object]) -> Callable[[str], object]:
    def of_text(given: str) -> object:
        try:
            return make(given)
        except ValueError:
            return given

    return of_text


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _quoted(word: str) -> str:
    return f'"{word}"'
