"""Messages for no IKE SA of ours: IKE_SA_INIT requests, and the little that strangers are told (RFC 7296 2.21).

The order is that of cost: bounds, cookie, then parsing of the request's meaning, then key exchange.
"""

from __future__ import annotations

from ike.constants import ExchangeType, NotifyType
from ike.errors import IkeError, InvalidMajorVersion, WireError
from ike.events import Level, SendIke
from ike.v2.core import Core
from ike.v2.halfopen import CookieJar, ReplyBudget
from ike.v2.nat import with_marker
from ike.v2.tasks.ike_init import respond_init
from ike.wire import rules
from ike.wire.header import Header
from ike.wire.message import Message, encode_message
from ike.wire.payloads import NoncePayload, NotifyPayload
from policy.clock import Nanos
from policy.path import Path


class Strangers:
    """Answers to those who have no IKE SA with us."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._cookies = CookieJar(core.entropy, core.settings.cookie_lifetime)
        self._budget = ReplyBudget(core.settings.stranger_replies)

    def receive(self, message: Message, path: Path, now: Nanos) -> None:
        """Take a message that belongs to no IKE SA."""
        header = message.header
        if header.response:
            self._core.counters["response for no ike sa"] += 1
        elif self._core.demands.stopped:
            self._core.counters["shutting down"] += 1  # whoever dials now tries again when we are back
        elif header.exchange == ExchangeType.IKE_SA_INIT and header.spi_r == bytes(8):
            self._init(message, path, now)
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

    def _init(self, message: Message, path: Path, now: Nanos) -> None:
        core, header = self._core, message.header
        known = core.half_open.find(path.remote, message.octets)
        if known is not None and known in core.sas:
            sa = core.sas[known]
            sa.transmit(sa.window.repeat(0, message.octets), path)
            return
        if not header.initiator or header.message_id != 0 or message.protected is not None:
            core.counters["unexpected"] += 1
            return
        own = core.by_spi.get(header.spi_i)
        if own is not None and own.initiator:
            core.counters["reflected"] += 1  # our own request comes back: nobody talks to himself
            return
        rules.check(message)
        nonce = message.first(NoncePayload)
        if nonce is None:
            raise WireError("IKE_SA_INIT without a nonce")
        if core.half_open.loaded(now):
            cookie = message.notify(NotifyType.COOKIE)
            proof = b"" if cookie is None else cookie.data
            if not self._cookies.accepts(proof, path.remote, header.spi_i, nonce.data, now):
                core.counters["cookie demanded"] += 1
                baked = self._cookies.bake(path.remote, header.spi_i, nonce.data, now)
                self._send_reply(message, path, NotifyPayload(NotifyType.COOKIE, data=baked))
                return
        if (
            not core.half_open.room(path.remote, known=_is_configured(core, path))
            or len(core.sas) >= core.settings.sa_limit
        ):
            core.counters["half-open limit"] += 1
            return
        self._answer(message, path, now)

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

    def _send_reply(self, message: Message, path: Path, notify: NotifyPayload) -> None:
        """A cookie costs no state and is smaller than the request: no budget, or a flood would lock peers out."""
        data = self._encode(message, notify)
        if len(data) <= len(message.octets):
            self._core.emit(SendIke(path, with_marker(path, data)))

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


def _is_configured(core: Core, path: Path) -> bool:
    return any(peer.address == path.remote.address for peer in core.snapshot.pad.peers)
