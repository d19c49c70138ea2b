# SPDX-License-Identifier: GPL-2.0-only
"""The errors of BDR, and the exit code of each.

Two roots say what a process does with an error. A `PermanentError` cannot heal
without a human: the process ends with the error's exit code, which supervisord
does not restart. A `RetryableError` may heal: the process stays, pauses, and
tries again.

Every message says what was found, what was wanted, and what to do.
"""

from __future__ import annotations

from typing import Self


class BdrError(Exception):
    """Root of every error that BDR raises on purpose."""

    exit_code = 1


class PermanentError(BdrError):
    """Cannot heal by itself: end the process and leave it down."""

    exit_code = 70


class RetryableError(BdrError):
    """May heal by itself: worth another try after a pause."""

    exit_code = 75


class UsageError(PermanentError):
    """An option or a configuration value is wrong."""

    exit_code = 64


class DeviceError(PermanentError):
    """A device is missing, too small, in use, or fails."""

    exit_code = 66


class CaptureError(PermanentError):
    """The capture is not one, speaks another ABI, or refused a request."""

    exit_code = 67


class CaptureGoneError(PermanentError):
    """The capture was removed while it was in use."""

    exit_code = 68


class AddressError(PermanentError):
    """A port or socket path cannot be bound."""

    exit_code = 69


class RefusedError(PermanentError):
    """The target refused this source for a reason that does not pass."""

    exit_code = 71


class StateError(PermanentError):
    """The replica's state on disk is damaged or belongs to something else."""

    exit_code = 72


class InternalError(PermanentError):
    """An invariant of a state machine broke: a bug, with the story that led to it."""

    exit_code = 73


class StaleCaptureError(RetryableError):
    """The capture is another one, or of another size, than when this process began.

    The process ends with its exit code, is started anew, and takes it as it is now.
    """

    @classmethod
    def of_stream(cls, found: bytes, own: bytes) -> Self:
        """The capture, or the reader's word for it, has another stream than this process knows."""
        return cls(
            f"the capture has stream {found.hex()}, and had {own.hex()} when this process began: "
            "it was made anew, or another device was put below it; beginning anew too"
        )

    @classmethod
    def of_size(cls, found: int, own: int) -> Self:
        """The device has another number of sectors than this process knows."""
        return cls(f"the device has {found} sectors now, and had {own}; beginning anew with that")


class RemoteError(BdrError):
    """The peer sent something that the protocol does not allow."""


class WireError(RemoteError):
    """Bytes that are no message of this protocol."""


class StatusError(RemoteError):
    """Bytes or a map that are no report or no status of this version."""


class InvalidSlotsError(RemoteError):
    """A batch whose slots reach outside the device or hold an unknown operation."""


PERMANENT_EXIT_CODES = (2, 64, 66, 67, 68, 69, 70, 71, 72, 73)
"""What supervisord's `exitcodes` names: ends of a process that it leaves alone.

2 is the command line's own: an option that is wrong stays wrong. 0 is none of them: a
process that somebody has sent SIGTERM past supervisord is started again.
"""
