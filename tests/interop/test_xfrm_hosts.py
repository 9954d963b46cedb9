"""Transport mode, AH and both at once against the Linux kernel's XFRM, host to host, with keys set by hand.

data plane                                  guest kernel (user-mode-linux)
ping request, protected        -->          opened by XFRM, answered
reply opened                   <--          protected by XFRM
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, IPOption_Router_Alert, IPOption_RR
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    PadN,
)
from scapy.packet import Packet, Raw

from policy.lifetimes import Lifetime
from policy.path import Endpoint, Path
from policy.proposals import Encr, Integ, ProtocolId, Suite
from policy.secret import Secret
from policy.selectors import ANY_PROTOCOL, AddressRange, SelectorPair, TrafficSelector
from policy.spd import Disposition, Mode, Protection, Snapshot, Spd, SpdEntry
from tests.interop.test_xfrm_packets import _ENCAP_HOLDER, OUTER, _Inside
from tests.support import uml
from tests.support.uml import UmlGuest
from tunnel.dataplane.contract import SaParams, Transmit, TunFrame, WireDatagrams, WriteTun
from tunnel.dataplane.reference import ReferenceDataPlane

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces and raw sockets"),
]

IPV6_HDRINCL = 36
MARKER = 0x6D68


@dataclass(frozen=True)
class Algorithm:
    """One SA's algorithms, as we and as the kernel say them."""

    suite: Suite
    key: int
    integrity: int
    words: str
    salt: int = 0

    def keys(self) -> tuple[bytes, bytes, bytes]:
        return bytes(range(self.key)), b"salt"[: self.salt], bytes(range(100, 100 + self.integrity))

    def kernel(self, version: int) -> str:
        key, salt, integrity = (octets.hex() for octets in self.keys())
        # RFC 4302 aligns AH to four octets in IPv4; the kernel does so only when told.
        align = "flag align4" if self.suite.protocol is ProtocolId.AH and version == 4 else ""
        esn = "flag esn replay-window 64" if self.suite.esn else "replay-window 32"
        return f"{align} {esn} {self.words.format(key=key + salt, integrity=integrity)}"


def _ah(integ: Integ, size: int, name: str, bits: int) -> Algorithm:
    return Algorithm(Suite(ProtocolId.AH, integ=integ), 0, size, f"auth-trunc '{name}' 0x{{integrity}} {bits}")


AH = {
    "sha256": _ah(Integ.HMAC_SHA2_256_128, 32, "hmac(sha256)", 128),
    "sha384": _ah(Integ.HMAC_SHA2_384_192, 48, "hmac(sha384)", 192),
    "sha512": _ah(Integ.HMAC_SHA2_512_256, 64, "hmac(sha512)", 256),
    "sha1": _ah(Integ.HMAC_SHA1_96, 20, "hmac(sha1)", 96),
    "md5": _ah(Integ.HMAC_MD5_96, 16, "hmac(md5)", 96),
    "xcbc": _ah(Integ.AES_XCBC_96, 16, "xcbc(aes)", 96),
}
GCM = Algorithm(Suite(ProtocolId.ESP, Encr.AES_GCM_16, 256), 32, 0, "aead 'rfc4106(gcm(aes))' 0x{key} 128", salt=4)
GMAC = Algorithm(
    Suite(ProtocolId.ESP, Encr.NULL_AUTH_AES_GMAC, 128), 16, 0, "aead 'rfc4543(gcm(aes))' 0x{key} 128", salt=4
)
CBC = Algorithm(
    Suite(ProtocolId.ESP, Encr.AES_CBC, 128, Integ.HMAC_SHA2_256_128), 16, 32,
    "enc 'cbc(aes)' 0x{key} auth-trunc 'hmac(sha256)' 0x{integrity} 128",
)  # fmt: skip
XCBC = Algorithm(
    Suite(ProtocolId.ESP, Encr.AES_CBC, 128, Integ.AES_XCBC_96), 16, 16,
    "enc 'cbc(aes)' 0x{key} auth-trunc 'xcbc(aes)' 0x{integrity} 96",
)  # fmt: skip
SHA1 = Algorithm(
    Suite(ProtocolId.ESP, Encr.AES_CBC, 256, Integ.HMAC_SHA1_96), 32, 20,
    "enc 'cbc(aes)' 0x{key} auth-trunc 'hmac(sha1)' 0x{integrity} 96",
)  # fmt: skip


def esn(algorithm: Algorithm) -> Algorithm:
    return replace(algorithm, suite=replace(algorithm.suite, esn=True))


class Linux:
    """A guest, and our sockets beside it: raw ones that send whole packets, and port 4500."""

    def __init__(self, netns: str, guest: UmlGuest) -> None:
        self.guest = guest
        self._sockets: dict[tuple[int, int], socket.socket] = {}
        with _Inside(netns):
            for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
                for protocol in (50, 51):
                    sock = socket.socket(family, socket.SOCK_RAW, protocol)
                    if version == 4:
                        sock.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
                    else:
                        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_HDRINCL, 1)
                    sock.bind((OUTER[version][0], 0))
                    self._sockets[version, protocol] = sock
            self._sockets[4, 4500] = udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.bind((OUTER[4][0], 4500))
            self._kick = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def close(self) -> None:
        for sock in (*self._sockets.values(), self._kick):
            sock.close()

    def forget(self) -> None:
        """Drop what is still queued from an earlier case."""
        uml.forget(self._sockets.values())

    def exchange(self, transmit: Transmit, path: Path, protocol: int) -> WireDatagrams:
        """Send, and return what the guest answers."""
        version = path.version
        sock = self._sockets[version, 4500 if path.encapsulated else protocol]
        for buffer in transmit.buffers:
            sock.sendto(bytes(buffer), (str(path.remote.address), path.remote.port))
        data = uml.receive(sock, self._kick, OUTER[4][1])
        start = (data[0] & 15) * 4 if version == 4 and not path.encapsulated else 0
        return WireDatagrams(path, data[start:], 0, 0, protocol, data[:start])


@pytest.fixture(scope="module")
def linux() -> Iterator[Linux]:
    missing = UmlGuest.missing()
    if missing:
        pytest.skip(missing)
    name = f"mgt{os.getpid()}"
    lines = [
        f"ip netns add {name}",
        f"ip -n {name} link set lo up",
        f"ip -n {name} tuntap add tap0 mode tap",
        f"ip -n {name} addr add {OUTER[4][0]}/24 dev tap0",
        f"ip -n {name} addr add {OUTER[6][0]}/64 dev tap0 nodad",
        f"ip -n {name} link set tap0 up",
    ]
    try:
        for line in lines:
            subprocess.run(line.split(), check=True)
        with UmlGuest(name, "tap0") as guest:
            guest.run(
                f"ip addr add {OUTER[4][1]}/24 dev vec0; ip addr add {OUTER[6][1]}/64 dev vec0 nodad;"
                f'python3 -c "{_ENCAP_HOLDER}" & sleep 0.3'
            )
            peer = Linux(name, guest)
            yield peer
            peer.close()
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


CASES = [
    *(((one,), version, 0, Mode.TRANSPORT) for one in (GCM, GMAC, CBC, XCBC, SHA1, esn(GCM), esn(CBC))
      for version in (4, 6)),
    *(((one,), 4, 4500, Mode.TRANSPORT) for one in (GCM, CBC, esn(GMAC))),
    *(((one,), version, 0, Mode.TRANSPORT) for one in (*AH.values(), esn(AH["sha256"])) for version in (4, 6)),
    *(((AH[name],), version, 0, Mode.TUNNEL) for name in ("sha256", "sha384", "xcbc") for version in (4, 6)),
    *(((AH["sha256"], inner), version, 0, Mode.TRANSPORT) for inner in (GCM, CBC) for version in (4, 6)),
]  # fmt: skip


def _name(value: object) -> str:
    if isinstance(value, tuple):
        return "+".join(
            f"{one.suite.protocol.name}-{one.suite.encr.name if one.suite.encr else one.suite.integ.name}"
            f"{'-esn' if one.suite.esn else ''}"
            for one in value
        )
    return value.name if isinstance(value, Mode) else str(value)


@pytest.mark.parametrize(("algorithms", "version", "port", "mode"), CASES, ids=_name)
def test_the_kernel_opens_ours_and_we_open_the_kernels(
    linux: Linux, algorithms: tuple[Algorithm, ...], version: int, port: int, mode: Mode
) -> None:
    talk = _Talk(linux, algorithms, version, port, mode)
    for sequence, size in enumerate((0, 1, 15, 16, 17, 64, 511, 1000, 1300)):
        data = bytes(index & 0xFF for index in range(size))
        request = _echo(version, sequence, data)
        _assert_reply(request, talk.ask(request), version)
    talk.close()


@pytest.mark.parametrize("algorithms", [(GCM,), (AH["sha256"],), (AH["sha256"], CBC)], ids=_name)
def test_options_and_extension_headers(linux: Linux, algorithms: tuple[Algorithm, ...]) -> None:
    talk = _Talk(linux, algorithms, 4, 0, Mode.TRANSPORT)
    for sequence, options in enumerate(
        ([IPOption_Router_Alert()], [IPOption_RR(length=11, pointer=4, routers=["0.0.0.0"] * 2)])
    ):
        request = _echo(4, sequence, b"with options", options=options)
        assert IP(talk.ask(request))[ICMP].seq == sequence
    talk.close()
    talk = _Talk(linux, algorithms, 6, 0, Mode.TRANSPORT)
    for sequence, kind in enumerate((0x1E, 0x3E)):
        hop = IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0\0\0\0")])
        inner = IPv6ExtHdrDestOpt(options=[PadN(otype=kind, optdata=b"abcd")])
        request = _echo(6, sequence, b"with extensions", before=hop / inner)
        assert IPv6(talk.ask(request))[ICMPv6EchoReply].seq == sequence
    talk.close()


@pytest.mark.parametrize("algorithms", [(GCM,), (AH["sha256"],), (AH["sha256"], CBC)], ids=_name)
def test_large_datagrams_are_cut_after_protection(linux: Linux, algorithms: tuple[Algorithm, ...]) -> None:
    for version in (4, 6):
        talk = _Talk(linux, algorithms, version, 0, Mode.TRANSPORT)
        request = _echo(version, 1, bytes(range(256)) * 15, flags=0)
        _assert_reply(request, talk.ask(request), version)
        talk.close()


class _Talk:
    """A data plane, the guest's SAs and policies for the same, and packets between."""

    def __init__(
        self, linux: Linux, algorithms: tuple[Algorithm, ...], version: int, port: int, mode: Mode
    ) -> None:
        self._linux = linux
        linux.forget()
        here, there = OUTER[version]
        self._path = Path(Endpoint(ip_address(here), port), Endpoint(ip_address(there), port))
        self._outer = 50 + (algorithms[0].suite.protocol is ProtocolId.AH)
        self._plane = _plane(algorithms, self._path, mode)
        encap = "encap espinudp 4500 4500 0.0.0.0" if port else ""
        states, templates = "", ["", ""]
        for number, one in reversed(list(enumerate(algorithms))):
            proto = one.suite.protocol.name.lower()
            for way, (source, target) in enumerate(((here, there), (there, here))):
                states += (
                    f"ip xfrm state add src {source} dst {target} proto {proto} spi {_spi(number, way == 1)} "
                    f"mode {mode.value} reqid {number + 1} {one.kernel(version)} {encap};"
                )
                templates[way] += (
                    f" tmpl src {source} dst {target} proto {proto} reqid {number + 1} mode {mode.value}"
                )
        asked, answered = ("proto icmp", "proto icmp") if version == 4 else (
            "proto ipv6-icmp type 128", "proto ipv6-icmp type 129")  # fmt: skip
        output = linux.guest.run(
            f"ip xfrm state flush; ip xfrm policy flush; {states}"
            f"ip xfrm policy add src {here} dst {there} {asked} dir in {templates[0]};"
            f"ip xfrm policy add src {there} dst {here} {answered} dir out {templates[1]}"
        )
        assert output.strip() == "", output

    def ask(self, request: bytes) -> bytes:
        """Return the reply, opened."""
        self._plane.outbound([TunFrame(bytes(10) + request)], 1)
        transmit = self._plane.poll()
        assert isinstance(transmit, Transmit), transmit
        assert transmit.whole != self._path.encapsulated
        self._plane.inbound([self._linux.exchange(transmit, self._path, self._outer)], 1)
        written = self._plane.poll()
        assert isinstance(written, WriteTun), {reason: n for reason, n in self._plane.drops().items() if n}
        (frame,) = written.frames
        return b"".join(bytes(part) for part in frame)[10:]

    def close(self) -> None:
        """Nothing was lost on the way."""
        assert dict(self._plane.drops()) == dict.fromkeys(self._plane.drops(), 0)
        assert self._plane.poll() is None


def _spi(number: int, inbound: bool) -> int:
    return 0x3000 + number * 16 + inbound


def _plane(algorithms: tuple[Algorithm, ...], path: Path, mode: Mode) -> ReferenceDataPlane:
    local, remote = (
        TrafficSelector(ANY_PROTOCOL, AddressRange.of(end.address)) for end in (path.local, path.remote)
    )
    pair = SelectorPair(local, remote)
    entry = SpdEntry(
        id="e", rule="r", filter_list="l", filter_action="a", selectors=pair, outbound=True, inbound=True,
        disposition=Disposition.PROTECT,
        protection=Protection(peer="kernel", mode=mode, methods=(), lifetime=Lifetime()),
    )  # fmt: skip
    plane = ReferenceDataPlane()
    plane.load(Snapshot(generation=1, policy="p", spd=Spd((entry,))), 0)
    for number, one in enumerate(algorithms):
        key, salt, integrity = one.keys()
        for inbound in (True, False):
            plane.add_sa(
                SaParams(
                    spi=_spi(number, inbound), inbound=inbound, protocol=one.suite.protocol, mode=mode,
                    suite=one.suite, encryption_key=Secret(key), salt=Secret(salt),
                    integrity_key=Secret(integrity),
                    path=path, selectors=(pair,), entry="e", child=number,
                    bundle=1 - number if len(algorithms) == 2 else None,
                ),
                0,
            )  # fmt: skip
    return plane


def _echo(
    version: int, sequence: int, data: bytes, *, flags: int = 2, options: object = (), before: Packet | None = None
) -> bytes:
    here, there = OUTER[version]
    if version == 4:
        header = IP(src=here, dst=there, flags=flags, options=list(options), id=sequence + 1)  # type: ignore[call-overload]
        return bytes(header / ICMP(id=MARKER, seq=sequence) / Raw(data))
    front: Packet = IPv6(src=here, dst=there)
    return bytes(
        (front if before is None else front / before) / ICMPv6EchoRequest(id=MARKER, seq=sequence, data=data)
    )


def _assert_reply(request: bytes, reply: bytes, version: int) -> None:
    sent: Packet = (IP if version == 4 else IPv6)(request)
    got: Packet = (IP if version == 4 else IPv6)(reply)
    assert (got.src, got.dst) == (sent.dst, sent.src)
    if version == 4:
        assert got[ICMP].type == 0
        assert bytes(got[ICMP])[4:] == bytes(sent[ICMP])[4:]
    else:
        assert bytes(got[ICMPv6EchoReply])[4:] == bytes(sent[ICMPv6EchoRequest])[4:]
