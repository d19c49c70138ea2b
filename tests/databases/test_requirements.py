# SPDX-License-Identifier: GPL-2.0-only
"""A host without a file system or a program skips a test; a CI system does not."""

from __future__ import annotations

import pytest

from tests.conftest import NOTHING_IS_SKIPPED
from tests.databases.requirements import require_file_system, require_tools


def test_what_is_missing_is_the_reason_of_a_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NOTHING_IS_SKIPPED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no bdr-no-such-tool"):
        require_tools("bdr-no-such-tool")


def test_what_is_missing_on_ci_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NOTHING_IS_SKIPPED, "1")
    with pytest.raises(pytest.fail.Exception):
        require_file_system("bdr-no-such-file-system")


def test_what_is_there_skips_nothing() -> None:
    require_tools("sh")
    require_file_system("proc")
