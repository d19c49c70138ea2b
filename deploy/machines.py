# SPDX-License-Identifier: GPL-2.0-only
"""Runs a command in several virtual machines at once: `deploy.vm`, each with the same options.

    python -m deploy.machines COUNT [OPTION OF deploy.vm]... -- COMMAND...

An emulated machine uses less than one processor of the host, so two machines share the
tests. BDR_VM_SHARED is the path of a directory that all of them can write: a machine claims
a part of the work by creating a file there exclusively.

Each line of output is printed behind the number of its machine. The exit code is the first
one that is not 0.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading

from deploy.vm import VM_DIR, terminate


def main(words: list[str]) -> int:
    """Exit code of the whole."""
    count = int(words[0])
    signal.signal(signal.SIGTERM, terminate)
    VM_DIR.mkdir(parents=True, exist_ok=True)
    shared = VM_DIR / f"shared-{os.getpid()}"
    shared.mkdir()
    machines: list[subprocess.Popen[str]] = []
    try:
        for number in range(1, count + 1):
            command = [sys.executable, "-m", "deploy.vm", "--name", str(number)]
            command += ["--shared", str(shared), *words[1:]]
            machines.append(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
            )
        printers = [
            threading.Thread(target=_print, args=(number, machine))
            for number, machine in enumerate(machines, start=1)
        ]
        for printer in printers:
            printer.start()
        for printer in printers:
            printer.join()
        return next((code for machine in machines if (code := machine.wait())), 0)
    finally:
        for machine in machines:
            machine.terminate()
        for machine in machines:
            machine.wait()
        shutil.rmtree(shared)


def _print(number: int, machine: subprocess.Popen[str]) -> None:
    assert machine.stdout
    for line in machine.stdout:
        print(f"{number}| {line}", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
