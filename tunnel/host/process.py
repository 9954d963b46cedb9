"""The process itself: clock, entropy, what it keeps from other processes, and word to its supervisor."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import socket
import time

from policy.clock import Nanos
from tunnel.host.system import HostError

_PR_GET_DUMPABLE, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS = 3, 4, 38, 39


def now() -> Nanos:
    """Return CLOCK_BOOTTIME: monotonic, and it goes on while the machine sleeps, as lifetimes do."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def entropy(count: int) -> bytes:
    """Return *count* octets from the kernel's generator."""
    return os.urandom(count)


def harden() -> None:
    """No core dumps, no ptrace by other processes of the user, no privileges by way of setuid programs.

    HostError when the kernel says otherwise after.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) != 0 or prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1:
        raise HostError(
            "this process could not be closed to others: the kernel refuses PR_SET_DUMPABLE or NO_NEW_PRIVS"
        )


def calm_collector() -> None:
    """Let Python's collector of cycles look at what is new more seldom, and never again at what is there now.

    It took a twentieth of the packet path's time. What it is needed for, SAs that ended, waits until a few hundred
    of them are together.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def notify(state: str) -> None:
    """Tell systemd (sd_notify): READY=1, STATUS=..., STOPPING=1. Nothing happens without a supervisor."""
    where = os.environ.get("NOTIFY_SOCKET")
    if not where or where[0] not in "/@":
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + where[1:] if where[0] == "@" else where)
        sock.send(state.encode())


def watchdog_seconds() -> float | None:
    """Return how often the supervisor wants WATCHDOG=1 (half its limit), or None."""
    limit = os.environ.get("WATCHDOG_USEC", "")
    owner = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    return int(limit) / 2e6 if limit.isdigit() and int(limit) > 0 and owner == str(os.getpid()) else None
