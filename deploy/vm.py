# SPDX-License-Identifier: GPL-2.0-only
"""Runs a command in a virtual machine over this host's own root filesystem.

    python -m deploy.vm [--kernel DIR | --kdir DIR] [--disk NAME=SIZE]... -- COMMAND...

The machine sees the host's files read-only, except the build directory, and
loses everything else when it ends. Its kernel comes from `deploy/kernel.sh`, or
is one built in a kernel build tree (`--kdir`). The command's output appears as
it is written, and its exit code is this program's.

KVM is tried first where /dev/kvm exists; where the machine does not come up
with it (nested hosts offer a /dev/kvm that cannot run a stock kernel) the
processor is emulated, which is 10 to 20 times slower.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build"
VM_DIR = BUILD / "vm"
KVM = Path("/dev/kvm")

GUEST = """\
#!/bin/sh
# Written by deploy/vm.py.
run={run}
: >$run/started
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export BDR_VM=1 BDR_VM_UDEV={udev} BDR_VM_SHARED={shared} PYTHONDONTWRITEBYTECODE=1
mount -t debugfs none /sys/kernel/debug 2>/dev/null
# virtme mounts the root without a cache, which makes Python slow to start: what
# Python reads comes from a second mount that has one.
mkdir /run/cached /run/build
if mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=512000,ro cached /run/cached; then
	mount --bind {root}/build /run/build
	for part in {cached}; do
		mount --bind /run/cached$part $part
	done
	mount --bind /run/build {root}/build
fi
# A kernel without overlayfs leaves /tmp read-only.
touch /tmp/.writable 2>/dev/null || mount -t tmpfs none /tmp
modprobe -aq virtio_blk dm_mod loop fuse
# virtme starts udevd where it is installed.
if [ $BDR_VM_UDEV = 1 ]; then
	[ -e /run/udev/control ] || /lib/systemd/systemd-udevd --daemon
	udevadm settle --timeout=120
else
	udevadm control --exit --timeout=60
	# dmsetup takes this for a udevd that runs.
	rm -f /run/udev/control
fi 2>/dev/null
ip link set lo up
dmesg -n 4
cd {root} || exit 1
( {command} ) >$run/output 2>&1 </dev/null
echo $? >$run/code
sync
"""


class MachineError(Exception):
    """The machine did not come up, or did not come to an end."""


def main() -> int:
    arguments = _parse()
    signal.signal(signal.SIGTERM, terminate)
    run_dir = VM_DIR / f"run-{os.getpid()}"
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir(parents=True)
    try:
        return _run(arguments, run_dir)
    except MachineError as error:
        print(f"vm: {error}; the last lines of its console:", file=sys.stderr)
        console = (run_dir / "console").read_text(errors="replace")
        print("\n".join(console.splitlines()[-60:]), file=sys.stderr)
        return 1
    finally:
        kept = VM_DIR / f"console{arguments.name}.log"
        if (run_dir / "console").exists():
            shutil.copy(run_dir / "console", kept)
        shutil.rmtree(run_dir)


def terminate(*_: object) -> None:
    """For SIGTERM: a machine does not outlive the process that started it."""
    sys.exit(128 + signal.SIGTERM)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="deploy.vm", description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", type=Path, default=VM_DIR / "kernel", help="from kernel.sh")
    parser.add_argument("--kdir", type=Path, help="a kernel build tree, instead")
    parser.add_argument("--memory", default="3G")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument(
        "--disk",
        action="append",
        default=[],
        metavar="NAME=SIZE[,REQUESTS,BYTES]",
        help="a virtio disk; held to so many requests and bytes a second",
    )
    parser.add_argument("--disk-cache", default="unsafe", help="QEMU's cache mode of the disks")
    parser.add_argument(
        "--instruction-clock",
        action="store_true",
        help="an emulated processor's clock counts instructions, 1 ns each, not the host's time",
    )
    parser.add_argument(
        "--no-udev",
        action="store_true",
        help="without udevd, which otherwise runs in the machine as on a server",
    )
    parser.add_argument("--name", default="", help="of the machine, for its console's file")
    parser.add_argument("--shared", type=Path, help="a directory of BDR_VM_SHARED; below build/")
    parser.add_argument("--append", action="append", default=[], help="a kernel parameter")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for everything")
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


def _run(arguments: argparse.Namespace, run_dir: Path) -> int:
    script = run_dir / "guest.sh"
    script.write_text(
        GUEST.format(
            run=shlex.quote(str(run_dir)),
            root=shlex.quote(str(ROOT)),
            udev=int(not arguments.no_udev),
            shared=shlex.quote(str(arguments.shared or "")),
            cached=shlex.join({str(ROOT), str(Path(sysconfig.get_path("stdlib")))}),
            command=shlex.join(arguments.command),
        )
    )
    script.chmod(0o755)
    # Rarely a kernel panics while it boots emulated, in code that it patches at that moment.
    for emulated in (False, True, True):
        if not emulated and not _kvm_may_work():
            continue
        words = _words(arguments, run_dir, script, emulated=emulated)
        code = _boot(words, run_dir, boot_s=600 if emulated else 45, total_s=arguments.timeout)
        if code is not None:
            if emulated and KVM.exists():
                _kvm_marker().touch()
            return code
        how = "emulated" if emulated else "with /dev/kvm"
        print(f"vm: the machine does not come up {how}", flush=True)
    raise MachineError("it did not come up")


def _kvm_marker() -> Path:
    return VM_DIR / "kvm-does-not-work"


def _kvm_may_work() -> bool:
    return KVM.exists() and os.access(KVM, os.R_OK | os.W_OK) and not _kvm_marker().exists()


def _words(
    arguments: argparse.Namespace, run_dir: Path, script: Path, *, emulated: bool
) -> list[str]:
    vng = Path(sys.executable).parent / "vng"
    image = arguments.kernel / "image"
    words = [str(vng), "--verbose", "--run"]
    words += [str(arguments.kdir.resolve() if arguments.kdir else image.resolve())]
    words += ["--cpus", str(arguments.cpus), "--memory", arguments.memory]
    words += ["--rwdir", str(BUILD)]
    if emulated:
        words.append("--disable-kvm")
        if arguments.instruction_clock:
            words.append("--qemu-opts=-icount shift=0,sleep=on")
    # An oops ends the machine, which nothing would look at then.
    for parameter in ("oops=panic", "panic=-1", *arguments.append):
        words += ["--append", parameter]
    for disk in arguments.disk:
        name, _, figures = disk.partition("=")
        size, *limits = figures.split(",")
        path = run_dir / f"{name}.img"
        with path.open("wb") as file:
            file.truncate(_bytes(size))
        drive = f"file={path},if=none,id={name},format=raw,discard=unmap"
        drive += f",cache={arguments.disk_cache}"
        if limits:
            requests, rate = (_bytes(limit) for limit in limits)
            drive += f",throttling.iops-total={requests},throttling.bps-total={rate}"
        words.append(f"--qemu-opts=-drive {drive}")
        words.append(f"--qemu-opts=-device virtio-blk-pci,drive={name},serial={name}")
    # The same root once more, to be mounted with a cache; see GUEST.
    share = "local,id=cached,path=/,security_model=none,readonly=on,multidevs=remap"
    words.append(f"--qemu-opts=-fsdev {share}")
    words.append("--qemu-opts=-device virtio-9p-pci,fsdev=cached,mount_tag=cached")
    return [*words, "--exec", str(script)]


def _bytes(size: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    return int(size[:-1]) * units[size[-1]] if size[-1] in units else int(size)


def _boot(words: list[str], run_dir: Path, *, boot_s: float, total_s: float) -> int | None:
    """Exit code of the command, or None if the machine did not come up."""
    output, code = run_dir / "output", run_dir / "code"
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    begun_s = time.monotonic()
    with (run_dir / "console").open("wb") as console:
        machine = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PATH": tools},
            start_new_session=True,
        )
    shown = 0
    try:
        while True:
            ended = machine.poll() is not None
            shown = _show(output, shown)
            elapsed_s = time.monotonic() - begun_s
            if code.exists() and code.read_text().strip():
                _show(output, shown)
                return int(code.read_text())
            if not (run_dir / "started").exists() and (ended or elapsed_s > boot_s):
                return None
            if ended:
                raise MachineError("it ended before the command did")
            if elapsed_s > total_s:
                raise MachineError(f"the command has not ended within {total_s:g} s")
            time.sleep(0.2)
    finally:
        _end(machine)


def _show(output: Path, shown: int) -> int:
    if not output.exists():
        return shown
    with output.open("rb") as file:
        file.seek(shown)
        text = file.read()
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()
    return shown + len(text)


def _end(machine: subprocess.Popen[bytes]) -> None:
    """Lets the machine power off, then ends what is left of its process group."""
    # Not to be interrupted: timeout(1) asks twice, and its time may be up just now.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        machine.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(machine.pid, signal.SIGKILL)
        machine.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
