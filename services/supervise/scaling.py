# SPDX-License-Identifier: GPL-2.0-only
"""Number of processes of each stage on this host."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from bdr.common.errors import UsageError
from bdr.common.host import programs
from bdr.common.host.config import Config
from bdr.common.host.programs import SCALABLE_STAGES, Program
from bdr.services.runtime import log
from bdr.services.supervise.files import write_whole
from bdr.services.supervise.supervisord import Supervision


class Scaling:
    """Numbers of processes set by `bdr scale`, in a persistent file.

    An entry is valid while bdr.toml has the number that it overrides; a new number in bdr.toml
    removes it.
    """

    def __init__(self, state_dir: str) -> None:
        self._path = Path(state_dir) / "scale.json"

    def counts(self, config: Config) -> dict[tuple[str, str], int]:
        """(volume, stage) to the number that overrides the configured one."""
        found = {}
        for name, stages in self._load().items():
            for stage, entry in stages.items():
                configured = configured_count(config, name, stage)
                if configured is not None and configured == entry.get("instead_of"):
                    found[name, stage] = int(entry["count"])
        return found

    def set(self, config: Config, changes: Mapping[tuple[str, str], int]) -> None:
        """Stores numbers; the configured number removes an entry."""
        tree = self._load()
        for (name, stage), count in changes.items():
            configured = configured_count(config, name, stage)
            entries = tree.setdefault(name, {})
            entries.pop(stage, None)
            if count != configured:
                entries[stage] = {"count": count, "instead_of": configured}
        write_whole(self._path, json.dumps(tree, indent=2, sort_keys=True) + "\n")

    def _load(self) -> dict[str, dict[str, dict[str, Any]]]:
        try:
            return cast("dict[str, Any]", json.loads(self._path.read_text()))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            # Not a reason to stop replication on this host.
            log.logger().warning(
                "scale-file-damaged", file=str(self._path), reason=str(error), taken="bdr.toml's"
            )
            return {}
        except OSError as error:
            raise UsageError(
                f"{self._path}: {error.strerror}; wanted a file that this user may read"
            ) from error


def configured_count(config: Config, volume: str, stage: str) -> int | None:
    """Configured number of processes of a stage; None if it is not scalable."""
    found = config.volume.get(volume)
    if found is None or stage not in SCALABLE_STAGES:
        return None
    return programs.stages_of(found).get(stage)


def programs_of(config: Config, supervision: Supervision, scaling: Scaling) -> list[Program]:
    """Every expected process of this host."""
    return programs.from_config(
        config,
        python=sys.executable,
        programs_dir=str(supervision.programs_dir),
        counts=scaling.counts(config),
    )
