"""Capabilities: the agent keeps the three or four that it works with, and proves that the rest is gone.

The kernel's names and numbers: capabilities(7), prctl(2). A thread has its own set, so this comes before there are
others.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path

from tunnel.host.system import HostError


class Capability(IntEnum):
    """Capabilities that the agent has a use for."""

    DAC_READ_SEARCH = 2  # read a config and secrets that belong to somebody else
    NET_BIND_SERVICE = 10  # UDP port 500
    NET_ADMIN = 12  # TUN, routes, nftables, marks
    NET_RAW = 13  # ESP, AH


#: What it cannot do without.
NEEDED = frozenset({Capability.NET_BIND_SERVICE, Capability.NET_ADMIN, Capability.NET_RAW})
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT = 23, 24, 47
_AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 2, 4
_VERSION_3 = 0x20080522


def lacking() -> tuple[Capability, ...]:
    """Return the needed capabilities that this process does not have."""
    held = _status("CapEff")
    return tuple(sorted(capability for capability in NEEDED if not held >> capability & 1))


def drop(kept: Iterable[Capability]) -> None:
    """Keep *kept* and nothing else, for this process and for the programs that it starts.

    They are inherited by programs that run as another user than root too, which is how an agent that is not root
    starts ``nft``. HostError when anything more is left after.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    held = _status("CapPrm")
    wanted = [capability for capability in sorted(set(kept)) if held >> capability & 1]
    mask = sum(1 << capability for capability in wanted)
    number = 0
    while libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) >= 0:
        if not mask >> number & 1:  # without CAP_SETPCAP this fails, and there is nothing to gain by exec either
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
        number += 1
    libc.prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = (ctypes.c_uint32 * 6)(low, low, low, high, high, high)
    # A service manager that gave us these and no more may have forbidden the call too.
    exact = all(_status(name) == mask for name in ("CapPrm", "CapEff", "CapInh"))
    if not exact and libc.capset(header, data) != 0:
        raise HostError(f"privileges could not be dropped: {os.strerror(ctypes.get_errno())}")
    for capability in wanted:
        libc.prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, capability, 0, 0)
    for thread in os.listdir("/proc/self/task"):
        left = 0
        for name in ("CapPrm", "CapEff", "CapInh"):
            left |= _status(name, f"self/task/{thread}")
        if left & ~mask:
            raise HostError(f"privileges could not be dropped: a thread keeps capabilities {left & ~mask:#x}")


def reader_of(paths: Iterable[Path]) -> frozenset[Capability]:
    """Return what it takes to read *paths* again later: nothing, if they belong to the user that we are."""
    own = os.geteuid()
    for path in paths:
        for each in (path, *path.resolve().parents):
            try:
                found = each.stat()
            except OSError:
                continue
            others = 0o004 if each == path else 0o001
            if found.st_uid != own and not found.st_mode & others:
                return frozenset({Capability.DAC_READ_SEARCH})
    return frozenset()


def _status(name: str, process: str = "self") -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        word, _, value = line.partition(":")
        if word == name:
            return int(value, 16)
    return 0
