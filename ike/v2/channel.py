"""The protected channel of one IKE SA: its keys, its two ciphers, and fragments (RFC 7296 3.14, RFC 7383)."""

from __future__ import annotations

from collections.abc import Sequence

from ike.crypto.keymat import IkeKeys
from ike.wire.header import Header
from ike.wire.message import Message
from ike.wire.payloads import Payload
from ike.wire.protected import Reassembler, open_message, seal, seal_fragments
from policy.proposals import Suite


class Channel:
    """Seals what we send and opens what the peer sends; knows nothing of message IDs or states."""

    __slots__ = ("_inbound", "_outbound", "_reassembler", "keys", "suite")

    def __init__(self, suite: Suite, keys: IkeKeys, *, initiator: bool) -> None:
        self.suite = suite
        self.keys = keys
        from_initiator, from_responder = keys.ciphers(suite)
        self._outbound, self._inbound = (
            (from_initiator, from_responder) if initiator else (from_responder, from_initiator)
        )
        self._reassembler = Reassembler()

    def seal(self, header: Header, payloads: Sequence[Payload], fragment: int | None) -> tuple[bytes, ...]:
        """Return the message's datagrams; *fragment* is the largest message, None for never fragmenting."""
        if fragment is None:
            return (seal(self._outbound, header, payloads),)
        return seal_fragments(self._outbound, header, payloads, fragment)

    def open(self, message: Message) -> Message | None:
        """Return *message* opened; None while fragments are missing. IntegrityError if it is not authentic."""
        return open_message(self._inbound, message, self._reassembler)

    def discard_fragments(self) -> None:
        """Forget incomplete messages."""
        self._reassembler.discard()

    def wipe(self) -> None:
        """Forget the keys (section 2.12)."""
        self.keys.wipe()
        self._reassembler.discard()
