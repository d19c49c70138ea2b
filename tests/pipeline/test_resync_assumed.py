# SPDX-License-Identifier: GPL-2.0-only
"""The user's word that both devices are equal: taken at first contact, and never again."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

from deploy.nbd_source import nbd_server
from tests.pipeline.pair import MIB, VOLUME
from tests.pipeline.scanned import ScannedPair


def test_device_attached_anew_is_scanned_though_it_is_said_to_be_equal(directory: Path) -> None:
    with ScannedPair(directory, reader_options=["--assume-clean"]) as pair:
        pair.start()
        pair.scribble(random.Random(8), 100)
        pair.wait_consistent()
        assert pair.scan_report().compared_bytes == 0
        assert 'event=assume-clean assumption="applied: ' in pair.stack.log("v-reader")
        assert 'assume_clean="applied: ' in pair.stack.log("v-applier")
        for program in pair.source_programs:
            pair.stack.stop(program.name)
        # The same device behind another capture, since the first one's server locks it.
        again = directory / "again"
        again.mkdir()
        pair.source = Path(shutil.copy(pair.source, again))
        shutil.copy(directory / "sockets" / f"{VOLUME}.source", again)
        with pair.source.open("r+b") as file:
            file.seek(5 * MIB)
            file.write(b"written while nothing captured it" * 1000)
        with nbd_server(str(pair.source), again, writes=1024) as (_, _, ring):
            programs = [
                replace(program, volume="again")
                for program in pair.source_with(chardev=ring, run_dir="again")
            ]
            pair.stack.add(programs)
            pair.wait_logged("again-reader", 'assumption="ignored: it was applied before')
            pair.wait_logged("v-applier", "event=condition condition=CONSISTENT", times=2)
            assert pair.becomes_identical()
            for program in programs:
                pair.stack.stop(program.name)
