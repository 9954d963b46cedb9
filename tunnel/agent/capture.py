"""What ``mirrorgate capture`` asks for: packets inside and outside the SAs, and the keys that open the latter.

The runtime has a tap only while a client captures; without one, this costs a look at one attribute a burst.
Packets wait for the client in a bounded queue: what it does not fetch in time is counted, not kept.
"""

from __future__ import annotations

import asyncio
import base64
import struct
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from policy.path import IKE_PORT, NATT_PORT, RAW_PORT, Endpoint, IpAddress, Path
from policy.selectors import Flow
from tunnel.dataplane.checksum import checksum
from tunnel.dataplane.contract import Buffer, SaParams, Transmit, TunFrame, WireDatagrams, WriteTun
from tunnel.dataplane.flow import FlowError, parse
from tunnel.dataplane.reference import ReferenceDataPlane
from tunnel.disclosure import ESP_TABLE, IKE_TABLE, esp_row, ike_row
from tunnel.gateway import Gateway
from tunnel.outputs import Output

INNER, OUTER = 0, 1
INTERFACES = ("inner", "outer")
MAX_SECONDS, MAX_PACKETS = 3600.0, 1_000_000
#: Octets of packets in one capture, and of those that wait for the client.
MAX_OCTETS, _MAX_WAITING = 256 << 20, 8 << 20
#: A line to the client is not much longer than this; the client hears of us at least so often.
_LINE_OCTETS, _EVERY_S = 256 << 10, 0.2
_VNET_HEADER = 10
_UDP, _ESP = 17, 50

Row = tuple[int, int, bool, bytes]


@dataclass(slots=True)
class Tap:
    """Takes what passes between the gateway, the TUN and the sockets. *rule* leaves out what serves another."""

    gateway: Gateway
    dataplane: ReferenceDataPlane
    rule: str | None = None
    waiting: list[Row] = field(default_factory=list)
    dropped: int = 0
    #: Rows of the tables, by what tells them apart, and those not sent yet.
    keys: dict[tuple[str, str], str] = field(default_factory=dict)
    fresh: list[tuple[str, str]] = field(default_factory=list)
    #: SAs whose algorithms Wireshark does not know.
    unknown: set[str] = field(default_factory=set)
    _octets: int = 0
    _new_keys: bool = True
    _spis: set[int] = field(default_factory=set)

    def from_tun(self, frames: Iterable[TunFrame]) -> None:
        """Take packets that leave."""
        for frame in frames:
            for data in frame.reads():
                self._inner(bytes(data[_VNET_HEADER:]), outbound=True)

    def from_wire(self, datagrams: Iterable[WireDatagrams]) -> None:
        """Take what the sockets received."""
        for datagram in datagrams:
            back = Path(datagram.path.remote, datagram.path.local)
            for payload in _pieces(datagram.data, datagram.segment_size):
                head = bytes(datagram.header)
                self._outer(back, head, payload, datagram.protocol, outbound=False)

    def output(self, output: Output) -> None:
        """Take what the gateway puts out."""
        match output:
            case WriteTun(frames):
                for frame in frames:
                    self._inner(b"".join(map(bytes, frame))[_VNET_HEADER:], outbound=False)
            case Transmit(path, buffers, whole=True):
                for buffer in buffers:
                    self._whole(path, bytes(buffer))
            case Transmit(path, buffers):
                for buffer in buffers:
                    self._outer(path, b"", bytes(buffer), _ESP, outbound=True)
            case _:
                pass

    def learn(self) -> None:
        """Note the keys of SAs that are new since IKE last spoke: before they are gone with their SAs."""
        if not self._new_keys:
            return
        self._new_keys = False
        for ike in self.gateway.ike.export_keys():
            self._note(IKE_TABLE, ike.spi_i.hex() + ike.spi_r.hex(), ike_row(ike))
        for sa in self.dataplane.sas():
            if self._serves(sa):
                self._spis.add(sa.spi)
                way = "in" if sa.inbound else "out"
                self._note(ESP_TABLE, f"{way} {sa.spi:08x} {sa.path.remote.address}", esp_row(sa))

    def take(self) -> list[Row]:
        """Return packets for one line, oldest first."""
        size = count = 0
        for count, row in enumerate(self.waiting, 1):  # noqa: B007
            size += len(row[3])
            if size >= _LINE_OCTETS:
                break
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        self._octets -= size
        return taken

    def _note(self, table: str, name: str, row: str | None) -> None:
        if row is None:
            self.unknown.add(name)
        elif self.keys.get((table, name)) != row:
            self.keys[table, name] = row
            self.fresh.append((table, row))

    def _serves(self, sa: SaParams) -> bool:
        return self.rule is None or self._rule_of(sa.entry) == self.rule

    def _rule_of(self, entry_id: str) -> str | None:
        entry = self.gateway.snapshot.spd.entry(entry_id)
        return None if entry is None else entry.rule

    def _inner(self, packet: bytes, *, outbound: bool) -> None:
        if self.rule is None or self._decides(packet, outbound=outbound):
            self._keep(INNER, packet, outbound=outbound)

    def _decides(self, packet: bytes, *, outbound: bool) -> bool:
        try:
            flow: Flow = parse(packet).flow
        except FlowError:
            return False
        spd = self.gateway.snapshot.spd
        entry = spd.lookup_outbound(flow) if outbound else spd.lookup_inbound(flow)
        return entry is not None and entry.rule == self.rule

    def _whole(self, path: Path, packet: bytes) -> None:
        if self.rule is None or self._is_of_peer(path.remote.address):
            self._keep(OUTER, packet, outbound=True)

    def _outer(self, path: Path, head: bytes, payload: bytes, protocol: int, *, outbound: bool) -> None:
        """*path* is as the packet goes: its local end is where it comes from."""
        port = (path.local if outbound else path.remote).port
        ike = port == IKE_PORT or (port == NATT_PORT and payload[:4] == bytes(4))
        self._new_keys |= ike
        if self.rule is not None:
            far = (path.remote if outbound else path.local).address
            spi = int.from_bytes(payload[4:8] if protocol != _ESP else payload[:4], "big")
            if not ike and spi not in self._spis:
                self.learn()  # it may have come with the message before
            if not (self._is_of_peer(far) if ike else spi in self._spis):
                return
        self._keep(OUTER, head + payload if head else _packet(path, payload, protocol), outbound=outbound)

    def _is_of_peer(self, address: IpAddress) -> bool:
        peers = self.gateway.snapshot.pad.candidates(address)
        return any(self._rule_of(entry) == self.rule for peer in peers for entry in peer.entries)

    def _keep(self, interface: int, packet: bytes, *, outbound: bool) -> None:
        if self._octets + len(packet) > _MAX_WAITING:
            self.dropped += 1
            return
        self._octets += len(packet)
        self.waiting.append((interface, time.time_ns(), outbound, packet))


async def stream(
    tap: Tap,
    *,
    seconds: float,
    count: int,
    attach: Callable[[Tap | None], None],
    say: Callable[[str], None],
    to: str,
) -> AsyncGenerator[dict[str, object], None]:
    """Yield packets and keys until *count* packets, *seconds*, the bound on octets, or the client's end."""
    until = time.monotonic() + seconds
    left, octets = count, MAX_OCTETS
    why = "the client went away"
    try:
        attach(tap)
        say(f"a capture begins: packets in clear and the keys of SAs are written to {to}")
        while left > 0 and octets > 0:
            tap.learn()
            rows = tap.take()[:left]
            left -= len(rows)
            octets -= sum(len(row[3]) for row in rows)
            yield _part(rows, tap)
            if time.monotonic() >= until:
                attach(None)  # what waits is told yet
                if not tap.waiting:
                    break
            idle = 0.0 if tap.waiting else min(_EVERY_S, max(0.0, until - time.monotonic()))
            await asyncio.sleep(idle)
        why = f"{count - left} packets"
        yield {**_part([], tap), "done": why, "total": count - left, "dropped": tap.dropped,
               "sas": len(tap.keys), "unknown": len(tap.unknown)}  # fmt: skip
    finally:
        attach(None)
        say(f"the capture is over ({why}): keys of {len(tap.keys)} SAs were written to {to}")


def _part(rows: Sequence[Row], tap: Tap) -> dict[str, object]:
    keys, tap.fresh = tap.fresh, []
    packets = [(where, at, out, base64.b64encode(packet).decode()) for where, at, out, packet in rows]
    return {"packets": packets, "keys": keys}


def limits(request: Mapping[str, object]) -> tuple[float, int] | str:
    """Return seconds and packets of a request, or what is wrong with it."""
    seconds, count = request.get("seconds", 60.0), request.get("count", 10_000)
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds <= MAX_SECONDS:
        return f"seconds is not a number from 0 to {MAX_SECONDS:.0f}"
    if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= MAX_PACKETS:
        return f"count is not a number from 1 to {MAX_PACKETS}"
    return float(seconds), count


def _pieces(data: Buffer, size: int) -> list[bytes]:
    octets = bytes(data)
    if not 0 < size < len(octets):
        return [octets]
    return [octets[at : at + size] for at in range(0, len(octets), size)]


def _packet(path: Path, payload: bytes, protocol: int) -> bytes:
    """Return the IP packet around what a socket gives or takes; its header is the one that the kernel makes."""
    source, destination = path.local, path.remote
    if destination.port != RAW_PORT:
        payload = _datagram(source, destination, payload)
        protocol = _UDP
    ends = source.address.packed + destination.address.packed
    if path.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(payload) & 0xFFFF, protocol, 64) + ends + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, (20 + len(payload)) & 0xFFFF, 0, 0, 64, protocol, 0) + ends
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def _datagram(source: Endpoint, destination: Endpoint, payload: bytes) -> bytes:
    """UDP without a checksum, as RFC 3948 section 2.1 wants it for ESP."""
    return struct.pack("!HHHH", source.port, destination.port, 8 + len(payload), 0) + payload
