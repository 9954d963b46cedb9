"""From the wire to the TUN (RFC 4301 section 5.2, RFC 4303 section 3.4).

Per packet: demultiplex, SAD, replay check, authenticate and decrypt, replay commit, trailer, inner packet, ECN,
selectors, coalesce. Nothing but counters moves before the packet is authentic.
"""

from __future__ import annotations

import struct
from contextlib import suppress

from cryptography.exceptions import InvalidTag

from policy.clock import SECOND, Nanos
from policy.path import Path
from policy.spd import Mode
from tunnel.dataplane import ah
from tunnel.dataplane.admission import Admission
from tunnel.dataplane.coalesce import Coalescer
from tunnel.dataplane.contract import (
    DropReason,
    Expire,
    IkeDatagram,
    Mapping,
    TunOffload,
    UnknownSpi,
    WireDatagrams,
    WriteTun,
)
from tunnel.dataplane.esp import DUMMY, HEADER_SIZE, trailers_of
from tunnel.dataplane.flow import FlowError
from tunnel.dataplane.ledger import Ledger
from tunnel.dataplane.macs import Mac
from tunnel.dataplane.outer import AH, ESP
from tunnel.dataplane.restore import front_of, is_fragment, received
from tunnel.dataplane.sad import InboundSa, Sad
from tunnel.dataplane.udpencap import NON_ESP_MARKER, Kind, demultiplex

_HEADER = struct.Struct("!II")
_LOW = 0xFFFF_FFFF
_UNKNOWN_SPI_PER_SECOND = 10


class Inbound:
    """The receiving half of a data plane. *activate* lets the dormant outbound SA of a Child SA be chosen."""

    def __init__(self, ledger: Ledger, sad: Sad) -> None:
        self._ledger = ledger
        self._sad = sad
        self.admission = Admission(ledger, sad)
        self.offload = TunOffload()
        #: Child SAs whose dormant half is to be activated after the burst.
        self.activated: list[int] = []
        self._unknown_since: Nanos = -SECOND
        self._unknown = 0

    def burst(self, datagrams: list[WireDatagrams], now: Nanos) -> None:
        """Open what came from the wire; segments are coalesced over the whole burst."""
        coalescer = Coalescer(self.offload)
        self.admission.now = now
        ledger = self._ledger
        for item in datagrams:
            data = bytes(item.data)
            end = max(len(data), 1)
            step = item.segment_size if item.segment_size > 0 else end
            offset = 0
            while offset < end:
                ledger.inbound_in += 1
                try:
                    reason = self._one(data[offset : offset + step], item, coalescer, now)
                except Exception as error:  # a bad packet never ends a burst
                    ledger.internal_error("inbound", error)
                    reason = DropReason.INTERNAL
                if reason is not None:
                    ledger.drop_inbound(reason)
                offset += step
                if coalescer.owner is not None and offset < end:
                    offset += step * self._in_sequence(data, offset, step, item, coalescer)
        frames = coalescer.finish()
        if frames:
            ledger.outputs.append(WriteTun(frames))

    def _in_sequence(self, data: bytes, offset: int, step: int, item: WireDatagrams, coalescer: Coalescer) -> int:
        """Open the segments from *offset* on that continue the run of the last one; return how many.

        The bulk of a bulk transfer, hence this shorter way through ``_esp``: next sequence number, next segment of
        the same flow, no limit near. Whatever is not so, or fails, is left to the ordinary path, which names it.
        """
        sa = coalescer.owner
        if (
            sa is None
            or sa.decrypt is None
            or item.path is not sa.seen_path
            or (item.tos & 1 if sa.plain else item.tos != sa.front_tos or item.header)
            or sa.octets + len(data) >= sa.next_limit
        ):
            return 0
        decrypt, salt, esn, spi, extend = sa.decrypt, sa.salt, sa.esn, sa.params.spi, coalescer.extend
        front = sa.front  # empty in tunnel mode
        top = number = sa.window.top
        last = number + (len(data) - offset) // step
        if not esn and last > _LOW:
            return 0
        with suppress(Exception):
            while number < last:
                header = data[offset : offset + 8]
                if header != _HEADER.pack(spi, (number + 1) & _LOW):
                    break
                if esn:
                    header = header[:4] + (number + 1).to_bytes(8, "big")
                plain = decrypt(salt + data[offset + 8 : offset + 16], data[offset + 16 : offset + step], header)
                if not extend(sa, front + plain if front else plain):
                    break
                number += 1
                offset += step
        count = number - top
        sa.window.top = number
        sa.packets += count
        sa.octets += count * (len(front) + step - sa.overhead - coalescer.padding)
        self._ledger.inbound_in += count
        self._ledger.inbound_out += count
        return count

    def _one(self, packet: bytes, item: WireDatagrams, coalescer: Coalescer, now: Nanos) -> DropReason | None:
        """Demultiplex one datagram; return why it was dropped, or None."""
        if item.protocol == AH:
            return self._ah(packet, item, coalescer, now)
        if len(packet) < HEADER_SIZE or packet[:4] == NON_ESP_MARKER:
            if item.path.encapsulated:
                return self._control(packet, item.path)
            if len(packet) < HEADER_SIZE:
                return DropReason.SHORT_PACKET
        spi, low = _HEADER.unpack_from(packet)
        sa = self._sad.inbound.get(spi)
        if sa is None:
            self._unknown_spi(item.path, spi, now)
            return DropReason.UNKNOWN_SPI
        if sa.mac is not None:
            reason: DropReason | None = DropReason.WRONG_PROTOCOL
        elif sa.params.bundle is not None:
            reason = DropReason.BUNDLE_INCOMPLETE
        else:
            reason = self._esp(sa, low, packet, item, coalescer, now)
        if reason is not None:
            sa.drop(reason, 1)
        return reason

    def _ah(self, packet: bytes, item: WireDatagrams, coalescer: Coalescer, now: Nanos) -> DropReason | None:
        """RFC 4302 section 3.4."""
        if len(packet) < ah.FIXED.size:
            return DropReason.SHORT_PACKET
        next_header, words, _, spi, low = ah.FIXED.unpack_from(packet)
        sa = self._sad.inbound.get(spi)
        if sa is None:
            self._unknown_spi(item.path, spi, now)
            return DropReason.UNKNOWN_SPI
        if sa.mac is None:
            reason: DropReason | None = DropReason.WRONG_PROTOCOL
        elif len(packet) < sa.smallest or (words + 2) * 4 != sa.smallest:
            reason = DropReason.SHORT_PACKET
        else:
            reason = self._authenticated(sa, sa.mac, low, packet, item, now)
        if reason is None:
            reason = self._inside_ah(sa, next_header, packet, item, coalescer, now)
        if reason is not None:
            sa.drop(reason, 1)
        return reason

    def _authenticated(
        self, sa: InboundSa, mac: Mac, low: int, packet: bytes, item: WireDatagrams, now: Nanos
    ) -> DropReason | None:
        """Check replay, limits and ICV of an AH packet; then let the window and the counters move."""
        header = received(item, AH, len(packet))
        if is_fragment(header):
            return DropReason.OUTER_FRAGMENT
        window = sa.window
        number = window.infer(low)
        refused = window.check(number)
        if refused is not None:
            return refused
        if sa.octets >= sa.hard:
            self._expire(sa, hard=True)
            return DropReason.SA_EXPIRED
        try:
            genuine = ah.genuine(mac, header, packet, (number >> 32).to_bytes(4, "big") if sa.esn else b"")
        except FlowError as error:
            return error.reason
        if not genuine:
            return DropReason.INTEGRITY
        newest = number > window.top
        window.commit(number)
        sa.packets += 1
        # As the sender counts: in transport mode with the IP header.
        sa.octets += len(packet) - sa.smallest + (len(header) if sa.params.mode is Mode.TRANSPORT else 0)
        sa.last_used = now
        if sa.awaiting or (item.path is not sa.seen_path and newest):
            self._authentic(sa, item.path)
        if sa.octets >= sa.next_limit:
            self._expire(sa, hard=sa.octets >= sa.hard)
        return None

    def _inside_ah(
        self, sa: InboundSa, next_header: int, packet: bytes, item: WireDatagrams, coalescer: Coalescer, now: Nanos
    ) -> DropReason | None:
        """Hand on what an authentic AH packet carries."""
        payload = packet[sa.smallest :]
        if sa.params.bundle is not None:
            if next_header != ESP or len(payload) < HEADER_SIZE:
                return DropReason.BUNDLE_INCOMPLETE
            spi, low = _HEADER.unpack_from(payload)
            inner = self._sad.inbound.get(spi)
            if inner is None or inner.params.child != sa.params.bundle or inner.mac is not None:
                return DropReason.BUNDLE_INCOMPLETE
            reason = self._esp(inner, low, payload, item, coalescer, now)
            if reason is not None:
                inner.drop(reason, 1)
            return reason
        if sa.params.mode is Mode.TRANSPORT:
            packet = front_of(item, next_header, len(payload)) + payload
            return self.admission.transported(sa, packet, len(packet), coalescer, now)
        return self.admission.tunnelled(sa, next_header, payload, item.tos & 3, coalescer)

    def _control(self, packet: bytes, path: Path) -> DropReason | None:
        """Take what is no ESP packet on port 4500."""
        match demultiplex(packet):
            case Kind.IKE:
                self._ledger.outputs.append(IkeDatagram(path, packet[4:]))
            case Kind.KEEPALIVE:
                pass
            case Kind.SHORT | Kind.ESP:
                return DropReason.SHORT_PACKET
        self._ledger.control_in += 1
        return None

    def _esp(
        self, sa: InboundSa, low: int, packet: bytes, item: WireDatagrams, coalescer: Coalescer, now: Nanos
    ) -> DropReason | None:
        """RFC 4303 section 3.4: the common case, a packet in sequence, is one comparison at each step."""
        if len(packet) < sa.smallest:
            return DropReason.SHORT_PACKET
        window, esn = sa.window, sa.esn
        top = window.top
        number = top + 1
        if low != number & _LOW or (number > _LOW and not esn):
            number = window.infer(low)
            refused = window.check(number)
            if refused is not None:
                return refused
        if sa.octets >= sa.hard:
            self._expire(sa, hard=True)
            return DropReason.SA_EXPIRED
        try:
            if sa.decrypt is not None:
                header = packet[:4] + number.to_bytes(8, "big") if esn else packet[:8]
                plain = sa.decrypt(sa.salt + packet[8:16], packet[16:], header)
            else:
                plain = sa.open(packet, (number >> 32).to_bytes(4, "big") if esn else b"")
        except InvalidTag:
            return DropReason.INTEGRITY
        if number == top + 1:
            window.top = number
        else:
            window.commit(number)
        sa.packets += 1
        if len(plain) >= 2:
            sa.octets += max(len(plain) - plain[-2] - 2, 0)  # as the sender counts: inner packets
        sa.last_used = now
        if sa.awaiting or (item.path is not sa.seen_path and number > top):
            self._authentic(sa, item.path)
        if sa.octets >= sa.next_limit:
            self._expire(sa, hard=sa.octets >= sa.hard)
        if sa.params.mode is Mode.TRANSPORT:
            return self._transport(sa, plain, item, coalescer, now)
        if not item.tos & 1 and coalescer.extend(sa, plain):
            self._ledger.inbound_out += 1
            return None
        return self.admission.deliver(sa, plain, item.tos & 3, coalescer)

    def _transport(
        self, sa: InboundSa, plain: bytes, item: WireDatagrams, coalescer: Coalescer, now: Nanos
    ) -> DropReason | None:
        """Put the IP header before a transport-mode payload again (RFC 4303 section 3.1.1)."""
        body = len(plain) - plain[-2] - 2 if len(plain) >= 2 else -1
        if body < 0:
            return DropReason.BAD_PADDING
        key = (item.path, item.tos, plain[-1], body)
        if item.header:
            if is_fragment(item.header):
                return DropReason.OUTER_FRAGMENT
            sa.front, sa.front_key, sa.front_tos = front_of(item, plain[-1], body), None, -1
        elif sa.front_key != key:
            sa.front, sa.front_key = front_of(item, plain[-1], body), key
            sa.front_tos = item.tos if sa.params.bundle is None else -1
        sa.octets += len(sa.front)  # as the sender counts: with the header
        packet = sa.front + plain
        if not sa.params.nat and coalescer.extend(sa, packet):
            self._ledger.inbound_out += 1
            return None
        if not plain.endswith(trailers_of(plain[-1])[plain[-2]]):
            return DropReason.BAD_PADDING
        if plain[-1] == DUMMY:
            return DropReason.DUMMY
        return self.admission.transported(sa, packet, len(sa.front) + body, coalescer, now)

    def _authentic(self, sa: InboundSa, path: Path) -> None:
        """An authentic packet wakes the dormant twin, and may show that the peer's address changed."""
        sa.seen_path = path
        if sa.awaiting:
            sa.awaiting = False
            self.activated.append(sa.params.child)
        if path == sa.path:
            sa.reported_path = None
        elif sa.params.follow_nat and path.encapsulated and sa.path.encapsulated and path != sa.reported_path:
            sa.reported_path = path
            self._ledger.outputs.append(Mapping(sa.params.child, sa.params.spi, path))

    def _expire(self, sa: InboundSa, *, hard: bool) -> None:
        """Punt Expire, each kind once."""
        if hard and sa.expired:
            return
        sa.expired |= hard
        sa.next_limit = sa.hard
        self._ledger.outputs.append(Expire(sa.params.child, sa.params.spi, True, hard, "bytes"))

    def _unknown_spi(self, path: Path, spi: int, now: Nanos) -> None:
        if now - self._unknown_since >= SECOND:
            self._unknown_since, self._unknown = now, 0
        if self._unknown < _UNKNOWN_SPI_PER_SECOND:
            self._unknown += 1
            self._ledger.outputs.append(UnknownSpi(path, spi))
