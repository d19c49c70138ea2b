# SPDX-License-Identifier: GPL-2.0-only
"""The pure C headers of `kern/include/`, compiled for the host, and their Python mirrors."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest

from bdr.common.capture import abi as mirror
from bdr.common.capture.api import Bitmap, Role
from bdr.common.ring import layout
from bdr.common.ring.marks import MARK

ROOT = Path(__file__).parents[2]
INCLUDE = ROOT / "kern" / "include"
SOURCES = Path(__file__).parent / "ring"
HEADERS = (
    "bdr_ring.h",
    "bdr_bitmap.h",
    "bdr_marks.h",
    "bdr_gate.h",
    "bdr_request.h",
    "bdr_uapi.h",
)
WARNINGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")

NOT_MIRRORED = {"BDR_IOC_MAGIC", "BDR_WORD_REGIONS"}

MIRROR = {
    "BDR_SECTOR_BYTES": layout.SECTOR_BYTES,
    "BDR_PAYLOAD_BYTES": layout.PAYLOAD_BYTES,
    "BDR_HEADER_BYTES": layout.HEADER_BYTES,
    "BDR_SLOT_BYTES": layout.SLOT_BYTES,
    "BDR_SLOT_SECTORS": layout.SLOT_SECTORS,
    "BDR_WRITE_SLOTS_MAX": layout.WRITE_SLOTS_MAX,
    "BDR_CAPACITY_MIN": layout.CAPACITY_MIN,
    "BDR_CAPACITY_MAX": layout.CAPACITY_MAX,
    "BDR_SECTOR_BITS": layout.SECTOR_BITS,
    "BDR_SECTOR_MASK": layout.SECTOR_MASK,
    "BDR_COUNT_SHIFT": layout.COUNT_SHIFT,
    "BDR_COUNT_MASK": layout.COUNT_MASK,
    "BDR_OP_SHIFT": layout.OP_SHIFT,
    "BDR_OP_MASK": layout.OP_MASK,
    "BDR_FUA_SHIFT": layout.FUA_SHIFT,
    "BDR_LAST_SHIFT": layout.LAST_SHIFT,
    "BDR_PHASE_SHIFT": layout.PHASE_SHIFT,
    "BDR_OP_NOP": layout.Op.NOP,
    "BDR_OP_WRITE": layout.Op.WRITE,
    "BDR_OP_DISCARD": layout.Op.DISCARD,
    "BDR_OP_WRITE_ZEROES": layout.Op.WRITE_ZEROES,
    "BDR_OP_FLUSH": layout.Op.FLUSH,
    "BDR_REGION_SECTORS_DEFAULT": layout.REGION_SECTORS_DEFAULT,
    "BDR_REGION_SECTORS_MIN": layout.REGION_SECTORS_MIN,
    "BDR_REGION_SECTORS_MAX": layout.REGION_SECTORS_MAX,
    "BDR_MODE_STREAM": layout.Mode.STREAM,
    "BDR_MODE_OVERFLOW": layout.Mode.OVERFLOW,
    "BDR_GAP_NONE": layout.GAP_NONE,
    "BDR_MISSED_NOTHING": layout.MISSED_NOTHING,
    "BDR_MISSED_UNKNOWN": layout.MISSED_UNKNOWN,
    "BDR_MARKS_MAX": layout.MARKS_MAX,
    "BDR_MARKS_INTERVAL_NS": layout.MARKS_INTERVAL_NS,
    "BDR_ABI_VERSION": mirror.ABI_VERSION,
    "BDR_STREAM_ID_BYTES": mirror.STREAM_ID_BYTES,
    "BDR_BITMAP_ACTIVE": Bitmap.ACTIVE,
    "BDR_BITMAP_RESYNC": Bitmap.RESYNC,
    "BDR_BITMAP_CHUNK_REGIONS": mirror.BITMAP_CHUNK_REGIONS,
    "BDR_ROLE_OBSERVER": Role.OBSERVER.value,
    "BDR_ROLE_CONSUMER": Role.CONSUMER.value,
    "BDR_IOC_INFO": mirror.IOC_INFO,
    "BDR_IOC_STATUS": mirror.IOC_STATUS,
    "BDR_IOC_RELEASE": mirror.IOC_RELEASE,
    "BDR_IOC_RESUME": mirror.IOC_RESUME,
    "BDR_IOC_BITMAP_READ": mirror.IOC_BITMAP_READ,
    "BDR_IOC_BITMAP_CLEAR": mirror.IOC_BITMAP_CLEAR,
    "BDR_IOC_BITMAP_MARK": mirror.IOC_BITMAP_MARK,
    "BDR_IOC_OPEN": mirror.IOC_OPEN,
    "BDR_IOC_MARKS_READ": mirror.IOC_MARKS_READ,
}

STRUCTS = {
    "bdr_info": mirror.INFO,
    "bdr_status": mirror.STATUS,
    "bdr_release": mirror.RELEASE,
    "bdr_resume": mirror.RESUME,
    "bdr_bitmap_range": mirror.BITMAP,
    "bdr_mark": MARK,
    "bdr_marks_read": mirror.MARKS,
    "bdr_open": mirror.OPEN,
    "bdr_request": mirror.REQUEST,
    "bdr_reply": mirror.REPLY,
}


def build(source: str, out: Path, *flags: str, compiler: str = "cc") -> Path:
    program = out / source.removesuffix(".c")
    command = [compiler, *WARNINGS, "-g", "-O1", "-pthread", f"-I{INCLUDE}", *flags]
    subprocess.run([*command, str(SOURCES / source), "-o", str(program)], check=True)
    return program


def run(program: Path, *arguments: str) -> str:
    """Output of a C test; a check or a sanitizer that fails ends it with an error."""
    # TSan's shadow memory needs an address space that is not too random.
    command = ["setarch", "-R", str(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def abi(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the compiled headers say: constants, sizes, and `offset:size` of fields."""
    output = run(build("abi.c", tmp_path_factory.mktemp("abi")))
    return dict(line.split(" ") for line in output.splitlines())


def header_text() -> str:
    text = "".join((INCLUDE / name).read_text() for name in HEADERS)
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def test_python_mirror_has_every_constant_with_its_value(abi: dict[str, str]) -> None:
    text = header_text()
    defined = set(re.findall(r"^#define (BDR_\w+)[ \t]+\S", text, re.MULTILINE))
    for body in re.findall(r"enum \w+ \{(.*?)\};", text, re.DOTALL):
        defined |= set(re.findall(r"(BDR_\w+) =", body))

    assert set(MIRROR) == defined - NOT_MIRRORED
    found = {name: int(abi[name]) for name in MIRROR}
    assert found == {name: int(value) for name, value in MIRROR.items()}


def test_enumerations_have_no_value_that_the_header_lacks() -> None:
    values = set(MIRROR)
    assert {f"BDR_OP_{op.name}" for op in layout.Op} <= values
    assert {f"BDR_MODE_{mode.name}" for mode in layout.Mode} <= values
    assert {f"BDR_BITMAP_{bitmap.name}" for bitmap in Bitmap} <= values
    assert {f"BDR_ROLE_{role.name}" for role in Role} <= values


@pytest.mark.parametrize("name", STRUCTS)
def test_python_struct_has_the_offsets_of_the_header(abi: dict[str, str], name: str) -> None:
    uapi_text = re.sub(r"/\*.*?\*/", "", (INCLUDE / "bdr_uapi.h").read_text(), flags=re.DOTALL)
    body = re.search(rf"struct {name} \{{(.*?)\}};", uapi_text, re.DOTALL)
    assert body is not None
    declared = re.findall(r"(\w+)(?:\[\w+\])?;", body.group(1))
    fields = [key.split(".")[1] for key in abi if key.startswith(f"{name}.")]
    assert fields == declared, "abi.c lists another set of fields than the header"

    offset = 0
    python = []
    for code in re.findall(r"\d*[a-zA-Z]", STRUCTS[name].format):
        size = struct.calcsize("<" + code)
        python.append(f"{offset}:{size}")
        offset += size
    assert python == [abi[f"{name}.{field}"] for field in fields]
    assert STRUCTS[name].size == int(abi[name])


def test_struct_list_is_complete() -> None:
    assert set(STRUCTS) == set(re.findall(r"struct (\w+) \{", (INCLUDE / "bdr_uapi.h").read_text()))


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_ring_gate_and_bitmap_hold_under_asan_and_ubsan(compiler: str, tmp_path: Path) -> None:
    requires(compiler)
    program = build("arithmetic.c", tmp_path, *SANITIZED, compiler=compiler)
    for seed in range(1, 4):
        assert run(program, str(seed)) == "ok\n"


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_each_rule_of_a_request_holds_under_asan_and_ubsan(compiler: str, tmp_path: Path) -> None:
    requires(compiler)
    assert run(build("requests.c", tmp_path, *SANITIZED, compiler=compiler)) == "ok\n"


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_marks_contain_the_clock_of_every_slot_under_asan_and_ubsan(
    compiler: str, tmp_path: Path
) -> None:
    requires(compiler)
    program = build("marks.c", tmp_path, *SANITIZED, compiler=compiler)
    for seed in range(1, 4):
        assert run(program, str(seed)) == "ok\n"


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_random_requests_match_a_model_under_asan_and_ubsan(compiler: str, tmp_path: Path) -> None:
    requires(compiler)
    program = build("request_fuzz.c", tmp_path, *SANITIZED, compiler=compiler)
    for seed in range(1, 4):
        assert run(program, str(seed)) == "ok\n"


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_producers_and_consumer_race_without_loss_under_tsan(compiler: str, tmp_path: Path) -> None:
    requires(compiler)
    program = build("threads.c", tmp_path, "-fsanitize=thread", compiler=compiler)
    for _ in range(3):
        assert run(program).startswith("ok: ")


def requires(compiler: str) -> None:
    if subprocess.run(["which", compiler], capture_output=True, check=False).returncode:
        pytest.skip(f"{compiler} is not installed")
