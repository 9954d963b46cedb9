"""Whether the nftables table that guards the policy still stands, told by the kernel at once (nfnetlink).

Whoever takes it away seldom means to: a distribution's /etc/nftables.conf begins with "flush ruleset". The kernel
tells every transaction to who listens; at its end stands whether our table is as we made it.
Numbers and names: linux/netfilter/nf_tables.h, nfnetlink.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Collection, Iterator
from enum import Enum

from tunnel.host.marks import TABLE

_NETLINK_NETFILTER, _SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES = 12, 270, 1, 7
_SO_RCVBUFFORCE = 33
#: Transactions of some thousand rules; what does not fit is noticed (ENOBUFS), and then the kernel is asked.
_BUFFER = 1 << 20
_SUBSYSTEM, _INET = 10, 1
_NEW_TABLE, _GET_TABLE, _DELETE_TABLE, _NEW_ELEMENT, _DELETE_ELEMENT, _NEW_GENERATION = 0, 1, 2, 12, 14, 15
_REQUEST = 1
#: Attribute 1 of every message about a table or what is in it is the table's name, 2 of an element the set's.
_NAME, _SET, _FLAGS, _USERDATA = 1, 2, 2, 6
_HEADER, _FAMILY_HEADER, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BBH"), struct.Struct("=HH")
#: Sets whose elements change while the table stands: soft SAs.
_OPEN_SETS = (b"soft4", b"soft6")
_OURS = TABLE.encode()


class Loss(Enum):
    """What became of the table."""

    GONE = "was removed"
    CHANGED = "was changed"
    UNKNOWN = "may have been changed: there were more changes than could be followed"


class GuardWatch:
    """A netlink socket that becomes readable when an nftables transaction is committed. One reader.

    *revisions* returns the contents that are ours: what ``ruleset.revision`` says of them.
    """

    def __init__(self, revisions: Callable[[], Collection[str]]) -> None:
        self._revisions = revisions
        self._socket = _netlink()
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES)
        except OSError:
            self._socket.close()
            raise
        self.fd = self._socket.fileno()
        #: What the transaction under way did to the table so far, and whether it made it as ours.
        self._loss: Loss | None = None
        self._made = False

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def look(self) -> Loss | None:
        """Read what was told; return what the table suffered since the last call, None if it stands as made."""
        found: Loss | None = None
        overflow = False
        while True:
            try:
                data = self._socket.recv(1 << 18)
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    overflow = True
                    continue
                break
            for kind, family, body in _messages(data):
                if kind == _NEW_GENERATION:
                    if self._made or self._loss is not None:
                        found = self._loss
                    self._loss, self._made = None, False
                elif family == _INET:
                    self._follow(kind, _attributes(body))
        if overflow:
            self._loss, self._made, found = None, False, Loss.UNKNOWN
        return found

    def stands(self) -> bool:
        """Ask the kernel whether our table is there and of one of *revisions*: not whether each rule is."""
        return (found := _table(TABLE)) is not None and self._is_ours(found)

    def _follow(self, kind: int, attributes: dict[int, bytes]) -> None:
        """Take note of one step of a transaction."""
        if attributes.get(_NAME, b"").rstrip(b"\0") != _OURS:
            return
        soft = kind in (_NEW_ELEMENT, _DELETE_ELEMENT) and attributes.get(_SET, b"").rstrip(b"\0") in _OPEN_SETS
        if kind == _NEW_TABLE:
            self._made = self._is_ours(attributes)  # and what is in it follows
            self._loss = None if self._made else Loss.CHANGED
        elif kind == _DELETE_TABLE:
            self._loss, self._made = Loss.GONE, False
        elif not (self._made or soft):
            self._loss = self._loss or Loss.CHANGED

    def _is_ours(self, attributes: dict[int, bytes]) -> bool:
        active = not any(attributes.get(_FLAGS, b""))  # "dormant": all its hooks sleep
        comment = attributes.get(_USERDATA, b"")
        return active and any(revision.encode() in comment for revision in self._revisions())


def comment(table: str) -> str | None:
    """Ask the kernel for the comment of the inet table *table*; None when there is no such table, or no answer."""
    found = _table(table)
    return None if found is None else found.get(_USERDATA, b"").decode(errors="replace")


def _table(table: str) -> dict[int, bytes] | None:
    """Return the attributes of an inet table."""
    with _netlink() as sock:
        sock.settimeout(1)
        name = table.encode() + b"\0"
        body = _FAMILY_HEADER.pack(_INET, 0, 0) + _ATTRIBUTE.pack(4 + len(name), _NAME) + name
        body += bytes(-len(body) % 4)
        kind = _SUBSYSTEM << 8 | _GET_TABLE
        try:
            sock.sendto(_HEADER.pack(16 + len(body), kind, _REQUEST, 1, 0) + body, (0, 0))
            data = sock.recv(1 << 16)
        except OSError:
            return None
        return next((_attributes(body) for kind, _, body in _messages(data) if kind == _NEW_TABLE), None)


def _netlink() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER)
    sock.bind((0, 0))
    return sock


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Return kind, protocol family and attributes of each nftables message in a datagram."""
    at = 0
    while at + 20 <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if length < 20 or at + length > len(data):
            return
        if kind >> 8 == _SUBSYSTEM:
            yield kind & 255, data[at + 16], data[at + 20 : at + length]
        at += length + 3 & ~3


def _attributes(data: bytes) -> dict[int, bytes]:
    """Return the attributes of a message by number."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        length, number = _ATTRIBUTE.unpack_from(data, at)
        if length < 4 or at + length > len(data):
            break
        found[number & 0x3FFF] = data[at + 4 : at + length]
        at += length + 3 & ~3
    return found
