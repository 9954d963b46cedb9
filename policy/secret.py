"""A secret that cannot be printed by accident."""

from __future__ import annotations

import hmac
from typing import final


@final
class Secret:
    """Octets that must never reach a log, a repr or an exception.

    Holds a preshared key, an IKE key or a Child SA key. ``reveal()`` is the only way to the octets, so that a
    search for it lists every place that handles them. ``wipe()`` overwrites them as far as Python allows.
    Equality is constant-time.
    """

    __slots__ = ("_octets",)

    def __init__(self, octets: bytes | bytearray) -> None:
        self._octets = bytearray(octets)

    def reveal(self) -> bytes:
        """Return the octets."""
        return bytes(self._octets)

    def wipe(self) -> None:
        """Overwrite the octets with zeros; the secret is unusable afterwards."""
        for index in range(len(self._octets)):
            self._octets[index] = 0

    def __len__(self) -> int:
        return len(self._octets)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._octets, other._octets)

    # Snapshots are compared and used as dictionary values, never as keys: a constant hash leaks nothing.
    def __hash__(self) -> int:
        return hash(Secret)

    def __repr__(self) -> str:
        return f"Secret(<{len(self._octets)} octets>)"

    __str__ = __repr__

    def __reduce__(self) -> str:
        raise TypeError("a Secret cannot be pickled")
