# SPDX-License-Identifier: GPL-2.0-only
"""The errors of BDR, and the exit code of each.

Three base classes decide what a process does with an error. A `PermanentError` needs an operator:
the process exits with the error's code, and supervisord does not restart it. A `RetryableError` is
transient: the process is restarted at once. A `HostError` may pass, or be mended without anything
being done to the process: it waits and begins anew, until it succeeds.

Every message states what was found, what was wanted, and what to do.
"""

from __future__ import annotations

from typing import Self


class BdrError(Exception):
    """Base class of every error that BDR raises deliberately."""

    exit_code = 1


class PermanentError(BdrError):
    """Needs an operator: the process exits and is not restarted."""

    exit_code = 70


class RetryableError(BdrError):
    """Transient: worth a retry after a pause."""

    exit_code = 75


class HostError(RetryableError):
    """The host lacks something that it may have later: a device, a capture, an address, space.

    Attributes:
        exit_code: of a command, and of a process that may not wait; it is not restarted then.
    """


class UsageError(PermanentError):
    """An option or a configuration value is wrong."""

    exit_code = 64


class DeviceError(HostError):
    """A device is missing, too small, in use, or fails."""

    exit_code = 66


class CaptureError(HostError):
    """Not a capture, of another ABI version, or a request was refused."""

    exit_code = 67


class CaptureGoneError(HostError):
    """The capture was removed while it was in use."""

    exit_code = 68


class AddressError(HostError):
    """A port or socket path cannot be bound."""

    exit_code = 69


class RefusedError(PermanentError):
    """The target refused this source permanently."""

    exit_code = 71


class StateError(PermanentError):
    """The replica's state on disk is damaged, or belongs to another volume or device."""

    exit_code = 72


class StateDiskError(HostError):
    """The disk of a state file or journal is missing, full, in use, or fails."""

    exit_code = 72


class WrongDeviceError(StateError):
    """The target's device is not the one that has the replica."""


class InternalError(PermanentError):
    """An invariant of a state machine was violated: a bug, with the recent story."""

    exit_code = 73


class StaleCaptureError(RetryableError):
    """The capture or its size is no longer that which this process opened.

    The process exits, is restarted by supervisord, and opens the present capture.
    """

    @classmethod
    def of_stream(cls, found: bytes, own: bytes) -> Self:
        """The stream of the capture, or that in the reader's message, is not this process's."""
        return cls(
            f"the capture has stream {found.hex()}, and had {own.hex()} when this process began: "
            "it was made anew, or another device was put below it; beginning anew too"
        )

    @classmethod
    def of_size(cls, found: int, own: int) -> Self:
        """The device has another number of sectors than when this process opened it."""
        return cls(f"the device has {found} sectors now, and had {own}; beginning anew with that")


class RemoteError(BdrError):
    """The peer violated the protocol."""


class WireError(RemoteError):
    """Bytes that are not a message of this protocol."""


class StatusError(RemoteError):
    """Bytes or a map that are not a report or status of this version."""


class InvalidSlotsError(RemoteError):
    """A batch whose slots exceed the device or hold an unknown operation."""


PERMANENT_EXIT_CODES = (2, 64, 66, 67, 68, 69, 70, 71, 72, 73)
"""Exit codes after which supervisord does not restart a process (its `exitcodes`).

2 is a wrong command line, which a restart cannot correct. 0 is not included: a process that
received SIGTERM, but not from supervisord, is restarted.
"""
