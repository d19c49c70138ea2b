# SPDX-License-Identifier: GPL-2.0-only
"""A capture's refusals, which tests assert by the system's error code."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bdr.common.errors import CaptureError


def refused(call: Callable[[], object]) -> int | None:
    """The system's error code with which a capture refuses a call."""
    with pytest.raises(CaptureError) as caught:
        call()
    assert isinstance(caught.value.__cause__, OSError)
    return caught.value.__cause__.errno
