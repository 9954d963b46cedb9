"""ESP packets against the Linux kernel's XFRM with keys set by hand: the kernel opens ours, we open the kernel's.

    data plane                                  guest kernel (user-mode-linux)
    ping request, sealed           -->          opened by XFRM, answered
    reply opened, must be equal    <--          sealed by XFRM

Both directions of every suite, inner and outer family, ESN or not, raw and UDP-encapsulated.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import TypeVar

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.packet import Packet, Raw

from policy.lifetimes import Lifetime
from policy.path import Endpoint, Path
from policy.proposals import Encr, Integ, ProtocolId, Suite
from policy.secret import Secret
from policy.selectors import ANY_PROTOCOL, AddressRange, SelectorPair, TrafficSelector
from policy.spd import Disposition, Mode, Protection, Snapshot, Spd, SpdEntry
from tests.support import uml
from tests.support.uml import UmlGuest
from tunnel.dataplane.contract import SaParams, Transmit, TunFrame, WireDatagrams, WriteTun
from tunnel.dataplane.reference import ReferenceDataPlane

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces and raw sockets"),
]

_Output = TypeVar("_Output", Transmit, WriteTun)

OUTER = {4: ("10.9.0.1", "10.9.0.2"), 6: ("fd00:9::1", "fd00:9::2")}
INNER = {4: ("10.1.0.5", "10.2.0.9"), 6: ("fd00:1::5", "fd00:2::9")}
PLAIN_VNET_HEADER = bytes(10)
SPI_TO_GUEST, SPI_TO_US = 0x1000, 0x2000
MARKER = 0x6D67

#: name: (suite without ESN, key octets, salt octets, integrity key octets, the kernel's words)
SUITES: dict[str, tuple[Suite, int, int, int, Callable[[str, str], str]]] = {
    "aes256gcm16": (
        Suite(ProtocolId.ESP, Encr.AES_GCM_16, 256), 32, 4, 0,
        lambda key, integrity: f"aead 'rfc4106(gcm(aes))' 0x{key} 128",
    ),
    "aes128gcm16": (
        Suite(ProtocolId.ESP, Encr.AES_GCM_16, 128), 16, 4, 0,
        lambda key, integrity: f"aead 'rfc4106(gcm(aes))' 0x{key} 128",
    ),
    "chacha20poly1305": (
        Suite(ProtocolId.ESP, Encr.CHACHA20_POLY1305, 0), 32, 4, 0,
        lambda key, integrity: f"aead 'rfc7539esp(chacha20,poly1305)' 0x{key} 128",
    ),
    "aes128-sha256": (
        Suite(ProtocolId.ESP, Encr.AES_CBC, 128, Integ.HMAC_SHA2_256_128), 16, 0, 32,
        lambda key, integrity: f"enc 'cbc(aes)' 0x{key} auth-trunc 'hmac(sha256)' 0x{integrity} 128",
    ),
    "aes256-sha384": (
        Suite(ProtocolId.ESP, Encr.AES_CBC, 256, Integ.HMAC_SHA2_384_192), 32, 0, 48,
        lambda key, integrity: f"enc 'cbc(aes)' 0x{key} auth-trunc 'hmac(sha384)' 0x{integrity} 192",
    ),
    "aes256-sha512": (
        Suite(ProtocolId.ESP, Encr.AES_CBC, 256, Integ.HMAC_SHA2_512_256), 32, 0, 64,
        lambda key, integrity: f"enc 'cbc(aes)' 0x{key} auth-trunc 'hmac(sha512)' 0x{integrity} 256",
    ),
    "null-sha256": (
        Suite(ProtocolId.ESP, Encr.NULL, 0, Integ.HMAC_SHA2_256_128), 0, 0, 32,
        lambda key, integrity: f"enc 'ecb(cipher_null)' '' auth-trunc 'hmac(sha256)' 0x{integrity} 128",
    ),
}  # fmt: skip

#: Holds port 4500 in the guest with UDP_ENCAP_ESPINUDP, so that its kernel opens UDP-encapsulated ESP.
_ENCAP_HOLDER = (
    "import socket,time;s=[]\n"
    "for f in (socket.AF_INET,socket.AF_INET6):\n"
    " x=socket.socket(f,socket.SOCK_DGRAM);s.append(x)\n"
    " f==socket.AF_INET6 and x.setsockopt(41,26,1)\n"
    " x.bind(('',4500));x.setsockopt(17,100,2)\n"
    "time.sleep(9999)"
)


class Kernel:
    """A guest and our sockets beside it in one namespace."""

    def __init__(self, netns: str, guest: UmlGuest) -> None:
        self.guest = guest
        self._sockets: dict[tuple[int, int], socket.socket] = {}
        with _Inside(netns):
            for version, port in itertools.product((4, 6), (0, 4500)):
                self._sockets[version, port] = _open_socket(version, port)
            self._kick = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def close(self) -> None:
        for sock in (*self._sockets.values(), self._kick):
            sock.close()

    def send(self, path: Path, payload: bytes) -> None:
        self._sockets[path.version, path.local.port].sendto(payload, (str(path.remote.address), path.remote.port))

    def receive(self, path: Path) -> bytes:
        sock = self._sockets[path.version, path.local.port]
        data = uml.receive(sock, self._kick, OUTER[4][1])
        if path.local.port == 0 and path.version == 4:
            return data[(data[0] & 15) * 4 :]  # a raw IPv4 socket reads the IP header too
        return data

    def forget(self) -> None:
        """Drop what is still queued from an earlier case."""
        uml.forget(self._sockets.values())


class _Inside:
    """Run a block in a network namespace; sockets opened there stay there."""

    def __init__(self, netns: str) -> None:
        self._target = f"/var/run/netns/{netns}"

    def __enter__(self) -> None:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        _setns(self._target)

    def __exit__(self, *_: object) -> None:
        _setns(self._home)
        os.close(self._home)


def _setns(where: str | int) -> None:
    import ctypes

    handle = os.open(where, os.O_RDONLY) if isinstance(where, str) else where
    if ctypes.CDLL(None, use_errno=True).setns(handle, 0x40000000) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    if isinstance(where, str):
        os.close(handle)


def _open_socket(version: int, port: int) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    if port:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        if version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((OUTER[version][0], port))
    else:
        sock = socket.socket(family, socket.SOCK_RAW, 50)
        sock.bind((OUTER[version][0], 0))
    return sock


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    missing = UmlGuest.missing()
    if missing:
        pytest.skip(missing)
    name = f"mgx{os.getpid()}"
    address = [
        f"ip netns add {name}",
        f"ip -n {name} link set lo up",
        f"ip -n {name} tuntap add tap0 mode tap",
        f"ip -n {name} addr add {OUTER[4][0]}/24 dev tap0",
        f"ip -n {name} addr add {OUTER[6][0]}/64 dev tap0 nodad",
        f"ip -n {name} link set tap0 up",
    ]
    try:
        for line in address:
            subprocess.run(line.split(), check=True)
        with UmlGuest(name, "tap0") as guest:
            guest.run(
                f"ip addr add {OUTER[4][1]}/24 dev vec0; ip addr add {OUTER[6][1]}/64 dev vec0 nodad;"
                f"ip addr add {INNER[4][1]}/32 dev lo; ip addr add {INNER[6][1]}/128 dev lo nodad;"
                f"ip route add {INNER[4][0]}/32 dev vec0 src {INNER[4][1]};"
                f"ip -6 route add {INNER[6][0]}/128 dev vec0 src {INNER[6][1]};"
                "sysctl -qw net.ipv4.conf.all.rp_filter=0"
            )
            guest.run(f'{shutil.which("python3")} -c "{_ENCAP_HOLDER}" & sleep 0.3')
            peer = Kernel(name, guest)
            yield peer
            peer.close()
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


CASES = [
    *((suite, esn, 4, 4, False) for suite in SUITES for esn in (False, True)),
    *(("aes256gcm16", True, inner, outer, False) for inner, outer in ((4, 6), (6, 4), (6, 6))),
    *(("aes128-sha256", False, inner, outer, False) for inner, outer in ((4, 6), (6, 4), (6, 6))),
    *((suite, False, 4, 4, True) for suite in SUITES),
    *(("chacha20poly1305", True, inner, 4, True) for inner in (4, 6)),
]


@pytest.mark.parametrize(("name", "esn", "inner", "outer", "encapsulated"), CASES)
def test_the_kernel_opens_ours_and_we_open_the_kernels(
    kernel: Kernel, name: str, esn: bool, inner: int, outer: int, encapsulated: bool
) -> None:
    kernel.forget()
    port = 4500 if encapsulated else 0
    path = Path(Endpoint(ip_address(OUTER[outer][0]), port), Endpoint(ip_address(OUTER[outer][1]), port))
    plane = _plane(name, esn, inner, path)
    _install(kernel.guest, name, esn, inner, outer, encapsulated)

    for sequence, size in enumerate((0, 1, 15, 16, 17, 64, 511, 1000, 1300)):
        request = _echo_request(inner, sequence, bytes(i & 0xFF for i in range(size)))
        plane.outbound([TunFrame(PLAIN_VNET_HEADER + request)], now=sequence)
        (transmit,) = _drain(plane, Transmit)
        for buffer in transmit.buffers:
            kernel.send(path, bytes(buffer))
        plane.inbound([WireDatagrams(path, kernel.receive(path))], now=sequence)
        (written,) = _drain(plane, WriteTun)
        (frame,) = written.frames
        _assert_reply(request, b"".join(bytes(part) for part in frame)[10:], inner)

    assert dict(plane.drops()) == dict.fromkeys(plane.drops(), 0)
    assert "failed 0" in _failures(kernel.guest)


def test_the_kernel_refuses_our_packet_when_it_is_altered(kernel: Kernel) -> None:
    kernel.forget()
    path = Path(Endpoint(ip_address(OUTER[4][0]), 0), Endpoint(ip_address(OUTER[4][1]), 0))
    plane = _plane("aes256gcm16", False, 4, path)
    _install(kernel.guest, "aes256gcm16", False, 4, 4, False)
    plane.outbound([TunFrame(PLAIN_VNET_HEADER + _echo_request(4, 1, b"x" * 32))], now=0)
    (transmit,) = _drain(plane, Transmit)
    packet = bytearray(transmit.buffers[0])
    packet[20] ^= 1
    kernel.send(path, bytes(packet))
    assert "failed 1" in _failures(kernel.guest, wait="failed 1")


def _plane(name: str, esn: bool, inner: int, path: Path) -> ReferenceDataPlane:
    suite, key, salt, integrity, _ = SUITES[name]
    local, remote = (
        TrafficSelector(ANY_PROTOCOL, AddressRange.of(ip_address(address))) for address in INNER[inner]
    )
    pair = SelectorPair(local, remote)
    protection = Protection(peer="kernel", mode=Mode.TUNNEL, methods=(), lifetime=Lifetime())
    entry = SpdEntry(
        id="e", rule="r", filter_list="l", filter_action="a", selectors=pair, outbound=True, inbound=True,
        disposition=Disposition.PROTECT, protection=protection,
    )  # fmt: skip
    plane = ReferenceDataPlane()
    plane.load(Snapshot(generation=1, policy="p", spd=Spd((entry,))), 0)
    for inbound in (True, False):
        params = SaParams(
            spi=SPI_TO_US if inbound else SPI_TO_GUEST, inbound=inbound, protocol=ProtocolId.ESP, mode=Mode.TUNNEL,
            suite=Suite(ProtocolId.ESP, suite.encr, suite.key_bits, suite.integ, esn=esn),
            encryption_key=Secret(bytes(range(key))), salt=Secret(b"salt"[:salt]),
            integrity_key=Secret(bytes(range(100, 100 + integrity))), path=path, selectors=(pair,),
            entry="e", child=1,
        )  # fmt: skip
        plane.add_sa(params, 0)
    return plane


def _install(guest: UmlGuest, name: str, esn: bool, inner: int, outer: int, encapsulated: bool) -> None:
    _, key, salt, integrity, words = SUITES[name]
    keys = words((bytes(range(key)) + b"salt"[:salt]).hex(), bytes(range(100, 100 + integrity)).hex())
    encap = f"encap espinudp 4500 4500 {'::' if outer == 6 else '0.0.0.0'}" if encapsulated else ""
    common = f"mode tunnel reqid 1 replay-window 64 {'flag esn' if esn else ''} {keys} {encap}"
    (us, them), (host, target) = OUTER[outer], INNER[inner]
    template = "proto esp reqid 1 mode tunnel"
    flags = "flag af-unspec" if inner != outer else ""
    output = guest.run(
        "ip xfrm state flush; ip xfrm policy flush;"
        f"ip xfrm state add src {us} dst {them} proto esp spi {SPI_TO_GUEST} {common} {flags};"
        f"ip xfrm state add src {them} dst {us} proto esp spi {SPI_TO_US} {common} {flags};"
        f"ip xfrm policy add src {target} dst {host} dir out tmpl src {them} dst {us} {template};"
        f"ip xfrm policy add src {host} dst {target} dir in tmpl src {us} dst {them} {template}"
    )
    assert output.strip() == "", output


def _failures(guest: UmlGuest, wait: str = "failed 0") -> str:
    # "stats: replay-window 0 replay 0 failed 0" of the SA toward the guest
    command = f"ip -s xfrm state get src {OUTER[4][0]} dst {OUTER[4][1]} proto esp spi {SPI_TO_GUEST}"
    states = f"ip -s xfrm state | grep -A0 'failed'; {command} >/dev/null 2>&1"
    for _ in range(20):
        output = guest.run(states)
        if wait in output:
            break
    return output


def _echo_request(version: int, sequence: int, data: bytes) -> bytes:
    source, destination = INNER[version]
    if version == 4:
        return bytes(IP(src=source, dst=destination) / ICMP(id=MARKER, seq=sequence) / Raw(data))
    return bytes(IPv6(src=source, dst=destination) / ICMPv6EchoRequest(id=MARKER, seq=sequence, data=data))


def _assert_reply(request: bytes, reply: bytes, version: int) -> None:
    sent: Packet = (IP if version == 4 else IPv6)(request)
    got: Packet = (IP if version == 4 else IPv6)(reply)
    assert (got.src, got.dst) == (sent.dst, sent.src)
    # Past type, code and checksum the reply is the request: identifier, sequence number, data.
    if version == 4:
        assert got[ICMP].type == 0
        assert bytes(got[ICMP])[4:] == bytes(sent[ICMP])[4:]
    else:
        assert bytes(got[ICMPv6EchoReply])[4:] == bytes(sent[ICMPv6EchoRequest])[4:]


def _drain(plane: ReferenceDataPlane, kind: type[_Output]) -> list[_Output]:
    outputs: list[_Output] = []
    while (output := plane.poll()) is not None:
        assert isinstance(output, kind), output
        outputs.append(output)
    return outputs
