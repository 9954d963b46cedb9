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
from policy.spd import Disposition, Mode, Snapshot, Spd
from tunnel.dataplane import ah
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
from tunnel.dataplane.ecn import decapsulate
from tunnel.dataplane.esp import DUMMY, HEADER_SIZE, NEXT_HEADER, trailers_of
from tunnel.dataplane.flow import FlowError, Parsed, parse
from tunnel.dataplane.ledger import Ledger
from tunnel.dataplane.lookup import find_inbound
from tunnel.dataplane.macs import Mac
from tunnel.dataplane.outer import AH, ESP
from tunnel.dataplane.restore import received, restored, with_checksum
from tunnel.dataplane.sad import MAX_ALLOWED_FLOWS, InboundSa, Sad
from tunnel.dataplane.udpencap import NON_ESP_MARKER, Kind, demultiplex

_HEADER = struct.Struct("!II")
_LOW = 0xFFFF_FFFF
_VERSION = {next_header: version for version, next_header in NEXT_HEADER.items()}
_TUNNELLED = frozenset({*NEXT_HEADER.values(), DUMMY})
_UNKNOWN_SPI_PER_SECOND = 10


class Inbound:
    """The receiving half of a data plane. *activate* lets the dormant outbound SA of a Child SA be chosen."""

    def __init__(self, ledger: Ledger, sad: Sad) -> None:
        self._ledger = ledger
        self._sad = sad
        self._spd = Spd()
        self.offload = TunOffload()
        #: Child SAs whose dormant half is to be activated after the burst.
        self.activated: list[int] = []
        self._unknown_since: Nanos = -SECOND
        self._unknown = 0

    def load(self, snapshot: Snapshot) -> None:
        """Swap the policy: an SA whose SPD entry is gone delivers nothing any more."""
        self._spd = snapshot.spd
        for sa in self._sad.inbound.values():
            sa.allowed.clear()
            self.admit(sa)

    def admit(self, sa: InboundSa) -> None:
        """Note whether the SPD entry of *sa* is in force."""
        entry = self._spd.entry(sa.params.entry)
        sa.serves = entry is not None and entry.disposition is Disposition.PROTECT

    def burst(self, datagrams: list[WireDatagrams], now: Nanos) -> None:
        """Open what came from the wire; segments are coalesced over the whole burst."""
        coalescer = Coalescer(self.offload)
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
            or item.tos & 1
            or sa.octets + len(data) >= sa.next_limit
        ):
            return 0
        decrypt, salt, esn, spi, extend = sa.decrypt, sa.salt, sa.esn, sa.params.spi, coalescer.extend
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
                if not extend(sa, plain):
                    break
                number += 1
                offset += step
        count = number - top
        sa.window.top = number
        sa.packets += count
        sa.octets += count * (step - sa.overhead - coalescer.padding)
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
        if header[0] >> 4 == 4 and (header[6] & 0x3F or header[7]):
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
        sa.octets += len(packet) - sa.smallest
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
            return self._hand_on(sa, restored(item, next_header, payload), coalescer)
        if _VERSION.get(next_header) is None or len(payload) < 20 or payload[0] >> 4 != _VERSION[next_header]:
            return DropReason.INNER_MALFORMED
        return self._hand_on(sa, payload, coalescer, item.tos & 3)

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
            return self._transport(sa, plain, item, coalescer)
        if not item.tos & 1 and coalescer.extend(sa, plain):
            self._ledger.inbound_out += 1
            return None
        return self._deliver(sa, plain, item.tos & 3, coalescer)

    def _transport(
        self, sa: InboundSa, plain: bytes, item: WireDatagrams, coalescer: Coalescer
    ) -> DropReason | None:
        """Check the trailer of a transport-mode payload, and put its IP header before it again."""
        if len(plain) < 2 or not plain.endswith(trailers_of(plain[-1])[plain[-2]]):
            return DropReason.BAD_PADDING
        if plain[-1] == DUMMY:
            return DropReason.DUMMY
        packet = restored(item, plain[-1], plain[: len(plain) - plain[-2] - 2])
        return self._hand_on(sa, packet, coalescer)

    def _hand_on(
        self, sa: InboundSa, packet: bytes, coalescer: Coalescer, outer_ecn: int = 0
    ) -> DropReason | None:
        """Check a packet against selectors and policy, and hand it on (RFC 4301 section 5.2 step 4)."""
        try:
            parsed = parse(packet)
        except FlowError:
            return DropReason.INNER_MALFORMED
        packet = packet[: parsed.length]
        key = (parsed.flow, parsed.fragment)
        if key not in sa.allowed:
            refused = self._refused(sa, parsed)
            if refused is not None:
                return refused
            if len(sa.allowed) < MAX_ALLOWED_FLOWS:
                sa.allowed.add(key)
        if not sa.serves:
            return DropReason.SELECTOR_MISMATCH
        if sa.params.nat:
            packet = with_checksum(packet, parsed)
        if outer_ecn & 1:
            marked = decapsulate(packet, outer_ecn)
            if marked is None:
                return DropReason.ECN_CE_NOT_ECT
            packet = marked
        coalescer.add(packet)
        self._ledger.inbound_out += 1
        return None

    def _deliver(self, sa: InboundSa, plain: bytes, outer_ecn: int, coalescer: Coalescer) -> DropReason | None:
        """Check trailer, inner packet, selectors and ECN of a decrypted payload; hand the packet on."""
        if len(plain) < 2:
            return DropReason.BAD_PADDING
        next_header = plain[-1]
        if next_header not in _TUNNELLED or not plain.endswith(trailers_of(next_header)[plain[-2]]):
            return DropReason.BAD_PADDING
        if next_header == DUMMY:
            return DropReason.DUMMY
        room = len(plain) - plain[-2] - 2
        version = _VERSION[next_header]
        if room < 20 or plain[0] >> 4 != version:
            return DropReason.INNER_MALFORMED
        key = b""
        if plain[0] == 0x45 and plain[9] in (6, 17) and not (plain[6] & 0x3F or plain[7]):
            length = plain[2] << 8 | plain[3]
            if 28 <= length <= room:
                key = plain[9:10] + plain[12:24]
        elif version == 6 and room >= 48 and plain[6] in (6, 17):
            length = 40 + (plain[4] << 8 | plain[5])
            if 48 <= length <= room:
                key = plain[6:7] + plain[8:44]
        if not key or key not in sa.allowed:
            try:
                parsed = parse(plain[:room])
            except FlowError:
                return DropReason.INNER_MALFORMED
            length = parsed.length
            flow_key = key or (parsed.flow, parsed.fragment)
            if flow_key not in sa.allowed:
                refused = self._refused(sa, parsed)
                if refused is not None:
                    return refused
                if len(sa.allowed) < MAX_ALLOWED_FLOWS:
                    sa.allowed.add(flow_key)
        if not sa.serves:
            return DropReason.SELECTOR_MISMATCH
        packet = plain[:length]
        if outer_ecn & 1:  # ECT(1) or CE: all else leaves the inner field alone
            marked = decapsulate(packet, outer_ecn)
            if marked is None:
                return DropReason.ECN_CE_NOT_ECT
            packet = marked
        coalescer.add(packet, sa, len(plain), plain[length:])
        self._ledger.inbound_out += 1
        return None

    def _refused(self, sa: InboundSa, parsed: Parsed) -> DropReason | None:
        """Return why a packet may not come in through *sa*: outside its selectors, or the SPD forbids.

        RFC 4301 section 4.4.1 wants a decorrelated SPD: what an earlier entry blocks, or protects with another
        peer, is no part of this SA's entry. What it bypasses may come in clear, so it may come protected too.
        """
        if not sa.covers(parsed.flow):
            return DropReason.SELECTOR_MISMATCH
        try:
            entry = find_inbound(self._spd, parsed)
        except FlowError as error:
            return error.reason
        if entry is None:
            return DropReason.SELECTOR_MISMATCH
        if entry.disposition is Disposition.DISCARD:
            return DropReason.DISCARD_POLICY
        if entry.protection is None or entry.id == sa.params.entry:
            return None
        own = self._spd.entry(sa.params.entry)
        if own is None or own.protection is None or own.protection.peer != entry.protection.peer:
            return DropReason.SELECTOR_MISMATCH
        return None

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
