"""Path MTUs toward the peers, learned and forgotten (RFC 4301 section 8.2)."""

from __future__ import annotations

from itertools import takewhile

from policy.clock import SECOND, Nanos
from policy.path import IpAddress

DEFAULT_MTU = 1500
#: No path is believed to be narrower: the least that every IPv4 host takes, and IPv6's minimum link.
FLOOR = {4: 576, 6: 1280}
_CEILING = 65535
#: After this the path is probed upward by forgetting (RFC 1191 section 6.3).
LIFETIME = 600 * SECOND
_MAX_REMOTES = 4096


class PathMtus:
    """The MTU learned for each remote address."""

    __slots__ = ("_learned",)

    def __init__(self) -> None:
        self._learned: dict[IpAddress, tuple[int, Nanos]] = {}

    def learn(self, remote: IpAddress, mtu: int, now: Nanos) -> None:
        """Record an MTU, kept within sane bounds, until ten minutes from *now*."""
        self._learned.pop(remote, None)
        if len(self._learned) >= _MAX_REMOTES:
            del self._learned[next(iter(self._learned))]
        self._learned[remote] = (max(FLOOR[remote.version], min(mtu, _CEILING)), now + LIFETIME)

    def get(self, remote: IpAddress) -> int:
        """Return the MTU toward *remote*."""
        learned = self._learned.get(remote)
        return DEFAULT_MTU if learned is None else learned[0]

    def expire(self, now: Nanos) -> bool:
        """Forget what is old; return whether anything was."""
        old = [remote for remote, _ in takewhile(lambda known: known[1][1] <= now, self._learned.items())]
        for remote in old:
            del self._learned[remote]
        return bool(old)

    def deadline(self) -> Nanos | None:
        """Return when the next MTU grows old. They stand in order of learning."""
        oldest = next(iter(self._learned.values()), None)
        return None if oldest is None else oldest[1]
