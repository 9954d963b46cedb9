"""The Encrypted payload (RFC 7296 section 3.14) and its fragments (RFC 7383 section 2.5).

Nothing inside is looked at before its integrity is proven; every fragment is proven by itself before it is
stored. Errors in authenticated octets are InvalidSyntax, which costs the IKE SA; a failed check costs the message.
"""

from __future__ import annotations

from collections.abc import Sequence

from ike.constants import PayloadType
from ike.crypto.ciphers import IkeCipher
from ike.errors import InvalidSyntax, LocalError, UnsupportedCriticalPayload, WireError
from ike.wire.header import HEADER_LENGTH, MAX_MESSAGE, Header
from ike.wire.message import (
    GENERIC_HEADER,
    MAX_FRAGMENTS,
    Message,
    Protected,
    encode_payloads,
    parse_payloads,
)
from ike.wire.payloads import Payload

#: Octets that reassembly holds for one message (RFC 7383 section 2.6).
MAX_REASSEMBLED = 65536
#: Messages that are reassembled at once: a request and a response under way cross.
MAX_SETS = 2

_SKF_FIELDS = 4  # fragment number, total fragments


def seal(cipher: IkeCipher, header: Header, payloads: Sequence[Payload]) -> bytes:
    """Return the message with *payloads* in one Encrypted payload."""
    first, plaintext = encode_payloads(payloads)
    return _seal(cipher, header, PayloadType.SK, first, b"", plaintext)


def seal_fragments(
    cipher: IkeCipher, header: Header, payloads: Sequence[Payload], max_message: int
) -> tuple[bytes, ...]:
    """Return the message, in Encrypted Fragment payloads if it is longer than *max_message* octets.

    *max_message* is what fits behind the IP and UDP headers and the non-ESP marker. LocalError when more than
    MAX_FRAGMENTS would be needed.
    """
    first, plaintext = encode_payloads(payloads)
    if HEADER_LENGTH + GENERIC_HEADER + cipher.sealed_length(len(plaintext)) <= max_message:
        return (_seal(cipher, header, PayloadType.SK, first, b"", plaintext),)
    room = cipher.room(max_message - HEADER_LENGTH - GENERIC_HEADER - _SKF_FIELDS)
    if room < 1 or -(-len(plaintext) // room) > MAX_FRAGMENTS:
        raise LocalError(f"{len(plaintext)} octets do not fit in {MAX_FRAGMENTS} fragments of {max_message}")
    parts = [plaintext[start : start + room] for start in range(0, len(plaintext), room)]
    return tuple(
        _seal(
            cipher,
            header,
            PayloadType.SKF,
            first if number == 1 else PayloadType.NONE,
            number.to_bytes(2, "big") + len(parts).to_bytes(2, "big"),
            part,
        )
        for number, part in enumerate(parts, 1)
    )


def open_message(cipher: IkeCipher, message: Message, reassembler: Reassembler) -> Message | None:
    """Return *message* opened, or None while fragments are missing.

    The caller has looked at the message ID before: a replayed fragment is authentic, and would take the place of
    those that are awaited. A message made of fragments keeps the header and the octets of the fragment that
    completed it. Raises IntegrityError, and for what is wrong inside InvalidSyntax or UnsupportedCriticalPayload.
    """
    protected = message.protected
    if protected is None:
        raise LocalError("not a protected message")
    plaintext = cipher.open(protected.body, protected.aad)
    if protected.kind == PayloadType.SKF:
        whole = reassembler.add(message.header, protected, plaintext)
        if whole is None:
            return None
        return _inner(message, *whole)
    return _inner(message, protected.first, plaintext)


class Reassembler:
    """Authenticated fragments of the messages under way, bounded (RFC 7383 section 2.6).

    Sets are told apart by direction and message ID. When they expire is the caller's business: ``discard``.
    """

    __slots__ = ("_sets",)

    def __init__(self) -> None:
        self._sets: dict[tuple[bool, int], _Set] = {}

    def add(self, header: Header, protected: Protected, plaintext: bytes) -> tuple[int, bytes] | None:
        """Store one authenticated fragment; return first payload type and octets of the whole when complete.

        A higher total discards the older set (the sender fragments smaller now), a lower one is ignored, and
        so is a fragment that is there already. InvalidSyntax when the whole would be too long.
        """
        key = (header.response, header.message_id)
        current = self._sets.get(key)
        if current is not None and protected.total < current.total:
            return None
        if current is None or protected.total > current.total:
            self._sets.pop(key, None)
            while len(self._sets) >= MAX_SETS:
                del self._sets[next(iter(self._sets))]
            current = self._sets[key] = _Set(protected.total)
        if current.octets + len(plaintext) > MAX_REASSEMBLED and protected.number not in current.parts:
            del self._sets[key]
            raise InvalidSyntax(f"a fragmented message of more than {MAX_REASSEMBLED} octets")
        if not current.add(protected.number, protected.first, plaintext):
            return None
        del self._sets[key]
        return current.first, b"".join(current.parts[number] for number in range(1, current.total + 1))

    def discard(self, header: Header | None = None) -> None:
        """Forget the set that *header* belongs to, or all."""
        if header is None:
            self._sets.clear()
        else:
            self._sets.pop((header.response, header.message_id), None)

    def pending(self) -> int:
        """Return how many incomplete messages are held."""
        return len(self._sets)

    def octets(self) -> int:
        """Return how many octets are held."""
        return sum(part.octets for part in self._sets.values())


class _Set:
    __slots__ = ("first", "octets", "parts", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.first: int = PayloadType.NONE
        self.parts: dict[int, bytes] = {}
        self.octets = 0

    def add(self, number: int, first: int, plaintext: bytes) -> bool:
        """Store a fragment; whether all are there now."""
        if number in self.parts:
            return False
        self.parts[number] = plaintext
        self.octets += len(plaintext)
        if number == 1:
            self.first = first
        return len(self.parts) == self.total


def _inner(message: Message, first: int, plaintext: bytes) -> Message:
    try:
        return message.with_inner(parse_payloads(first, plaintext))
    except UnsupportedCriticalPayload:
        raise
    except WireError as error:
        raise InvalidSyntax(str(error)) from error


def _seal(cipher: IkeCipher, header: Header, kind: int, first: int, fields: bytes, plaintext: bytes) -> bytes:
    length = GENERIC_HEADER + len(fields) + cipher.sealed_length(len(plaintext))
    if HEADER_LENGTH + length > MAX_MESSAGE:
        raise LocalError(f"a message of {HEADER_LENGTH + length} octets")
    aad = (
        header.sized(kind, HEADER_LENGTH + length).encode()
        + bytes([first, 0])
        + length.to_bytes(2, "big")
        + fields
    )
    return aad + cipher.seal(plaintext, aad)
