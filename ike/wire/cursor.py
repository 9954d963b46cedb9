"""Reading octets with every length checked."""

from __future__ import annotations

from ike.errors import WireError


class Cursor:
    """A position in octets that end at *end*: reading past it raises WireError, and so do leftovers.

    Nested structures read through ``restrict``, so that an inner length can never leave its outer one.
    """

    __slots__ = ("_data", "_end", "_position")

    def __init__(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        self._data = data
        self._position = start
        self._end = len(data) if end is None else end

    @property
    def position(self) -> int:
        """Offset of the next octet in the whole data."""
        return self._position

    @property
    def left(self) -> int:
        """Number of octets left."""
        return self._end - self._position

    def take(self, count: int) -> bytes:
        """Return the next *count* octets."""
        start = self._advance(count)
        return self._data[start : start + count]

    def rest(self) -> bytes:
        """Return all the octets left."""
        return self.take(self.left)

    def u8(self) -> int:
        """Return the next octet."""
        return self._data[self._advance(1)]

    def u16(self) -> int:
        """Return the next two octets as a number in network order."""
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        """Return the next four octets as a number in network order."""
        return int.from_bytes(self.take(4), "big")

    def restrict(self, count: int) -> Cursor:
        """Return a cursor over the next *count* octets and step over them."""
        start = self._advance(count)
        return Cursor(self._data, start, start + count)

    def finish(self) -> None:
        """Raise WireError if octets are left."""
        if self.left:
            raise WireError(f"{self.left} octets left over")

    def _advance(self, count: int) -> int:
        if not 0 <= count <= self.left:
            raise WireError(f"{count} octets wanted, {self.left} left")
        start = self._position
        self._position += count
        return start
