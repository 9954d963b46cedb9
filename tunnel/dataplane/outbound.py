"""From the TUN to the wire (RFC 4301 section 5.1): classify, find the SA or hold, check the size, seal.

The kernel forwarded a transit packet into the TUN and has decremented its hop limit already, and a packet of this
host's own must not be decremented; so the hop limit is only looked at.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import assert_never

from policy.clock import SECOND, Nanos
from policy.path import RAW_PORT, Endpoint, Path
from policy.selectors import TCP
from policy.spd import Disposition, Mode, Snapshot, SpdEntry
from tunnel.dataplane import esp, whole
from tunnel.dataplane.contract import Acquire, Buffer, DropReason, Expire, Transmit, TunFrame, WriteTun
from tunnel.dataplane.esp import DUMMY, NEXT_HEADER, Segment
from tunnel.dataplane.flow import FlowError, Parsed
from tunnel.dataplane.fragments import Fragments
from tunnel.dataplane.hold import Held, Hold, HoldLimits
from tunnel.dataplane.icmp import MIN_IPV6_MTU, fragments, packet_too_big
from tunnel.dataplane.ledger import Ledger
from tunnel.dataplane.lookup import find_outbound, may_match
from tunnel.dataplane.mss import clamped
from tunnel.dataplane.offload import PLAIN_VNET, Frame, segments
from tunnel.dataplane.runs import Runs
from tunnel.dataplane.sad import OutboundSa, Sad
from tunnel.dataplane.singles import Singles
from tunnel.dataplane.transmit import Transmissions
from tunnel.dataplane.until import Until

MAX_CACHED_FLOWS = 65536
#: An SA that came but holds none of the waiting packets is no reason to negotiate at once again.
_UNFIT_BACKOFF = SECOND
#: Entries whose refusal or soft SA is remembered: more than policies have, fewer than there are hosts.
_REMEMBERED = 32_768
#: The largest ESP packet that UDP can carry.
_LARGEST_SEALED = 65507


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What the SPD says of a flow."""

    entry: SpdEntry | None
    drop: DropReason | None = None


class Outbound:
    """The sending half of a data plane."""

    def __init__(self, ledger: Ledger, sad: Sad, limits: HoldLimits) -> None:
        self._ledger = ledger
        self._sad = sad
        self._snapshot = Snapshot(generation=0)
        self.hold = Hold(limits)
        self.fragments = Fragments()
        #: The entries that look at ports or are for whole datagrams alone.
        self._whole: tuple[SpdEntry, ...] = ()
        #: SAs by flow. Emptied whenever policy or SAs change, so that a hit needs no further check.
        self._cache: dict[Hashable, OutboundSa] = {}
        self._verdicts: dict[Hashable, _Verdict] = {}
        self._transmissions = Transmissions(ledger.outputs)
        self._singles = Singles(ledger, self._transmissions)
        self._runs = Runs(ledger, self._transmissions)
        #: Entries with an Acquire outstanding, and until when the others are refused.
        self._acquiring: set[str] = set()
        self._refused = Until(_REMEMBERED)
        #: Until when entries have a soft SA.
        self._soft = Until(_REMEMBERED)

    def load(self, snapshot: Snapshot) -> None:
        """Swap the policy; packets held for entries that vanished are dropped."""
        self._snapshot = snapshot
        self._whole = tuple(entry for entry in snapshot.spd.entries if _needs_whole(entry))
        self._verdicts.clear()
        self.forget_choices()
        for entry in self.hold.entries():
            if not self._protects(entry):
                gone = sum(frame.packets for frame in self.hold.take(entry))
                self._ledger.drop_outbound(DropReason.NO_POLICY, gone)
        self._acquiring = {entry for entry in self._acquiring if self._protects(entry)}
        self._refused.keep(self._protects)
        self._soft.keep(self._protects)

    def forget_choices(self) -> None:
        """Choose the SA of every flow anew: the SAs changed."""
        self._cache.clear()

    def burst(self, frames: list[TunFrame], now: Nanos) -> None:
        """Protect packets from the TUN. One lookup a frame, whatever number of packets it stands for."""
        singles: list[TunFrame] = []
        for frame in frames:
            if frame.size:
                self._singly(singles, now)
                sealed = self._seal_run(frame, now)
                left = sealed * frame.size < len(frame.data)
                singles = [TunFrame(data) for data in frame.reads()[sealed:]] if left else []
            else:
                singles.append(frame)
        self._singly(singles, now)
        self._transmissions.flush()

    def _seal_run(self, frame: TunFrame, now: Nanos) -> int:
        try:
            return self._runs.seal(frame, self._cache, now)
        except Exception as error:  # each packet by itself tells which it is
            self._ledger.internal_error("outbound", error)
            return 0

    def _singly(self, frames: list[TunFrame], now: Nanos) -> None:
        index, total = 0, len(frames)
        while index < total:
            sealed = self._singles.seal(frames, index, self._cache, now)
            if not sealed:
                self._ledger.outbound_in += self._one(frames[index].data, now, None)
            index += sealed or 1

    def release(self, entry: str, now: Nanos) -> None:
        """Send what waits for *entry*; what still finds no SA is dropped, for another one would not fit either."""
        self._acquiring.discard(entry)
        self._refused.end(entry)
        for held in self.hold.take(entry):
            self._one(held.data, now, held)
        self._transmissions.flush()

    def refuse(self, entry: str, now: Nanos, retry_after: Nanos) -> None:
        """Drop what waits for *entry*, and what comes for it until *retry_after* from now."""
        self._acquiring.discard(entry)
        self._refused.set(entry, now + retry_after)
        gone = sum(frame.packets for frame in self.hold.take(entry))
        self._ledger.drop_outbound(DropReason.ACQUIRE_FAILED, gone)

    def pass_clear(self, entry: str, now: Nanos, until: Nanos) -> None:
        """Send what waits for *entry* in clear, and what still comes for it until *until*."""
        self._acquiring.discard(entry)
        self._soft.set(entry, until)
        for held in self.hold.take(entry):
            self._one(held.data, now, held)
        self._transmissions.flush()

    def send_dummy(self, child: int, octets: int, now: Nanos) -> None:
        """Seal a packet that means nothing, of as many octets as the SA carries at the most."""
        for sa in self._sad.outbound_of(child):
            spent = sa.octets >= sa.next_limit or sa.sequence + 1 >= sa.sequence_soft
            if not sa.plain or sa.dormant or spent:
                continue
            dummy: list[Segment] = [(b"", bytes(max(1, min(octets, sa.capacity))))]
            if sa.padding:
                dummy = esp.padded(dummy, sa.padding, sa.capacity)
            sealed = esp.seal(sa, dummy, DUMMY)
            self._transmissions.add(id(sa), sa.path, 0, True, sealed)
            self._transmissions.flush()
            sa.packets += 1
            self._ledger.esp_out += 1

    def expire_held(self, now: Nanos) -> None:
        """Drop what waited too long."""
        self.fragments.expire(now)
        self._drop_fragments()
        self._ledger.drop_outbound(DropReason.HOLD_EXPIRED, self.hold.expire(now))

    def _protects(self, entry_id: str) -> bool:
        entry = self._snapshot.spd.entry(entry_id)
        return entry is not None and entry.disposition is Disposition.PROTECT

    def _one(self, data: Buffer, now: Nanos, held: Held | None) -> int:
        """Account for one frame entirely, whatever it is; return how many packets it stands for."""
        count = 1 if held is None else held.packets
        try:
            frame = Frame(data)
            count = frame.count = max(frame.count, count)
            if self._whole and frame.parsed is not None and frame.parsed.fragment and self._gathers(frame.parsed):
                self._gather(frame, now)
            else:
                self._send(frame, data, now, held)
        except FlowError as error:
            self._ledger.drop_outbound(error.reason, count)
        except Exception as error:  # a bad packet never ends a burst
            self._ledger.internal_error("outbound", error)
            self._ledger.drop_outbound(DropReason.INTERNAL, count)
        return count

    def _gathers(self, parsed: Parsed) -> bool:
        flow = parsed.flow
        return any(may_match(entry, flow, flow.source, flow.destination) for entry in self._whole)

    def _gather(self, frame: Frame, now: Nanos) -> None:
        """Let a fragment wait for the rest of its datagram: ports, or transport mode, need all of it."""
        datagram = self.fragments.add(bytes(frame.packet), now)
        self._drop_fragments()
        if datagram is None:
            return
        entry = self._snapshot.spd.lookup_outbound(datagram.flow)
        transport = entry is not None and entry.protection is not None and entry.protection.mode is Mode.TRANSPORT
        sa = None if entry is None or transport else self._sad.choose(entry.id, datagram.flow)
        if transport or (sa is not None and not sa.cuts):
            self._again(PLAIN_VNET + datagram.joined(), None, len(datagram.pieces), now)
            return
        for packet, outline in datagram.originals():
            self._again(PLAIN_VNET + packet, outline, 1, now)

    def _again(self, data: bytes, outline: Parsed | None, count: int, now: Nanos) -> None:
        """Send what was gathered, a fragment of known *outline* or the whole; it counts as *count* fragments."""
        try:
            frame = Frame(data)
            frame.count = count
            if outline is not None:
                frame.parsed, frame.key = outline, (outline.flow, True)
            self._send(frame, data, now, None, joined=outline is None)
        except FlowError as error:
            self._ledger.drop_outbound(error.reason, count)

    def _drop_fragments(self) -> None:
        for reason, count in self.fragments.drops.items():
            self._ledger.drop_outbound(reason, count)
        self.fragments.drops.clear()

    def _send(self, frame: Frame, data: Buffer, now: Nanos, held: Held | None, *, joined: bool = False) -> None:
        """Seal, hold or drop a frame. Counts move only once nothing can fail any more.

        Who sent the fragments that were *joined* is not told that they are too big together.
        """
        if frame.hop_limit == 0:
            self._ledger.drop_outbound(DropReason.TTL_EXPIRED, frame.count)
            return
        sa = self._cache.get(frame.key)
        if sa is None:
            sa = self._choose(frame, data, now, held)
            if sa is None:
                return
            if len(self._cache) >= MAX_CACHED_FLOWS:
                del self._cache[next(iter(self._cache))]
            self._cache[frame.key] = sa
        if not sa.plain:
            self._send_whole(sa, frame, now, joined=joined)
        elif frame.largest <= sa.capacity:
            self._seal(sa, frame, segments(frame), True, now)
        elif frame.version == 6 and frame.largest <= MIN_IPV6_MTU:
            # RFC 8200 section 5: no IPv6 source is told less than this; the outer packet is fragmented instead.
            self._seal(sa, frame, segments(frame), False, now)
        elif not joined and frame.outline().dont_fragment:
            self._too_big(frame, sa.capacity)
        elif sa.cuts:
            parts = [part for one in segments(frame) for part in fragments(b"".join(one), sa.capacity)]
            self._seal(sa, frame, parts, True, now)
        else:  # the peer would not know the ports of later fragments: the outer packet is fragmented instead
            if esp.sealed_size(sa.transform, frame.largest) > _LARGEST_SEALED:
                raise FlowError(DropReason.TOO_BIG)
            self._seal(sa, frame, segments(frame), False, now)

    def _send_whole(self, sa: OutboundSa, frame: Frame, now: Nanos, *, joined: bool) -> None:
        """Seal a frame in transport mode, or by AH."""
        transport = (sa.inner or sa).params.mode is Mode.TRANSPORT
        if transport and frame.parsed is not None and frame.parsed.fragment:
            raise FlowError(DropReason.FRAGMENT_PORTS)  # RFC 4301 section 4.1: never a fragment
        capacity = whole.capacity_for(sa, frame.packet)
        if frame.largest <= capacity:
            self._seal(sa, frame, segments(frame), True, now)
        elif transport:
            # Protected whole, fragmented after (RFC 4303 section 3.3.4), whatever its DF bit says: an ICMP error
            # would tell the host a path MTU for the address that the outer packets go to, and shrink them again.
            # Who sends learns from the TUN's MTU, which follows.
            if frame.largest > whole.largest(sa, frame.packet):
                raise FlowError(DropReason.TOO_BIG)
            self._seal(sa, frame, segments(frame), False, now)
        elif frame.version == 6 and frame.largest <= MIN_IPV6_MTU:
            self._seal(sa, frame, segments(frame), False, now)
        elif not joined and frame.outline().dont_fragment:
            self._too_big(frame, capacity)
        elif not sa.cuts and frame.largest <= whole.largest(sa, frame.packet):
            self._seal(sa, frame, segments(frame), False, now)
        else:
            parts = [part for one in segments(frame) for part in fragments(b"".join(one), capacity)]
            self._seal(sa, frame, parts, True, now)

    def _choose(self, frame: Frame, data: Buffer, now: Nanos, held: Held | None) -> OutboundSa | None:
        """Return the SA for a flow not in the cache; None when the frame was held or dropped instead."""
        verdict = self._verdicts.get(frame.key)
        if verdict is None:
            verdict = self._look_up(frame.outline())
            if len(self._verdicts) >= MAX_CACHED_FLOWS:
                del self._verdicts[next(iter(self._verdicts))]
            self._verdicts[frame.key] = verdict
        if verdict.entry is None:
            self._ledger.drop_outbound(verdict.drop or DropReason.NO_POLICY, frame.count)
            return None
        entry, flow = verdict.entry.id, frame.outline().flow
        sa = self._sad.choose(entry, flow)
        if sa is not None and not sa.dormant:
            return sa
        if sa is None and self._soft.holds(entry, now):
            self._pass(frame)
            return None
        if sa is None and held is not None:
            self._refused.set(entry, now + _UNFIT_BACKOFF)
        if sa is None and self._refused.holds(entry, now):
            self._ledger.drop_outbound(DropReason.ACQUIRE_FAILED, frame.count)
            return None
        since = now if held is None else held.since
        gone = self.hold.push(Held(entry, bytes(data), frame.count, since))
        self._ledger.drop_outbound(DropReason.HOLD_FULL, gone)
        if sa is None and entry not in self._acquiring:
            self._acquiring.add(entry)
            self._ledger.outputs.append(Acquire(entry, flow))
        return None

    def _pass(self, frame: Frame) -> None:
        """Send a frame in clear, packet by packet: its entry has a soft SA."""
        flow = frame.outline().flow
        path = Path(Endpoint(flow.source_address, RAW_PORT), Endpoint(flow.destination_address, RAW_PORT))
        packets = tuple(b"".join(part) for part in segments(frame))
        self._ledger.outputs.append(Transmit(path, packets, whole=True))
        self._ledger.outbound_out += frame.count

    def _look_up(self, parsed: Parsed) -> _Verdict:
        """Search the SPD."""
        try:
            entry = find_outbound(self._snapshot.spd, parsed)
        except FlowError as error:
            return _Verdict(None, error.reason)
        if entry is None:
            return _Verdict(None, DropReason.NO_POLICY)
        match entry.disposition:
            case Disposition.PROTECT:
                return _Verdict(entry.for_host(parsed.flow.destination_address))
            case Disposition.DISCARD:
                return _Verdict(None, DropReason.DISCARD_POLICY)
            case Disposition.BYPASS:  # steering sends no such packet here, and none leaves in clear from here
                return _Verdict(None, DropReason.NO_POLICY)
            case never:
                assert_never(never)

    def _seal(self, sa: OutboundSa, frame: Frame, parts: list[Segment], df: bool, now: Nanos) -> None:
        """Seal the parts of a frame within the SA's limits."""
        if frame.protocol == TCP and not frame.gso_size and len(parts) == 1:
            made = clamped(bytes(parts[0][1]), frame.transport, sa.capacity) if _is_syn(frame) else None
            parts = parts if made is None else [(b"", made)]
        total, count = len(parts), frame.count
        octets = frame.length + (count - 1) * frame.header
        reason = None
        for half in (sa,) if sa.inner is None else (sa, sa.inner):
            if half.octets + octets < half.next_limit and half.sequence + total < half.sequence_soft:
                continue
            allowed, stopped = self._within_limits(half, parts)
            if allowed < len(parts):
                # All fragments of one packet, or none.
                parts = parts[:allowed] if len(parts) == count else []
                count, reason = len(parts), stopped
                octets = sum(len(header) + len(payload) for header, payload in parts)
        if parts:
            if sa.plain:
                if sa.padding:
                    parts = esp.padded(parts, sa.padding, sa.capacity)
                sealed = esp.seal(sa, parts, NEXT_HEADER[frame.version])
                self._transmissions.add(id(sa), sa.path, frame.tos, df, sealed)
            else:
                self._put_whole(sa, frame, parts, df)
                if sa.inner is not None:
                    self._count(sa.inner, len(parts), octets, now)
            self._count(sa, len(parts), octets, now)
            self._ledger.outbound_out += count
            self._ledger.esp_out += len(parts)
        if reason is not None and count < frame.count:
            sa.drop(reason, frame.count - count)
            self._ledger.drop_outbound(reason, frame.count - count)

    @staticmethod
    def _count(sa: OutboundSa, packets: int, octets: int, now: Nanos) -> None:
        sa.packets += packets
        sa.octets += octets
        sa.last_used = now

    def _put_whole(self, sa: OutboundSa, frame: Frame, parts: list[Segment], df: bool) -> None:
        """Seal and put out what goes in transport mode or by AH."""
        number = sa.sequence
        sealed = whole.seal(sa, parts, frame.version, frame.tos)
        if sa.path.encapsulated:
            self._transmissions.add(id(sa), sa.path, frame.tos, df, sealed)
            return
        if not df:
            sealed = [
                piece for at, packet in enumerate(sealed, 1) for piece in whole.cut(packet, sa.mtu, number + at)
            ]
        self._transmissions.add_whole(id(sa), sa.path, sealed)

    def _within_limits(self, sa: OutboundSa, parts: list[Segment]) -> tuple[int, DropReason | None]:
        """Return how many of *parts* the SA may still carry, and what stops the rest; punt Expire when due."""
        allowed, reason, octets = len(parts), None, sa.octets
        for index, (header, payload) in enumerate(parts):
            octets += len(header) + len(payload)
            if octets > sa.hard:
                allowed, reason = index, DropReason.SA_EXPIRED
                break
        if sa.sequence + allowed > sa.sequence_limit:
            allowed, reason = sa.sequence_limit - sa.sequence, DropReason.SEQUENCE_OVERFLOW
        if reason is not None:
            self._expire(sa, hard=True, cause="bytes" if reason is DropReason.SA_EXPIRED else "sequence")
        elif octets >= sa.next_limit < sa.hard:
            self._expire(sa, hard=False, cause="bytes")
        elif sa.sequence + allowed >= sa.sequence_soft:
            self._expire(sa, hard=False, cause="sequence")
        return allowed, reason

    def _expire(self, sa: OutboundSa, *, hard: bool, cause: str) -> None:
        """Punt Expire, each kind once."""
        if hard and sa.expired:
            return
        if hard:
            sa.expired = True
        elif cause == "bytes":
            sa.next_limit = sa.hard
        else:
            sa.sequence_soft = sa.sequence_limit
        self._ledger.outputs.append(Expire(sa.params.child, sa.params.spi, False, hard, cause))

    def _too_big(self, frame: Frame, capacity: int) -> None:
        """RFC 4301 section 8.2.1: tell the source, drop the packet."""
        mtu = max(capacity, MIN_IPV6_MTU) if frame.version == 6 else capacity
        answer = packet_too_big(frame.packet, frame.outline(), mtu)
        if answer is not None:
            self._ledger.outputs.append(WriteTun(((PLAIN_VNET, answer),)))
            self._ledger.errors_out += 1
        self._ledger.drop_outbound(DropReason.TOO_BIG, frame.count)


def _needs_whole(entry: SpdEntry) -> bool:
    """Whether a fragment by itself is not enough for *entry*."""
    local, remote = entry.selectors.local, entry.selectors.remote
    transport = entry.protection is not None and entry.protection.mode is Mode.TRANSPORT
    return entry.outbound and (transport or not (local.ports.is_any and remote.ports.is_any))


def _is_syn(frame: Frame) -> bool:
    at = frame.transport + 13
    return at < frame.length and bool(frame.packet[at] & 2)
