"""What becomes of an opened packet: selectors and policy, ECN, the peers behind a NAT, then the TUN.

RFC 4301 section 5.2 step 4; RFC 6040 section 4.2; RFC 3948 sections 3.1.2 and 5.2.
"""

from __future__ import annotations

from contextlib import suppress

from policy.clock import Nanos
from policy.path import Endpoint
from policy.selectors import TCP
from policy.spd import Disposition, Mode, Snapshot, Spd
from tunnel.dataplane.coalesce import Coalescer
from tunnel.dataplane.contract import DropReason
from tunnel.dataplane.ecn import decapsulate
from tunnel.dataplane.embedded import concerns, quoted_flow
from tunnel.dataplane.esp import DUMMY, NEXT_HEADER, trailers_of
from tunnel.dataplane.firsts import Firsts
from tunnel.dataplane.flow import FlowError, Parsed, parse
from tunnel.dataplane.ledger import Ledger
from tunnel.dataplane.lookup import find_inbound
from tunnel.dataplane.mss import clamped
from tunnel.dataplane.restore import with_checksum
from tunnel.dataplane.sad import MAX_ALLOWED_FLOWS, InboundSa, Sad

_VERSION = {next_header: version for version, next_header in NEXT_HEADER.items()}
_TUNNELLED = frozenset({*NEXT_HEADER.values(), DUMMY})


class Admission:
    """The last step of the receiving half."""

    def __init__(self, ledger: Ledger, sad: Sad) -> None:
        self._ledger = ledger
        self._sad = sad
        self._spd = Spd()
        self._firsts = Firsts()
        #: The time of the burst under way.
        self.now: Nanos = 0

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

    def tunnelled(
        self, sa: InboundSa, next_header: int, packet: bytes, outer_ecn: int, coalescer: Coalescer
    ) -> DropReason | None:
        """Hand on the inner packet of AH in tunnel mode."""
        if len(packet) < 20 or packet[0] >> 4 != _VERSION.get(next_header):
            return DropReason.INNER_MALFORMED
        try:
            parsed = parse(packet)
        except FlowError:
            return DropReason.INNER_MALFORMED
        refused = self._known_or_refused(sa, parsed, packet)
        if refused is not None:
            return refused
        packet = self._clamped(sa, packet[: parsed.length], parsed)
        if outer_ecn & 1:
            marked = decapsulate(packet, outer_ecn)
            if marked is None:
                return DropReason.ECN_CE_NOT_ECT
            packet = marked
        coalescer.add(packet)
        self._ledger.inbound_out += 1
        return None

    def transported(
        self, sa: InboundSa, plain: bytes, size: int, coalescer: Coalescer, now: Nanos
    ) -> DropReason | None:
        """Hand on the packet that came in transport mode, put together again: the first *size* octets of *plain*.

        What follows there is the trailer of ESP.
        """
        packet = plain[:size]
        key, length = _quick(packet, size)
        nat = sa.params.nat
        if not key or nat or key not in sa.allowed:
            try:
                parsed = parse(packet)
            except FlowError:
                return DropReason.INNER_MALFORMED
            if parsed.fragment:  # RFC 4303 section 3.3.4: nobody applies transport mode to a fragment
                return DropReason.INNER_MALFORMED
            length = parsed.length
            refused = self._known_or_refused(sa, parsed, packet, key)
            if refused is not None:
                return refused
            packet = self._clamped(sa, packet, parsed)
            if nat:
                if not self._is_its_own(parsed, packet, sa.path.remote, now):
                    return DropReason.NAT_CLASH
                packet = with_checksum(packet[:length], parsed)
        if not sa.serves:
            return DropReason.SELECTOR_MISMATCH
        if nat or length == len(plain):
            coalescer.add(packet[:length])
        else:
            coalescer.add(packet[:length], sa, len(plain), plain[length:])
        self._ledger.inbound_out += 1
        return None

    def deliver(self, sa: InboundSa, plain: bytes, outer_ecn: int, coalescer: Coalescer) -> DropReason | None:
        """Check trailer, inner packet, selectors and ECN of a tunnel-mode ESP plaintext; hand the packet on."""
        if len(plain) < 2:
            return DropReason.BAD_PADDING
        next_header = plain[-1]
        if next_header not in _TUNNELLED or not plain.endswith(trailers_of(next_header)[plain[-2]]):
            return DropReason.BAD_PADDING
        if next_header == DUMMY:
            return DropReason.DUMMY
        room = len(plain) - plain[-2] - 2
        if room < 20 or plain[0] >> 4 != _VERSION[next_header]:
            return DropReason.INNER_MALFORMED
        key, length = _quick(plain, room)
        packet = plain[:length]
        if not key or key not in sa.allowed:
            try:
                parsed = parse(plain[:room])
            except FlowError:
                return DropReason.INNER_MALFORMED
            length = parsed.length
            refused = self._known_or_refused(sa, parsed, plain, key)
            if refused is not None:
                return refused
            packet = self._clamped(sa, plain[:length], parsed)
        if not sa.serves:
            return DropReason.SELECTOR_MISMATCH
        if outer_ecn & 1:  # ECT(1) or CE: all else leaves the inner field alone
            marked = decapsulate(packet, outer_ecn)
            if marked is None:
                return DropReason.ECN_CE_NOT_ECT
            packet = marked
        coalescer.add(packet, sa, len(plain), plain[length:])
        self._ledger.inbound_out += 1
        return None

    def _known_or_refused(
        self, sa: InboundSa, parsed: Parsed, packet: bytes, quick: bytes = b""
    ) -> DropReason | None:
        """Return why a flow may not come in through *sa*; remember one that may, under its *quick* key if any."""
        if parsed.icmp_error and not parsed.fragment:  # each is about another packet
            refused = self._refused_error(sa, parsed, packet)
            return refused if sa.serves or refused is not None else DropReason.SELECTOR_MISMATCH
        key = quick or (parsed.flow, parsed.fragment)
        if key in sa.allowed:
            return None if sa.serves else DropReason.SELECTOR_MISMATCH
        refused = self._refused(sa, parsed)
        if refused is not None and parsed.later_fragment:
            refused = self._refused_later(sa, parsed, packet, refused)
        elif refused is None and parsed.fragment:
            self._remember_first(sa, parsed, packet)
        elif refused is None and len(sa.allowed) < MAX_ALLOWED_FLOWS:
            sa.allowed.add(key)
        return DropReason.SELECTOR_MISMATCH if refused is None and not sa.serves else refused

    def _refused_later(
        self, sa: InboundSa, parsed: Parsed, packet: bytes, reason: DropReason
    ) -> DropReason | None:
        """A later fragment shows no ports: it may come in if the first of its datagram did, through *sa* too."""
        try:
            if self._firsts.follows(sa.params.child, packet[: parsed.length], self.now):
                return None
        except FlowError as error:
            return error.reason
        near = any(pair.matches_inbound_but_ports(parsed.flow) for pair in sa.params.selectors)
        return DropReason.FRAGMENT_PORTS if near else reason

    def _remember_first(self, sa: InboundSa, parsed: Parsed, packet: bytes) -> None:
        with suppress(FlowError):
            self._firsts.accepted(sa.params.child, packet[: parsed.length], parsed, self.now)

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
        if entry.protection is None:
            return None
        entry = entry.for_host(parsed.flow.source_address)
        if entry.protection is None or entry.id == sa.params.entry:
            return None
        own = self._spd.entry(sa.params.entry)
        if own is None or own.protection is None or own.protection.peer != entry.protection.peer:
            return DropReason.SELECTOR_MISMATCH
        return None

    def _refused_error(self, sa: InboundSa, parsed: Parsed, packet: bytes) -> DropReason | None:
        """RFC 4301 section 6.2: an error must be about a packet that went out over the pair of *sa*.

        Then it may come from any router behind the other end, and needs no filter of its own.
        """
        quoted = quoted_flow(packet, parsed)
        if quoted is None or not concerns(quoted, parsed):
            return DropReason.ICMP_MISMATCH
        if any(pair.matches_outbound(quoted) for pair in sa.params.selectors):
            return None
        return DropReason.ICMP_MISMATCH

    def _clamped(self, sa: InboundSa, packet: bytes, parsed: Parsed) -> bytes:
        """Let the answer to a SYN fit the SA that it goes out on."""
        if parsed.flow.protocol != TCP or parsed.fragment:
            return packet
        twin = next(iter(self._sad.outbound_of(sa.params.child)), None)
        return packet if twin is None else clamped(packet, parsed.transport, twin.capacity) or packet

    def _is_its_own(self, parsed: Parsed, packet: bytes, remote: Endpoint, now: Nanos) -> bool:
        """Whether the peer at *remote* may speak in a flow, which others behind its NAT may have begun."""
        at = parsed.transport + 13
        flags = packet[at] if parsed.flow.protocol == TCP and at < parsed.length else 0
        return self._sad.nat_flows.arrived(parsed.flow, flags, remote, now, self._has_sas)

    def _has_sas(self, remote: Endpoint) -> bool:
        return any(
            sa.path.remote == remote and sa.params.mode is Mode.TRANSPORT
            for sas in self._sad.outbound.values()
            for sa in sas
        )


def _quick(packet: bytes, room: int) -> tuple[bytes, int]:
    """Return the flow of plain TCP or UDP as header octets, and the octets of the packet; else nothing and 0."""
    if packet[0] == 0x45:
        if packet[9] in (6, 17) and not (packet[6] & 0x3F or packet[7]):
            length = packet[2] << 8 | packet[3]
            if 28 <= length <= room:
                return packet[9:10] + packet[12:24], length
    elif packet[0] >> 4 == 6 and room >= 48 and packet[6] in (6, 17):
        length = 40 + (packet[4] << 8 | packet[5])
        if 48 <= length <= room:
            return packet[6:7] + packet[8:44], length
    return b"", 0
