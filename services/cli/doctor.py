# SPDX-License-Identifier: GPL-2.0-only
"""`bdr doctor`: missing prerequisites of this host, and how to fix them.

Checks change nothing. A finding with `must` is required on every host, or by the volumes in
bdr.toml; others only by one of the two kinds of capture.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from bdr.common.errors import BdrError
from bdr.common.host import config
from bdr.common.host.attach import LinuxHost, attached
from bdr.common.host.config import Config
from bdr.common.host.tables import Source, Target
from bdr.common.host.underlying import users
from bdr.services.cli import options as cli_options

KERNEL_MIN = (6, 8)
PYTHON_MIN = (3, 11)
FILES_MIN = 4096
MODULE = "bdr"


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check.

    Attributes:
        subject: what was checked.
        is_good: whether it is sufficient.
        found: what was found.
        fix: the command or step that fixes it.
        must: whether it is required on this host.
    """

    subject: str
    is_good: bool
    found: str
    fix: str = ""
    must: bool = True


def findings(found: Config | None, config_error: str | None) -> Iterator[Finding]:
    """Every check, in the order of an installation."""
    uses_module = _uses(found, lambda path: os.path.dirname(path) == "/dev")
    uses_nbdkit = _uses(found, lambda path: os.path.dirname(path) != "/dev")
    yield from _program()
    yield from _kernel(must=uses_module)
    yield from _nbdkit(must=uses_nbdkit)
    yield from _limits()
    yield _clock()
    if config_error is not None:
        for line in config_error.splitlines():
            yield Finding("bdr.toml", False, line, "edit it, then: bdr config check", must=True)
    if found is not None:
        yield from _directories(found)
        yield from _volumes(found)


def _uses(found: Config | None, is_such: Callable[[str], bool]) -> bool:
    return found is not None and any(
        isinstance(volume, Source) and is_such(volume.chardev) for volume in found.volume.values()
    )


def _program() -> Iterator[Finding]:
    version = platform.python_version()
    yield Finding("python", sys.version_info >= PYTHON_MIN, version, "apt-get install python3.11")
    for name in ("pyzmq", "supervisor", "msgpack", "numpy"):
        try:
            yield Finding(name, True, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, False, "not installed", f"pip install {name}")
    is_root = os.geteuid() == 0
    yield Finding("user", is_root, "root" if is_root else "not root",
                  "sudo bdr doctor; the processes need root for devices", must=False)  # fmt: skip


def _kernel(*, must: bool) -> Iterator[Finding]:
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    yield Finding(
        "kernel", numbers >= KERNEL_MIN, release,
        "apt-get install linux-image-amd64 from backports; wanted 6.8 or newer", must=must,
    )  # fmt: skip
    headers = Path(f"/lib/modules/{release}/build")
    yield Finding(
        "kernel headers", headers.exists(), str(headers) if headers.exists() else "none",
        f"apt-get install linux-headers-{release}", must=must,
    )  # fmt: skip
    is_loaded = Path(f"/sys/module/{MODULE}").exists()
    is_built = any(Path(f"/lib/modules/{release}").rglob(f"{MODULE}.ko*"))
    state = "loaded" if is_loaded else "installed, not loaded" if is_built else "not installed"
    fix = f"modprobe {MODULE}" if is_built else "make module-install, in BDR's checkout"
    yield Finding("kernel module", is_loaded, state, fix, must=must)
    lockdown = _read("/sys/kernel/security/lockdown")
    is_locked = "[integrity]" in lockdown or "[confidentiality]" in lockdown
    yield Finding(
        "lockdown", not is_locked, lockdown or "none",
        "sign the module (Secure Boot), or use the nbdkit plugin", must=must,
    )  # fmt: skip
    yield _tool("dmsetup", "dmsetup", must=must)


def _nbdkit(*, must: bool) -> Iterator[Finding]:
    yield _tool("nbdkit", "nbdkit", must=must)
    yield _tool("nbdfuse", "libnbd-bin", must=must)
    for path, module in (("/dev/fuse", "fuse"), ("/dev/loop-control", "loop")):
        yield Finding(path, os.path.exists(path), "there" if os.path.exists(path) else "missing",
                      f"modprobe {module}; in a container: --device {path}", must=must)  # fmt: skip


def _tool(name: str, package: str, *, must: bool) -> Finding:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    return Finding(name, path is not None, path or "not installed",
                   f"apt-get install {package}", must=must)  # fmt: skip


def _limits() -> Iterator[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = hard == resource.RLIM_INFINITY or hard >= FILES_MIN
    yield Finding("open files", many, f"at most {hard}",
                  f"LimitNOFILE={FILES_MIN} in the unit, or ulimit -n {FILES_MIN}")  # fmt: skip
    low, _, high = _read("/proc/sys/net/ipv4/ip_local_port_range").partition("\t")
    good = not low.isdigit() or int(low) > Target.port + 1
    yield Finding(
        "local ports", good, f"{low} to {high}",
        f"sysctl net.ipv4.ip_local_port_range='32768 60999': port {Target.port} may be "
        "taken by chance",
        must=False,
    )  # fmt: skip


def _clock() -> Finding:
    good = time.time() > 1_700_000_000
    synced = Path("/run/systemd/timesync/synchronized").exists() or any(
        Path(path).exists() for path in ("/run/chrony", "/run/ntpd.pid", "/run/chrony/chronyd.pid")
    )
    state = "synchronized" if synced else "set" if good else "not set"
    return Finding("clock", good and synced, f"{state}; used for display only",
                   "apt-get install systemd-timesyncd", must=False)  # fmt: skip


def _directories(found: Config) -> Iterator[Finding]:
    for key in ("run_dir", "state_dir", "log_dir"):
        path = Path(getattr(found.host, key))
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        good = os.access(existing, os.W_OK)
        yield Finding(f"host.{key}", good, f"{path} {'can' if good else 'cannot'} be written",
                      f"install -d -m 0700 {path}")  # fmt: skip


def _volumes(found: Config) -> Iterator[Finding]:
    for name, volume in found.volume.items():
        if isinstance(volume, Source):
            yield _exists(f"{name}.chardev", volume.chardev, "attach the device")
            if os.path.dirname(volume.chardev) == "/dev":
                yield from _underlying(name, volume)
            yield _reachable(name, volume)
        else:
            yield _exists(
                f"{name}.target", volume.target, "create the device, with the source's size"
            )
            yield _bindable(name, volume)
        on_event = volume.on_event or found.host.on_event
        if on_event:
            path = shutil.which(on_event[0])
            yield Finding(f"{name}.on_event", path is not None, path or f"no {on_event[0]}",
                          f"chmod +x {on_event[0]}", must=False)  # fmt: skip


def _exists(subject: str, path: str, fix: str) -> Finding:
    there = os.path.exists(path)
    return Finding(subject, there, f"{path}{'' if there else ' is not there'}", fix)


def _underlying(name: str, volume: Source) -> Iterator[Finding]:
    """Whether something goes past the capture of an attached device."""
    host = LinuxHost()
    try:
        for mapped, number, chardev, _ in attached(host):
            if chardev == volume.chardev:
                others = users(host, number, besides=mapped)
                yield Finding(
                    f"{name}.underdev", not others,
                    f"{number} is used by {', '.join(others)}: not captured" if others
                    else f"only /dev/mapper/{mapped} uses {number}",
                    f"have them use /dev/mapper/{mapped}, then: bdr resync {name} --full; LVM: "
                    "vgchange -an, and filter the underlying device",
                )  # fmt: skip
    except BdrError as error:
        yield Finding(f"{name}.underdev", False, str(error), must=False)


def _reachable(name: str, volume: Source) -> Finding:
    for port in (volume.port, volume.port + 1):
        try:
            socket.create_connection((volume.address, port), timeout=2).close()
        except OSError as error:
            return Finding(
                f"{name}.address", False, f"{volume.address}:{port}: {error.strerror or error}",
                f"start the target; open TCP {volume.port} and {volume.port + 1} in its firewall",
            )  # fmt: skip
    return Finding(f"{name}.address", True, f"{volume.address}:{volume.port} answers")


def _bindable(name: str, volume: Target) -> Finding:
    host = "" if volume.address == "*" else volume.address
    for port in (volume.port, volume.port + 1):
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        except OSError as error:
            return Finding(
                f"{name}.port", False, f"{port}: {error.strerror}",
                f"fine if BDR runs already; else see who has it: ss -ltnp 'sport = :{port}'",
                must=False,
            )  # fmt: skip
    return Finding(f"{name}.port", True, f"{volume.port} and {volume.port + 1} are free")


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


@click.command(params=[cli_options.config_path()])
def main(config_path: str) -> None:
    """Checks this host: what is missing, and the command that fixes it.

    Exits with 1 if something required is missing. Prerequisites of the kernel module or of the
    nbdkit plugin are required if a volume in bdr.toml uses it.
    """
    found, error, note = None, None, None
    if os.path.exists(config_path):
        try:
            found = config.load(config_path)
        except BdrError as problem:
            error = str(problem)
    else:
        note = f"{config_path} does not exist; `bdr client` and `bdr server` need none"
    is_missing = False
    for finding in findings(found, error):
        bad = "MISSING" if finding.must else "missing"
        click.echo(f"{'ok' if finding.is_good else bad:<8} {finding.subject:<18} {finding.found}")
        if not finding.is_good:
            is_missing |= finding.must
            if finding.fix:
                click.echo(f"{'':<27} -> {finding.fix}")
    if note:
        click.echo(f"note     {'bdr.toml':<18} {note}")
    sys.exit(is_missing)
