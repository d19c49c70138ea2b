# SPDX-License-Identifier: GPL-2.0-only
"""`bdr.toml`: what runs on this host, and how.

The file has one table `[host]` and one table `[volume.NAME]` for each volume, of
role "source" or "target". The models below are the only definition of its keys:
the example file and the documentation are tested against them, and each error
names the file, the key, the value that was found and what is allowed.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from bdr.common.errors import UsageError
from bdr.common.ring.layout import (
    CAPACITY_MAX,
    CAPACITY_MIN,
    JOURNAL_BYTES_MIN,
    REGION_SECTORS_DEFAULT,
    REGION_SECTORS_MAX,
    REGION_SECTORS_MIN,
)
from bdr.common.wire.control import NAME_BYTES_MAX

DEFAULT_PATH = "/etc/bdr/bdr.toml"
DEFAULT_PORT = 8437
SENDERS_MAX = 64
SCANNERS_MAX = 16
NO_JOURNAL = "none"

_SOCKET_PATH_BYTES_MAX = 107
_LONGEST_SOCKET = "/descriptors.sock"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:i?B)?")
_NAME = re.compile(r"[A-Za-z0-9-]+")


class ConfigError(UsageError):
    """The configuration is wrong; `problems` has one line for each mistake."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def parse_size(value: object) -> int:
    """Bytes of 4096, "4096", "512M", "1 GiB": powers of 1024.

    Raises:
        ValueError: it is no size.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("not a size")
    return int(match[1]) * _UNITS[match[2]]


def is_volume_name(name: str) -> bool:
    """Whether a volume may be called so."""
    return bool(_NAME.fullmatch(name)) and len(name.encode()) <= NAME_BYTES_MAX


def _absolute(path: str) -> str:
    if not path.startswith("/") or "\0" in path or "\n" in path:
        raise ValueError("not an absolute path")
    return path


def _plain(text: str) -> str:
    if not text or any(c.isspace() or not c.isprintable() for c in text):
        raise ValueError("not a name or address")
    return text


def _mapper(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", name):
        raise ValueError("not a name")
    return name


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError("not a power of two")
    return value


def _journal(value: str) -> str:
    return value if value == NO_JOURNAL else _absolute(value)


def _wanted(text: str) -> dict[str, Any]:
    """What an error message says is allowed."""
    return {"wanted": text}


_Path = Annotated[str, AfterValidator(_absolute)]
_Address = Annotated[str, AfterValidator(_plain)]
_Size = Annotated[int, BeforeValidator(parse_size)]

_PATH = _wanted("an absolute path")
_PORT = _wanted("a whole number from 1 to 65534")
_SWITCH = _wanted("true or false")
_COMMAND = _wanted('a list of words, such as ["/usr/local/bin/page", "--urgent"]')


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Host(_Table):
    """The table [host]."""

    run_dir: _Path = Field(
        "/run/bdr", description="Sockets and program files.", json_schema_extra=_PATH
    )
    state_dir: _Path = Field(
        "/var/lib/bdr",
        description="What must outlive a reboot: journals, replica states, scaling.",
        json_schema_extra=_PATH,
    )
    log_dir: _Path = Field("/var/log/bdr", description="Rotated logs.", json_schema_extra=_PATH)
    log_format: Literal["text", "json"] = Field(
        "text", description="Form of a log line.", json_schema_extra=_wanted('"text" or "json"')
    )
    log_level: Literal["debug", "info", "warning"] = Field(
        "info",
        description="The least that is logged.",
        json_schema_extra=_wanted('"debug", "info" or "warning"'),
    )
    on_event: list[str] | None = Field(
        None,
        description="Command to run on events of any volume that has none of its own.",
        json_schema_extra=_COMMAND,
        min_length=1,
    )


class _Volume(_Table):
    port: int = Field(
        DEFAULT_PORT,
        ge=1,
        le=65534,
        description="The target's port for batches; the one above it is for control.",
        json_schema_extra=_PORT,
    )
    rpo_seconds: float = Field(
        60.0,
        gt=0,
        allow_inf_nan=False,
        strict=False,
        description="The replica may be so far behind before it counts as behind.",
        json_schema_extra=_wanted("a number of seconds above 0"),
    )
    metrics_address: _Address = Field(
        "127.0.0.1",
        description="Address of the Prometheus endpoint.",
        json_schema_extra=_wanted("an address of this host"),
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port of the Prometheus endpoint; without it there is none.",
        json_schema_extra=_wanted("a whole number from 1 to 65535, another for each volume"),
    )
    on_event: list[str] | None = Field(
        None,
        description="Command to run on events of this volume, its facts in the environment.",
        json_schema_extra=_COMMAND,
        min_length=1,
    )


class Source(_Volume):
    """A table [volume.NAME] with role = "source"."""

    role: Literal["source"] = Field(
        description="This host has the device that is written to.",
        json_schema_extra=_wanted('"source" or "target"'),
    )
    address: _Address = Field(
        description="The target host.", json_schema_extra=_wanted("a host name or address")
    )
    chardev: _Path = Field(
        description="Control device of the bdr target, or ring= socket of the nbdkit plugin.",
        json_schema_extra=_PATH,
    )
    underdev: _Path | None = Field(
        None,
        description="The device below; checked against what the capture says.",
        json_schema_extra=_PATH,
    )
    buffer_writes: int = Field(
        65536,
        ge=CAPACITY_MIN,
        le=CAPACITY_MAX,
        description="Capacity of the ring, in writes of 4104 bytes, when it is attached.",
        json_schema_extra=_wanted(f"a whole number from {CAPACITY_MIN} to {CAPACITY_MAX}"),
    )
    mapper: Annotated[str, AfterValidator(_mapper)] | None = Field(
        None,
        description="`bdr attach-all` puts /dev/mapper/NAME before underdev; without it nothing.",
        json_schema_extra=_wanted("a name of letters, digits, _ . and -"),
    )
    region_sectors: Annotated[int, AfterValidator(_power_of_two)] = Field(
        REGION_SECTORS_DEFAULT,
        description="Sectors that one bit of the dirty bitmap stands for, when it is attached.",
        json_schema_extra=_wanted(
            f"a power of two from {REGION_SECTORS_MIN} to {REGION_SECTORS_MAX}"
        ),
        ge=REGION_SECTORS_MIN,
        le=REGION_SECTORS_MAX,
    )
    stable: Literal["copy", "hint"] = Field(
        "copy",
        description="How ring and disk are kept equal, when it is attached.",
        json_schema_extra=_wanted('"copy" or "hint"'),
    )
    discard: Literal["zero", "pass"] = Field(
        "zero",
        description="What a discard becomes on the device below, when it is attached.",
        json_schema_extra=_wanted('"zero" or "pass"'),
    )
    senders: int = Field(
        1,
        ge=1,
        le=SENDERS_MAX,
        description="Processes that ship batches, each over a connection of its own.",
        json_schema_extra=_wanted(f"a whole number from 1 to {SENDERS_MAX}"),
    )
    scanners: int = Field(
        1,
        ge=1,
        le=SCANNERS_MAX,
        description="Processes that compare and repair after an overflow, or at the start.",
        json_schema_extra=_wanted(f"a whole number from 1 to {SCANNERS_MAX}"),
    )
    scan_rate: _Size | None = Field(
        None,
        ge=1 << 20,
        description="Bytes a second that scanners compare at most, all together.",
        json_schema_extra=_wanted('a size of 1 MiB or more, such as "200MiB"'),
    )
    assume_clean: bool = Field(
        False,
        description="Source and target are equal already: no scan at first contact.",
        json_schema_extra=_SWITCH,
    )


class Target(_Volume):
    """A table [volume.NAME] with role = "target"."""

    role: Literal["target"] = Field(
        description="This host has the replica.",
        json_schema_extra=_wanted('"source" or "target"'),
    )
    address: _Address = Field(
        "*",
        description="Address to listen on; * is every one.",
        json_schema_extra=_wanted("an address of this host, or *"),
    )
    target: _Path = Field(
        description="The backup device, or a file of its size.", json_schema_extra=_PATH
    )
    journal: Annotated[str, AfterValidator(_journal)] | None = Field(
        None,
        description='The journal\'s file or device, or "none"; a file beside the state without.',
        json_schema_extra=_wanted('an absolute path, or "none"'),
    )
    journal_size: _Size | None = Field(
        None,
        ge=JOURNAL_BYTES_MIN,
        description="Size of the journal; 1 GiB for a new file without, all of a device.",
        json_schema_extra=_wanted('a size of 16 MiB or more, such as "1GiB"'),
    )
    state: _Path | None = Field(
        None,
        description="File that remembers the replica's place; STATE_DIR/NAME.state without.",
        json_schema_extra=_PATH,
    )


Volume = Source | Target
ROLES: dict[str, type[Source] | type[Target]] = {"source": Source, "target": Target}


class Config(_Table):
    """A whole file."""

    host: Host = Field(default_factory=lambda: Host.model_validate({}))
    volume: dict[str, Annotated[Volume, Field(discriminator="role")]] = {}

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        problems = [*_name_problems(self), *_shared_problems(self), *_mapper_problems(self)]
        if problems:
            raise ConfigError(problems)
        return self

    def run_dir_of(self, name: str) -> str:
        """Directory of a volume's sockets."""
        return f"{self.host.run_dir}/{name}"


def load(path: str | Path) -> Config:
    """Reads and checks a file.

    Raises:
        ConfigError: missing, unreadable, no TOML, or wrong in content.
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


def check(tree: dict[str, Any], *, where: str) -> Config:
    """Checks a tree of tables; `where` begins each message.

    Raises:
        ConfigError: with one line for each mistake.
    """
    try:
        return Config.model_validate(tree)
    except ConfigError as error:
        raise ConfigError([f"{where}: {problem}" for problem in error.problems]) from None
    except ValidationError as error:
        raise ConfigError(
            [f"{where}: {_describe(problem, tree)}" for problem in error.errors()]
        ) from None


def check_volume(name: str, tree: dict[str, Any], host: dict[str, Any]) -> Config:
    """Checks a volume that is given by options instead of a file.

    Raises:
        ConfigError: the messages name options.
    """
    try:
        return check({"host": host, "volume": {name: tree}}, where="options")
    except ConfigError as error:
        prefix = f"options: volume.{name}."
        raise ConfigError(
            [
                f"--{problem.removeprefix(prefix).replace('_', '-', 1)}"
                if problem.startswith(prefix)
                else problem
                for problem in error.problems
            ]
        ) from None


def as_toml(title: str, table: BaseModel) -> str:
    """A table as it stands in a file, with every value in force."""
    lines = [f"[{title}]"]
    for key, value in table.model_dump().items():
        # JSON's strings, numbers, booleans and lists are TOML's.
        lines.append(
            f"# {key}: not set"
            if value is None
            else f"{key} = {json.dumps(value, ensure_ascii=False)}"
        )
    return "\n".join(lines) + "\n"


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys of a table, with their descriptions."""
    return dict(model.model_fields)


def wanted(field: FieldInfo) -> str:
    """What is allowed for a key."""
    extra = field.json_schema_extra
    return str(extra["wanted"]) if isinstance(extra, dict) else "another value"


def _describe(problem: Any, tree: dict[str, Any]) -> str:
    """One line of pydantic's findings in words."""
    # The place holds the discriminator's value behind the volume's name.
    place = [str(step) for step in problem["loc"]]
    if len(place) > 2 and place[0] == "volume" and place[2] in ROLES:
        del place[2]
    kind = problem["type"]
    key = ".".join(place[:3] if place[:1] == ["volume"] else place[:2])
    model = _model_at(place, tree)
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        table = tree["volume"][place[1]]
        if "role" not in table:
            return f'{key}.role: missing; wanted "source" or "target"'
        return f'{key}.role: found {table["role"]!r}; wanted "source" or "target"'
    name = place[2] if place[:1] == ["volume"] and len(place) > 2 else place[-1]
    if kind == "extra_forbidden":
        known = list(model.model_fields) if model else ["host", "volume"]
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{key}: unknown key; {hint}wanted one of {', '.join(known)}"
    if place[:1] == ["host"] and len(place) > 1:
        name = place[1]
    field = model.model_fields.get(name) if model else None
    allowed = wanted(field) if field else "a table"
    if kind == "missing":
        return f"{key}: missing; wanted {allowed}"
    return f"{key}: found {problem['input']!r}; wanted {allowed}"


def _model_at(place: list[str], tree: dict[str, Any]) -> type[BaseModel] | None:
    if place[:1] == ["host"] and len(place) > 1:
        return Host
    if place[:1] == ["volume"] and len(place) > 2:
        return ROLES.get(tree["volume"][place[1]].get("role"))
    return None


def _name_problems(config: Config) -> list[str]:
    found = [
        f"volume.{name}: found the name {name!r}; wanted 1 to {NAME_BYTES_MAX} letters, digits "
        "and dashes"
        for name in config.volume
        if not is_volume_name(name)
    ]
    for name in config.volume:
        path = os.fsencode(config.run_dir_of(name) + _LONGEST_SOCKET)
        if len(path) > _SOCKET_PATH_BYTES_MAX:
            found.append(
                f"host.run_dir: found {config.host.run_dir!r}, which makes socket paths of "
                f"{len(path)} bytes for volume {name}; wanted at most {_SOCKET_PATH_BYTES_MAX}: "
                "choose a shorter directory"
            )
    return found


def _mapper_problems(config: Config) -> list[str]:
    """What `bdr attach-all` could not attach."""
    found = []
    for name, volume in config.volume.items():
        if not isinstance(volume, Source) or volume.mapper is None:
            continue
        if volume.underdev is None:
            found.append(
                f"volume.{name}.underdev: missing; wanted the device to put "
                f"/dev/mapper/{volume.mapper} before"
            )
        if not re.fullmatch(r"/dev/[A-Za-z0-9][A-Za-z0-9_.-]*", volume.chardev):
            found.append(
                f"volume.{name}.chardev: found {volume.chardev!r}; wanted /dev/NAME, since mapper "
                "has the control device made there"
            )
    return found


def _shared_problems(config: Config) -> list[str]:
    """What two volumes of a host may not both have."""
    owners: dict[tuple[str, object], str] = {}
    found = []
    for name, volume in config.volume.items():
        for kind, key, value in _exclusive(volume):
            own = f"volume.{name}.{key}"
            owner = owners.setdefault((kind, value), own)
            if owner != own:
                found.append(
                    f"{own}: found {value!r}, which is also that of {owner}; wanted one of its "
                    "own for each volume"
                )
    return found


def _exclusive(volume: Volume) -> list[tuple[str, str, object]]:
    """(kind, key, value): of one kind, no value may be there twice."""
    own: list[tuple[str, str, object]] = []
    if volume.metrics_port is not None:
        own.append(("metrics", "metrics_port", volume.metrics_port))
    if isinstance(volume, Source):
        paths = {"chardev": volume.chardev, "underdev": volume.underdev}
        if volume.mapper is not None:
            paths["mapper"] = f"/dev/mapper/{volume.mapper}"
    else:
        own += [("port", "port", volume.port), ("port", "port + 1", volume.port + 1)]
        paths = {"target": volume.target, "state": volume.state}
        if volume.journal != NO_JOURNAL:
            paths["journal"] = volume.journal
    return own + [("file", key, path) for key, path in paths.items() if path is not None]
