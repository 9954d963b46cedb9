"""Messages for no IKE SA of ours: IKE_SA_INIT requests, and the little that strangers are told (RFC 7296 2.21).

The order is that of cost: a glance at the header, cookie, bounds, then parsing, then key exchange.
"""

from __future__ import annotations

from ike.constants import ExchangeType, NotifyType, PayloadType
from ike.errors import IkeError, InvalidMajorVersion, WireError
from ike.events import Level, SendIke
from ike.v2.core import Core
from ike.v2.halfopen import CookieJar, Handshakes, ReplyBudget
from ike.v2.nat import with_marker
from ike.v2.tasks.ike_init import respond_init
from ike.wire import rules
from ike.wire.glance import Glance, nonce_and_cookie
from ike.wire.header import HEADER_LENGTH, Header
from ike.wire.message import Message, encode_message
from ike.wire.payloads import NotifyPayload
from policy.clock import Nanos
from policy.path import Path


class Strangers:
    """Answers to those who have no IKE SA with us."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._cookies = CookieJar(core.entropy, core.settings.cookie_lifetime)
        self._handshakes = Handshakes(core.settings.handshake_rate)
        self._budget = ReplyBudget(core.settings.stranger_replies)
        self._attention = ReplyBudget(core.settings.stranger_replies)

    def attends(self, now: Nanos) -> bool:
        """Whether one more message is parsed that no IKE SA can come of: a hint or an error at most."""
        if self._attention.take(now):
            return True
        self._core.counters["not looked at"] += 1
        return False

    def prove(self, path: Path) -> None:
        """A peer was authenticated at the far end of *path*."""
        self._handshakes.prove(path.remote.address)

    def dismiss(self, look: Glance, path: Path, data: bytes, now: Nanos) -> bool:
        """Deal with a message for no IKE SA by its first octets; False if it is worth parsing."""
        core = self._core
        if look.response:
            core.counters["response for no ike sa"] += 1
            return True
        if core.demands.stopped:
            core.counters["shutting down"] += 1  # whoever dials now tries again when we are back
            return True
        if not look.opens:
            return not self.attends(now)
        known = core.half_open.find(path.remote, data) if len(core.half_open) else None
        if known is not None and known in core.sas:
            sa = core.sas[known]
            sa.transmit(sa.window.repeat(0, data), path)
            return True
        core.half_open.asked(now)
        if not look.initiator or look.message_id != 0 or look.protected:
            core.counters["unexpected"] += 1
            return True
        own = core.by_spi.get(look.spi_i)
        if own is not None and own.initiator:
            core.counters["reflected"] += 1  # our own request comes back: nobody talks to himself
            return True
        if core.half_open.loaded(now) and not self._brings_cookie(look, path, data, now):
            return True
        return not self._room(path, now)

    def receive(self, message: Message, path: Path, now: Nanos) -> None:
        """Take a message that belongs to no IKE SA and was not dismissed."""
        header = message.header
        if header.exchange == ExchangeType.IKE_SA_INIT and header.spi_r == bytes(8):
            if message.protected is not None:
                raise WireError("IKE_SA_INIT with an Encrypted payload")
            rules.check(message)
            self._answer(message, path, now)
        elif message.protected is not None:
            self._core.counters["unknown ike spi"] += 1
            self._reply(message, path, NotifyPayload(NotifyType.INVALID_IKE_SPI), now)
        else:
            self._core.counters["unprotected"] += 1
            if message.notify(NotifyType.INVALID_SPI) is not None:  # a hint at most (section 1.5)
                self._core.demands.unknown_spi(path, now)

    def other_version(self, error: InvalidMajorVersion, path: Path, length: int, now: Nanos) -> None:
        """A higher major version is answered with ours; it is never larger than the request (section 2.5)."""
        self._core.counters["major version"] += 1
        if error.response or error.major < 2:
            return
        header = Header(
            spi_i=error.spi_i,
            spi_r=error.spi_r,
            exchange=error.exchange,
            initiator=not error.initiator,
            response=True,
            message_id=error.message_id,
        )
        data = encode_message(header, [NotifyPayload(NotifyType.INVALID_MAJOR_VERSION)])
        self._send(data, path, length, now)

    def _brings_cookie(self, look: Glance, path: Path, data: bytes, now: Nanos) -> bool:
        """Whether an IKE_SA_INIT request has a cookie of ours; if not it is told to bring one (section 2.6)."""
        core = self._core
        found = nonce_and_cookie(look, data)
        if found is None:
            core.counters["malformed"] += 1
            return False
        nonce, cookie = found
        if cookie and self._cookies.accepts(cookie, path.remote, look.spi_i, nonce, now):
            return True
        core.counters["cookie demanded"] += 1
        # It costs no state and is smaller than the request: no budget, or a flood would lock peers out.
        answer = _cookie_demand(look.spi_i, self._cookies.bake(path.remote, look.spi_i, nonce, now))
        if len(answer) <= len(data):
            core.emit(SendIke(path, with_marker(path, answer)))
        return False

    def _room(self, path: Path, now: Nanos) -> bool:
        core, address = self._core, path.remote.address
        known = core.snapshot.pad.names(address) or self._handshakes.proven(address)
        if not core.half_open.room(path.remote, known=known) or len(core.sas) >= core.settings.sa_limit:
            core.counters["half-open limit"] += 1
            return False
        if not self._handshakes.take(address, now, known=known):
            core.counters["handshake rate"] += 1
            return False
        return True

    def _answer(self, message: Message, path: Path, now: Nanos) -> None:
        core = self._core
        if not core.snapshot.pad.candidates(path.remote.address):
            reason = f"no peer of this policy is at {path.remote.address} (or anywhere)"
            self._tell_refused(path, reason, now)
            self._reply(message, path, NotifyPayload(NotifyType.NO_PROPOSAL_CHOSEN), now)
            return
        try:
            respond_init(core, message, path, now)
        except IkeError as error:
            if error.notify is None:
                raise
            if error.notify is not NotifyType.INVALID_KE_PAYLOAD:
                self._tell_refused(path, str(error), now)
            self._reply(message, path, NotifyPayload(error.notify, data=error.notify_data), now)

    def _tell_refused(self, path: Path, reason: str, now: Nanos) -> None:
        address = str(path.remote.address)
        for peer in self._core.snapshot.pad.candidates(path.remote.address):
            if peer.address is not None:
                self._core.remember_failure(peer.name, reason)
        self._core.tell(
            now,
            "negotiation_failed",
            Level.WARNING,
            f"IKE_SA_INIT of {address} refused: {reason}",
            limit=f"{address} {reason}",
            address=address,
            reason=reason,
            kind="refused",
            role="responder",
        )

    def _reply(self, message: Message, path: Path, notify: NotifyPayload, now: Nanos) -> None:
        data = self._encode(message, notify)
        self._send(data, path, len(message.octets), now)

    def _send(self, data: bytes, path: Path, length: int, now: Nanos) -> None:
        if len(data) > length or not self._budget.take(now):
            self._core.counters["stranger not answered"] += 1
            return
        self._core.emit(SendIke(path, with_marker(path, data)))

    def _encode(self, message: Message, notify: NotifyPayload) -> bytes:
        header = message.header
        answer = Header(
            spi_i=header.spi_i,
            spi_r=header.spi_r,
            exchange=header.exchange,
            initiator=not header.initiator,
            response=True,
            message_id=header.message_id,
        )
        return encode_message(answer, [notify])


def _cookie_demand(spi_i: bytes, cookie: bytes) -> bytes:
    """Return the IKE_SA_INIT response that has nothing but N(COOKIE), put together by hand: thousands a second."""
    length = 8 + len(cookie)
    return b"".join(
        (
            spi_i, bytes(8), bytes((PayloadType.NOTIFY, 0x20, ExchangeType.IKE_SA_INIT, 0x20)), bytes(4),
            (HEADER_LENGTH + length).to_bytes(4, "big"), b"\0\0", length.to_bytes(2, "big"),
            b"\0\0", NotifyType.COOKIE.to_bytes(2, "big"), cookie,
        )
    )  # fmt: skip
