# SPDX-License-Identifier: GPL-2.0-only
"""deploy/setup.sh and the commands behind it, against a real kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bdr.common.errors import DeviceError
from bdr.common.host.attach import Attachment, LinuxHost, attach, attached, detach
from bdr.common.host.underlying import users
from bdr.services.cli.main import main
from tests.kernel.devices import ROOT, Bdr, Direct, Loop, Mapped, create_mapped, run

SETUP = ROOT / "deploy/setup.sh"


def setup(*options: str, answers: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SETUP), *options], input=answers, capture_output=True, text=True, check=False
    )


def test_setup_attaches_and_detaches(loop: Loop) -> None:
    done = setup("--device", loop.path, "--name", "s0", "--buffer", "1M", "--yes")
    try:
        assert done.returncode == 0, done.stderr
        # 1 MiB is room for 255 writes of 4104 bytes.
        assert run("dmsetup", "table", "s0").split()[4:6] == ["s0-ring", "255"]
        again = setup("--device", loop.path, "--name", "s1", "--yes")
        assert again.returncode != 0
        assert "already attached as /dev/mapper/s0 with /dev/s0-ring" in again.stderr
    finally:
        removed = setup("--detach", "s0")
    assert removed.returncode == 0, removed.stderr
    assert not Path("/dev/mapper/s0").exists()
    assert not Path("/dev/s0-ring").exists()


def test_setup_asks_for_what_is_not_given(loop: Loop) -> None:
    done = setup(answers=f"{loop.path}\n")
    assert done.returncode == 0, done.stderr
    name = f"bdr-{Path(loop.path).name}"
    assert f"/dev/mapper/{name}" in done.stdout
    assert setup("--detach", name).returncode == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "/dev/null", "--yes"], "no block device"),
        (["--buffer", "lots", "--yes"], "wanted bytes, or a number with K, M or G"),
        (["--buffer", "4000", "--yes"], "wanted 8 to"),
        (["--name", "a/b", "--yes"], "wanted 1 to 63"),
        (["--chardev", "null", "--yes"], "/dev/null: exists already"),
        (["--name"], "--name needs a value"),
    ],
)
def test_setup_says_what_is_wrong(loop: Loop, options: list[str], said: str) -> None:
    given = [] if "--device" in options else ["--device", loop.path]
    done = setup(*given, *options)
    assert done.returncode != 0
    assert said in done.stderr
    assert "bdr" not in run("dmsetup", "ls")


def test_attach_mounted_device_or_one_in_use_is_refused(loop: Loop, tmp_path: Path) -> None:
    host = LinuxHost()
    wanted = Attachment("a0", loop.path, "a0-ring", 64)
    run("mkfs.ext4", "-q", loop.path)
    run("mount", loop.path, tmp_path)
    try:
        with pytest.raises(DeviceError, match="is mounted at"):
            attach(host, wanted)
    finally:
        run("umount", tmp_path)
    with (
        Mapped("holder", f"0 8 linear {loop.path} 0"),
        pytest.raises(DeviceError, match="in use by dm-"),
    ):
        attach(host, wanted)


def test_detach_needs_force_for_writes_that_nobody_has(bdr: Bdr, loop: Loop) -> None:
    host = LinuxHost()
    attached_now = attached(host)
    assert [(name, chardev) for name, _, chardev, _ in attached_now] == [("t0", bdr.device)]
    with Direct(bdr.path) as disk:
        disk.write(b"x" * 4096, 0)
    with pytest.raises(DeviceError, match="the replica lacks 1 writes"):
        detach(host, "t0")
    detach(host, "t0", force=True)
    assert attached(host) == []
    # The fixture removes it as well.
    create_mapped(bdr.name, bdr.table)


def test_detach_needs_force_while_regions_are_marked(bdr: Bdr) -> None:
    bdr.message("resync")
    assert (bdr.status().used, bdr.status().active) == ("0/4096", 1024)
    with pytest.raises(DeviceError, match="--force"):
        detach(LinuxHost(), "t0")
    assert bdr.status().mode == "STREAM"


def test_attach_names_the_device_by_a_prefix_of_its_own(loop: Loop) -> None:
    host = LinuxHost()
    attach(host, Attachment("a0", loop.path, "a0-ring", 64))
    try:
        uuid = run("dmsetup", "info", "-c", "--noheadings", "-o", "uuid", "a0").strip()
        assert uuid == "BDR-a0"
    finally:
        detach(host, "a0")


def test_other_users_of_the_underlying_device_are_found(bdr: Bdr, loop: Loop) -> None:
    host = LinuxHost()
    number = host.number(loop.path)
    assert number is not None
    assert users(host, number, besides="t0") == []
    with Direct(loop.path, os.O_RDONLY):
        assert users(host, number, besides="t0") == []
    # device-mapper's claim is one for all of its targets, as for LVM's volumes.
    with Mapped("past", f"0 8 linear {loop.path} 0"), Direct(loop.path):
        holder, process = users(host, number, besides="t0")
    assert holder.endswith("(past)")
    assert process.startswith(f"process {os.getpid()} (")


def test_attach_device_that_a_process_may_write_to_is_refused(loop: Loop) -> None:
    with Direct(loop.path), pytest.raises(DeviceError, match=f"process {os.getpid()}"):
        attach(LinuxHost(), Attachment("a0", loop.path, "a0-ring", 64))


def test_detach_of_an_open_device_is_refused_and_changes_nothing(bdr: Bdr) -> None:
    with Direct(bdr.path), pytest.raises(DeviceError, match="busy"):
        detach(LinuxHost(), "t0")
    assert bdr.status().mode == "STREAM"


def test_all_of_the_configuration_are_attached_and_detached(loop: Loop, tmp_path: Path) -> None:
    toml = tmp_path / "bdr.toml"
    toml.write_text(
        '[volume.db]\nrole = "source"\naddress = "127.0.0.1"\nchardev = "/dev/db-ring"\n'
        f'underdev = "{loop.path}"\nmapper = "db"\nbuffer_writes = 512\n'
        '[volume.other]\nrole = "source"\naddress = "127.0.0.1"\nchardev = "/dev/x-ring"\n'
        'underdev = "/dev/nosuch"\nmapper = "other"\nport = 9000\n'
    )

    def bdr(*words: str) -> tuple[int, list[str]]:
        done = CliRunner().invoke(main, [*words, "--config", str(toml)])
        return done.exit_code, done.output.splitlines()

    missing = "bdr: other: /dev/nosuch: no block device; give the device that holds the data"
    assert bdr("attach-all") == (66, [f"db: /dev/mapper/db is {loop.path}", missing])
    assert run("dmsetup", "table", "db").split()[4:6] == ["db-ring", "512"]
    assert bdr("attach-all") == (66, ["db: /dev/mapper/db is attached already", missing])

    gone = "other: /dev/mapper/other is not attached"
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    run("mkfs.ext4", "-q", "/dev/mapper/db")
    run("mount", "/dev/mapper/db", mounted)
    try:
        for force in ([], ["--force"]):
            said = f"bdr: db: /dev/mapper/db: mounted at {mounted}; unmount it first"
            assert bdr("detach-all", *force) == (66, [said, gone])
    finally:
        run("umount", mounted)
    code, lines = bdr("detach-all")
    assert code == 66
    assert "the replica lacks" in lines[0]
    assert bdr("detach-all", "--force") == (0, ["db: /dev/mapper/db is detached", gone])
    assert bdr("detach-all") == (0, ["db: /dev/mapper/db is not attached", gone])
    run("fsck.ext4", "-nf", loop.path)


def test_commands_end_with_the_error_s_exit_code(loop: Loop) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bdr.services.cli.attach", "detach", "nothing"],
        capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ,
    )  # fmt: skip
    assert done.returncode == DeviceError.exit_code
    assert "not attached" in done.stderr
