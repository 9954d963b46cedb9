"""A rehearsal: the gateways of two ends on a perfect network in virtual time, one flow at a time.

Nothing leaves the process: both ends are the ``Gateway`` that the agent runs, each behind the guard that its own
policy asks for, and what one transmits the other gets a few milliseconds later. Every flow begins anew, without
SAs, so that what is said of it depends on the two policies alone, and on who begins.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ike.events import Event, Level
from policy.clock import MILLISECOND, SECOND, Entropy, Nanos
from policy.explain import Direction, flow_text
from policy.path import IKE_PORT, RAW_PORT, IpAddress, Path
from policy.selectors import ICMP, ICMPV6, Flow
from policy.spd import Disposition, Mode, Snapshot, SpdEntry
from tunnel import pump
from tunnel.dataplane.checksum import checksum, pseudo_header
from tunnel.dataplane.contract import Transmit, TunFrame, WireDatagrams, WriteTun
from tunnel.differences import End, advice, entry_of
from tunnel.gateway import Gateway
from tunnel.outputs import Explain, Output, Rekey, SoftSa, Steer

PROTECTED, CLEAR, BLOCKED, MIXED = "protected", "clear", "blocked", "mixed"

_LATENCY = 5 * MILLISECOND
#: When the application tries again, in seconds from the start: past the time after which a soft SA begins.
_TRIES = (0, 1, 3, 6, 10, 15, 25)
_PATIENCE = 5 * SECOND
#: More than a rekey takes on a perfect network.
_RENEWAL = 2 * SECOND
#: More events than two gateways can need for one flow: what comes after is a bug of ours.
_MAX_EVENTS = 20_000
_FORWARD, _REPLY = "forward", "reply"
_MARK = b"Rehearse"
_NO_OFFLOAD = bytes(10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a flow fared, both ways, once both ends had time to agree.

    *ends* are the ``explain`` objects of A and B; *reasons* say what went wrong and what to change.
    """

    flow: Flow
    begins: str
    forward: str
    reply: str
    #: The ends whose policy lets this flow pass protected only.
    required: tuple[str, ...]
    ends: dict[str, dict[str, object]]
    reasons: tuple[str, ...]
    #: An end protects the flow, or lets it pass in clear if nobody answers: it was refused then.
    wanted: bool = False
    #: The end that begins never dials; once the other has begun the flow is protected.
    waits: bool = False
    #: Keys can be renewed. Else a flow is protected at first, and blocked when the first SA has lived its time.
    lasting: bool = True

    @property
    def outcome(self) -> str:
        """What a conversation gets: protected, clear, blocked, or mixed (protected one way only)."""
        if BLOCKED in (self.forward, self.reply):
            return BLOCKED
        return self.forward if self.forward == self.reply else MIXED

    @property
    def failed(self) -> bool:
        """Whether an end requires protection that cannot be had."""
        if self.outcome == PROTECTED:
            return not self.lasting
        if self.waits:
            return False
        return bool(self.required) or (self.wanted and self.outcome == BLOCKED)

    def to_dict(self) -> dict[str, object]:
        """Return it for JSON."""
        return {
            "flow": flow_text(self.flow),
            "begins": self.begins,
            "outcome": self.outcome,
            "forward": self.forward,
            "reply": self.reply,
            "required": list(self.required),
            "waits": self.waits,
            "lasting": self.lasting,
            "failed": self.failed,
            "ends": self.ends,
            "reasons": list(self.reasons),
        }


def rehearse(ends: tuple[End, End], flow: Flow, *, begins: int, entropy: Entropy) -> Verdict:
    """Return how *flow* fares when ``ends[begins]`` sends its first packet."""
    verdict = _Stage(ends, flow, begins, entropy).play()
    entry = entry_of(ends[begins].snapshot, flow, outbound=True)
    if verdict.outcome == PROTECTED or entry is None or entry.protection is None:
        return verdict
    if entry.protection.mode is Mode.TUNNEL and entry.protection.tunnel_remote is None:
        one, other = ends[begins].name, ends[1 - begins].name
        if _Stage(ends, answer_to(flow), 1 - begins, entropy).play().outcome == PROTECTED:
            why = f'{one} never dials (tunnel_endpoint = "any"): it is protected once {other} has begun'
            return replace(verdict, waits=True, reasons=(why,))
    return verdict


def answer_to(flow: Flow) -> Flow:
    """Return the flow of the answers: an echo request's are echo replies."""
    source_port, destination_port = flow.destination_port, flow.source_port
    if flow.protocol in (ICMP, ICMPV6) and flow.source_port in (8 * 256, 128 * 256):
        source_port = destination_port = 0 if flow.protocol == ICMP else 129 * 256
    return Flow(
        flow.version, flow.protocol, flow.destination, flow.source, source_port, destination_port
    )  # fmt: skip


@dataclass(slots=True, eq=False)
class _Side:
    end: End
    gateway: Gateway
    steered: Snapshot
    soft: dict[tuple[IpAddress, IpAddress], Nanos] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    #: Names of events since somebody looked.
    news: set[str] = field(default_factory=set)
    ticket: int = 0


class _Stage:
    """Two sides, a clock, and one flow."""

    def __init__(self, ends: tuple[End, End], flow: Flow, begins: int, entropy: Entropy) -> None:
        self._flows = {_FORWARD: flow, _REPLY: answer_to(flow)}
        self._begins = begins
        self._now: Nanos = SECOND
        self._events: list[tuple[Nanos, int, Callable[[], object]]] = []
        self._count = 0
        self._arrived: dict[tuple[int, str], str] = {}
        self._sides = [
            _Side(end, Gateway(entropy=entropy), end.snapshot) for end in ends
        ]  # fmt: skip

    def play(self) -> Verdict:
        for side in self._sides:
            self._load(side)
        last = 0
        for last, at in enumerate(_TRIES):
            self._run(until=SECOND + at * SECOND)
            self._send(self._begins, _FORWARD, last)
            self._run(until=self._now + SECOND)
            if all(self._arrived.get((last, way)) == PROTECTED for way in (_FORWARD, _REPLY)):
                break
        else:
            self._run(until=self._now + _PATIENCE)
        return self._verdict(last)

    def _verdict(self, last: int) -> Verdict:
        flow = self._flows[_FORWARD]
        explained, required, wanted = {}, [], False
        for number, side in enumerate(self._sides):
            way = Direction.OUTBOUND if number == self._begins else Direction.INBOUND
            explained[side.end.name] = side.gateway.command(Explain(flow, way), self._now)
            entry = entry_of(side.end.snapshot, flow, outbound=number == self._begins)
            if entry is not None and entry.protection is not None:
                wanted = True
                if not entry.protection.fallback_clear:
                    required.append(side.end.name)
        verdict = Verdict(
            flow=flow,
            begins=self._sides[self._begins].end.name,
            forward=self._arrived.get((last, _FORWARD), BLOCKED),
            reply=self._arrived.get((last, _REPLY), BLOCKED),
            required=tuple(required),
            ends=explained,
            reasons=(),
            wanted=wanted,
        )
        if verdict.outcome == PROTECTED:
            return self._renewed(verdict)
        told = advice(self._sides[self._begins].end, self._sides[1 - self._begins].end, flow)
        return replace(verdict, reasons=tuple(dict.fromkeys([*self._told(), *told])))

    def _renewed(self, verdict: Verdict) -> Verdict:
        """Rekey from both ends, as they will: only then is the PFS group negotiated (RFC 7296 section 2.17)."""
        lasting, told = True, []
        for what, ike in (("Child SA", False), ("IKE SA", True)):
            able = [side for side in self._sides if self._renews(side, ike=ike)]
            if len(able) == len(self._sides):
                continue
            lasting = lasting and bool(able)
            unable = " and ".join(side.end.name for side in self._sides if side not in able)
            instead = f", {able[0].end.name} can" if able else "; it ends with its lifetime, and so does the flow"
            told += [f"{unable} cannot rekey the {what}{instead}", *self._told()]
        return replace(verdict, lasting=lasting, reasons=tuple(told))

    def _renews(self, side: _Side, *, ike: bool) -> bool:
        """Whether a rekey that *side* begins is done soon."""
        side.news.clear()
        side.gateway.command(Rekey(None, ike=ike), self._now)
        self._drain(side)
        self._run(until=self._now + _RENEWAL)
        return ("ike_rekeyed" if ike else "child_rekeyed") in side.news

    def _told(self) -> list[str]:
        """Return what went wrong since the last time: who refused first, then who was refused."""
        said: dict[tuple[str, str], str] = {}
        for side in self._sides:
            for reason in side.reasons:  # of the tries of one kind the first
                kind = reason.partition(" refused: ")[0].partition(" failed: ")[0]
                said.setdefault((side.end.name, kind), f"{side.end.name}: {reason}")
            side.reasons.clear()
        return sorted(said.values(), key=lambda reason: " refused: " not in reason)

    # Time

    def _at(self, time: Nanos, action: Callable[[], object]) -> None:
        self._count += 1
        heapq.heappush(self._events, (max(time, self._now), self._count, action))

    def _run(self, until: Nanos) -> None:
        while self._events and self._events[0][0] <= until and self._count < _MAX_EVENTS:
            self._now, _, action = heapq.heappop(self._events)
            action()
        self._now = max(self._now, until)

    # Gateways

    def _load(self, side: _Side) -> None:
        for peer in side.end.snapshot.pad.peers:
            own = None if peer.address is None else _own(side.end, self._other(side).end, peer.address)
            if peer.address is not None and own is not None:
                side.gateway.source(peer.address, own, self._now)
                self._drain(side)
        side.gateway.load(side.end.snapshot, self._now)
        self._drain(side)

    def _drain(self, side: _Side) -> None:
        deadline = pump.drain(side.gateway, lambda output: self._carry_out(side, output))
        side.ticket += 1
        ticket = side.ticket
        if deadline is not None:
            self._at(max(deadline, self._now), lambda: self._timeout(side, ticket))

    def _timeout(self, side: _Side, ticket: int) -> None:
        if ticket == side.ticket:
            side.gateway.handle_timeout(self._now)
            self._drain(side)

    def _carry_out(self, side: _Side, output: Output) -> None:
        match output:
            case Transmit(path, buffers, whole=True):
                for buffer in buffers:
                    self._transmit_whole(side, path, bytes(buffer))
            case Transmit(path, buffers):
                for buffer in buffers:
                    self._to_wire(side, WireDatagrams(Path(path.remote, path.local), bytes(buffer)))
            case WriteTun(frames):
                for frame in frames:
                    packet = b"".join(bytes(buffer) for buffer in frame)[len(_NO_OFFLOAD) :]
                    self._deliver(side, packet, PROTECTED)
            case Steer(snapshot):
                side.steered = snapshot
            case SoftSa(local, remote, lifetime):
                side.soft[local, remote] = self._now + lifetime
            case Event(name, level, message):
                side.news.add(name)
                if name in ("negotiation_failed", "child_refused") and level >= Level.WARNING:
                    side.reasons.append(message)
            case _:
                pass

    def _transmit_whole(self, side: _Side, path: Path, packet: bytes) -> None:
        protocol, start = _outer(packet)
        if protocol not in (50, 51):
            self._clear_to(self._other(side), packet)
            return
        back = Path(path.remote, path.local)
        self._to_wire(side, WireDatagrams(back, packet[start:], 0, _tos(packet), protocol, packet[:start]))

    def _to_wire(self, side: _Side, datagram: WireDatagrams) -> None:
        other = self._other(side)
        if datagram.path.local.address in other.end.addresses:
            self._at(self._now + _LATENCY, lambda: self._from_wire(other, datagram))

    def _from_wire(self, side: _Side, datagram: WireDatagrams) -> None:
        if datagram.path.local.port in (RAW_PORT, IKE_PORT, 4500):
            side.gateway.handle_wire([datagram], self._now)
            self._drain(side)

    def _other(self, side: _Side) -> _Side:
        return self._sides[1] if side is self._sides[0] else self._sides[0]

    # The application, and the guard around it

    def _send(self, number: int, way: str, attempt: int) -> None:
        side, flow = self._sides[number], self._flows[way]
        packet = probe(flow, _mark(way, attempt))
        entry = side.steered.spd.lookup_outbound(flow)
        disposition = Disposition.BYPASS if entry is None else entry.disposition
        if disposition is Disposition.BYPASS or self._is_soft(side, entry, flow, outbound=True):
            self._clear_to(self._other(side), packet)
        elif disposition is Disposition.PROTECT:
            side.gateway.handle_tun([TunFrame(_NO_OFFLOAD + packet)], self._now)
            self._drain(side)

    def _clear_to(self, side: _Side, packet: bytes) -> None:
        self._at(self._now + _LATENCY, lambda: self._from_clear(side, packet))

    def _from_clear(self, side: _Side, packet: bytes) -> None:
        way = _FORWARD if side is not self._sides[self._begins] else _REPLY
        flow = self._flows[way]
        entry = side.steered.spd.lookup_inbound(flow)
        if (
            entry is None
            or entry.disposition is Disposition.BYPASS
            or (entry.protection is not None and entry.protection.inbound_clear)
            or self._is_soft(side, entry, flow, outbound=False)
        ):
            self._deliver(side, packet, CLEAR)

    def _is_soft(self, side: _Side, entry: SpdEntry | None, flow: Flow, *, outbound: bool) -> bool:
        if entry is None or entry.protection is None or not entry.protection.fallback_clear:
            return False
        pair = flow.source_address, flow.destination_address
        return side.soft.get(pair if outbound else pair[::-1], 0) > self._now

    def _deliver(self, side: _Side, packet: bytes, how: str) -> None:
        """Take a packet for the application; an ICMP error that quotes one of ours is for another address."""
        number = self._sides.index(side)
        way = _FORWARD if number != self._begins else _REPLY
        at = packet.find(_MARK)
        flow = self._flows[way]
        length = 4 if flow.version == 4 else 16
        start = 12 if flow.version == 4 else 8
        ends = packet[start : start + 2 * length]
        wanted = flow.source.to_bytes(length, "big") + flow.destination.to_bytes(length, "big")
        if at < 0 or ends != wanted:
            return
        attempt = packet[at + len(_MARK)]
        self._arrived.setdefault((attempt, way), how)
        if way == _FORWARD:
            self._at(self._now + MILLISECOND, lambda: self._send(number, _REPLY, attempt))


def probe(flow: Flow, payload: bytes) -> bytes:
    """Return an IP packet of *flow* with *payload*."""
    length = 4 if flow.version == 4 else 16
    ends = flow.source.to_bytes(length, "big") + flow.destination.to_bytes(length, "big")
    ports = struct.pack("!HH", flow.source_port or 0, flow.destination_port or 0)
    match flow.protocol:
        case 6:
            upper, at = ports + struct.pack("!IIHHHH", 1, 1, 0x5010, 65535, 0, 0) + payload, 16
        case 17:
            upper, at = ports + struct.pack("!HH", 8 + len(payload), 0) + payload, 6
        case 1 | 58:
            upper, at = struct.pack("!HHHH", flow.source_port or 0, 0, 1, 1) + payload, 2
        case _:
            upper, at = ports + bytes(4) + payload, 0
    if at:
        pseudo = 0 if flow.protocol == ICMP else pseudo_header(ends, flow.protocol, len(upper))
        upper = upper[:at] + struct.pack("!H", checksum(upper, pseudo)) + upper[at + 2 :]
    if flow.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(upper), flow.protocol, 64) + ends + upper
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(upper), 1, 0, 64, flow.protocol, 0) + ends
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + upper


def _mark(way: str, attempt: int) -> bytes:
    return _MARK + bytes([attempt]) + way.encode().ljust(23, b".")


def _outer(packet: bytes) -> tuple[int, int]:
    """Return what an IP packet carries, and where it begins."""
    if packet[0] >> 4 == 4:
        return packet[9], (packet[0] & 15) * 4
    protocol, at = packet[6], 40
    while protocol in (0, 43, 60):
        protocol, at = packet[at], at + 8 + packet[at + 1] * 8
    return protocol, at


def _tos(packet: bytes) -> int:
    return packet[1] if packet[0] >> 4 == 4 else (packet[0] << 4 | packet[1] >> 4) & 0xFF


def _own(end: End, other: End, remote: IpAddress) -> IpAddress | None:
    """Return from where *end* speaks to *remote*: where *other* expects it, else its nearest address."""
    expected = {peer.address for peer in other.snapshot.pad.peers}
    found = [address for address in end.addresses if address.version == remote.version]
    return min(found, key=lambda own: (own not in expected, int(own) ^ int(remote)), default=None)
