"""What the tap keeps, what it hands out, and what it never does."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.utils import PcapNgReader

from ike.events import IkeSaKeys
from policy.path import Endpoint, Path
from policy.proposals import Encr, Integ, Prf, ProtocolId, Suite
from policy.secret import Secret
from policy.selectors import Flow
from policy.spd import Mode
from tests.support.sim.packets import ip_packet, traffic, upper_layer
from tunnel import pcapng
from tunnel.agent import capture
from tunnel.agent.capture import INNER, OUTER, Tap, limits, stream
from tunnel.dataplane.contract import SaParams, Transmit, TunFrame, WireDatagrams, WriteTun
from tunnel.disclosure import esp_row, ike_row
from tunnel.rehearsal import probe

ONE, OTHER = "10.9.0.1", "10.9.0.2"
FLOW = traffic("10.1.0.5", "10.2.0.9")
PACKET = ip_packet(FLOW, upper_layer(FLOW, b"payload"))
SUITE = Suite(ProtocolId.ESP, Encr.AES_GCM_16, 256, esn=True)
KEY, SALT = Secret(bytes(range(32))), Secret(b"salt")


def path(port: int, *, version: int = 4) -> Path:
    ends = (ONE, OTHER) if version == 4 else ("fd00:9::1", "fd00:9::2")
    return Path(*(Endpoint(ip_address(end), port) for end in ends))


def params(suite: Suite = SUITE, *, protocol: ProtocolId = ProtocolId.ESP, inbound: bool = False) -> SaParams:
    return SaParams(
        spi=0x1234ABCD, inbound=inbound, protocol=protocol, mode=Mode.TUNNEL, suite=suite, encryption_key=KEY,
        salt=SALT if suite.aead else Secret(b""), integrity_key=Secret(b"" if suite.aead else bytes(32)),
        path=path(4500), selectors=(), entry="e", child=1,
    )  # fmt: skip


class FakeIke:
    def __init__(self) -> None:
        self.asked = 0

    def export_keys(self) -> list[IkeSaKeys]:
        self.asked += 1
        return [ike_keys()]


class Fake:
    """A gateway and a data plane with one SA each."""

    def __init__(self) -> None:
        self.ike = FakeIke()

    def sas(self) -> list[SaParams]:
        return [params(), params(Suite(ProtocolId.ESP, Encr.CHACHA20_POLY1305, 256))]


def ike_keys(encr: Encr = Encr.AES_GCM_16) -> IkeSaKeys:
    suite = Suite(ProtocolId.IKE, encr, 256, prf=Prf.HMAC_SHA2_384)
    none = Secret(b"")
    return IkeSaKeys(
        spi_i=b"\x01" * 8, spi_r=b"\x02" * 8, suite=suite, sk_ei=KEY, salt_ei=SALT, sk_er=KEY, salt_er=SALT,
        sk_ai=none, sk_ar=none,
    )  # fmt: skip


@pytest.fixture
def tap() -> Tap:
    fake: Any = Fake()
    return Tap(fake, fake)


def test_inner_and_outer_packets_are_ip_packets(tap: Tap) -> None:
    tap.from_tun([TunFrame(bytes(10) + PACKET)])
    tap.output(WriteTun(((bytes(10) + PACKET[:20], PACKET[20:]),)))
    tap.output(Transmit(path(4500), (b"esp-one", b"esp-two")))
    tap.from_wire([WireDatagrams(path(500), b"aaaabb", 4)])
    tap.output(Transmit(path(0, version=6), (b"raw-esp",)))
    tap.output(Transmit(path(0), (PACKET,), whole=True))
    rows = tap.take()
    assert [(row[0], row[2]) for row in rows] == [
        (INNER, True), (INNER, False), (OUTER, True), (OUTER, True), (OUTER, False), (OUTER, False),
        (OUTER, True), (OUTER, True),
    ]  # fmt: skip
    assert rows[0][3] == rows[1][3] == rows[7][3] == PACKET
    sent, received = IP(rows[2][3]), IP(rows[5][3])
    assert (sent.src, sent.dst, sent[UDP].dport, bytes(sent[UDP].payload)) == (ONE, OTHER, 4500, b"esp-one")
    assert (received.src, received.dst, bytes(received[UDP].payload)) == (OTHER, ONE, b"bb")
    assert (IPv6(rows[6][3]).nh, bytes(IPv6(rows[6][3]).payload)) == (50, b"raw-esp")


def test_what_the_client_does_not_fetch_is_counted(tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "_MAX_WAITING", 3 * len(PACKET))
    for _ in range(5):
        tap.from_tun([TunFrame(bytes(10) + PACKET)])
    assert (len(tap.take()), tap.dropped) == (3, 2)
    tap.from_tun([TunFrame(bytes(10) + PACKET)])
    assert len(tap.take()) == 1


def test_keys_are_asked_for_after_ike_spoke_and_told_once(tap: Tap) -> None:
    tap.learn()
    tap.learn()
    tap.output(Transmit(path(4500), (b"esp-packet",)))
    tap.learn()
    ike: Any = tap.gateway.ike
    assert ike.asked == 1
    assert (len(tap.keys), len(tap.fresh), len(tap.unknown)) == (2, 2, 1)
    tap.from_wire([WireDatagrams(path(4500), bytes(4) + b"ike")])
    tap.learn()
    assert (ike.asked, len(tap.fresh)) == (2, 2)


async def test_the_stream_ends_with_its_bounds_and_lets_go(tap: Tap) -> None:
    attached: list[object] = []
    said: list[str] = []
    for _ in range(5):
        tap.from_tun([TunFrame(bytes(10) + PACKET)])
    parts = [
        part async for part in stream(tap, seconds=60, count=3, attach=attached.append, say=said.append, to="/f")
    ]
    assert [len(part["packets"]) for part in parts if isinstance(part["packets"], list)] == [3, 0]
    assert (parts[-1]["done"], parts[-1]["total"]) == ("3 packets", 3)
    assert attached == [tap, None]
    assert said[-1] == "the capture is over (3 packets): keys of 2 SAs were written to /f"
    assert KEY.reveal().hex() not in "".join(said)
    assert KEY.reveal().hex() in str(parts[0]["keys"])


async def test_a_client_that_goes_away_ends_it(tap: Tap) -> None:
    attached: list[object] = []
    said: list[str] = []
    running = stream(tap, seconds=60, count=3, attach=attached.append, say=said.append, to="/f")
    await anext(running)
    await running.aclose()
    assert attached == [tap, None]
    assert "the client went away" in said[-1]


@pytest.mark.parametrize(
    "request_", [{"seconds": 0}, {"seconds": "x"}, {"seconds": 1e9}, {"count": 0}, {"count": True}, {"count": 1.5}]
)
def test_bounds(request_: dict[str, object]) -> None:
    assert isinstance(limits(request_), str)
    assert limits({}) == (60.0, 10_000)


def test_rows_for_wireshark() -> None:
    key, salt = KEY.reveal().hex(), SALT.reveal().hex()
    cbc = Suite(ProtocolId.ESP, Encr.AES_CBC, 256, Integ.HMAC_SHA2_256_128)
    assert ike_row(ike_keys()) == (
        f'{"01" * 8},{"02" * 8},{key}{salt},{key}{salt},"AES-GCM-256 with 16 octet ICV [RFC5282]",,,'
        '"NONE [RFC4306]"'
    )
    assert ike_row(ike_keys(Encr.CHACHA20_POLY1305)) is None
    assert esp_row(params()) == (
        f'"IPv4","{ONE}","{OTHER}","0x1234abcd","AES-GCM with 16 octet ICV [RFC4106]","0x{key}{salt}","NULL",""'
    )
    assert esp_row(params(cbc, inbound=True)) == (
        f'"IPv4","{OTHER}","{ONE}","0x1234abcd","AES-CBC [RFC3602]","0x{key}",'
        f'"HMAC-SHA-256-128 [RFC4868]","0x{"00" * 32}"'
    )
    assert esp_row(params(replace(cbc, encr=Encr.NULL_AUTH_AES_GMAC))) is None
    assert esp_row(params(cbc, protocol=ProtocolId.AH)) is None


def test_pcapng_is_read_by_another_program() -> None:
    octets = pcapng.opening(("inner", "outer")) + pcapng.packet(
        1, 1_700_000_000_123_456_789, PACKET, outbound=True
    )
    with PcapNgReader(io.BytesIO(octets)) as reader:
        (read,) = list(reader)
    assert bytes(read) == PACKET
    assert read.time == pytest.approx(1_700_000_000.123456789)
    assert octets.count(b"inner") == octets.count(b"outer") == 1
    assert len(octets) % 4 == 0


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [1, 6, 17, 47, 58])
def test_probes_of_a_rehearsal_are_packets(version: int, protocol: int) -> None:
    flow = Flow(version, protocol, 0x0A010005, 0x0A020009, 2048, 2048)
    octets = probe(flow, b"payload")
    packet: Any = (IP if version == 4 else IPv6)(octets)
    remade = packet.copy()
    for layer in (remade, remade.payload):
        for name in ("chksum", "cksum"):
            if name in layer.fields:
                del layer.fields[name]
    if protocol not in (47, 58 if version == 4 else 1):
        assert bytes(remade) == octets
    assert struct.unpack_from("!H", octets, 2 if version == 4 else 4)[0] == len(octets) - (
        40 if version == 6 else 0
    )
