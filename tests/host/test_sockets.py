"""Sockets in a network namespace of the test's own: offloads, addresses, traffic class, errors, full queues."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import IP, IPOption_Router_Alert
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop, PadN
from scapy.packet import Raw

from policy.path import Endpoint, Path
from tests.support import netns
from tunnel.dataplane.contract import Transmit, WireDatagrams
from tunnel.host import cmsg, sockets
from tunnel.host.addresses import route_to
from tunnel.host.sockets import Wire, WireSocket
from tunnel.host.system import HostError

_CLONE_NEWNET = 0x40000000
#: The least that port 500 takes: an IKE header (``sockfilter``).
_IKE = b"\1" * 8 + bytes(9) + b"\x20\x25\0" + bytes(4) + (28).to_bytes(4, "big")
_SIOCSIFFLAGS, _SIOCSIFMTU, _UP = 0x8914, 0x8922, 0x1


def in_a_namespace(test: Callable[..., None]) -> Callable[..., None]:
    """Run *test* in a thread with a network namespace of its own, whose loopback is up."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        failed: list[BaseException] = []

        def body() -> None:
            try:
                if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "unshare")
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _UP))
                test(*arguments, **named)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]

    lacking = netns.missing()
    marked: Callable[..., None] = pytest.mark.skipif(lacking is not None, reason=str(lacking))(run)
    return marked


def path(local: str, remote: str, port: int = 4500) -> Path:
    return Path(Endpoint(ip_address(local), port), Endpoint(ip_address(remote), port))


HOME = {4: path("127.0.0.1", "127.0.0.1"), 6: path("::1", "::1")}


def opened(version: int = 4, port: int = 4500, protocol: int = 17, **options: Any) -> WireSocket:
    return WireSocket(
        version, port, protocol, offload=options.get("offload", True), path_mtu=options.get("path_mtu", _no_mtu)
    )


def _no_mtu(remote: Endpoint, mtu: int) -> None:
    raise AssertionError(f"path MTU {mtu} toward {remote}")


def arrived(sock: WireSocket, limit: int = 64) -> list[WireDatagrams]:
    assert select.select([sock.fd], [], [], 2)[0]
    return sock.receive(limit)


@pytest.mark.parametrize("version", [4, 6])
@in_a_namespace
def test_a_burst_is_one_send_and_one_receive(version: int) -> None:
    sock = opened(version)
    burst = (*(bytes([number]) * 1000 for number in range(20)), b"last")
    sock.send(Transmit(HOME[version], burst, segment_size=1000, tos=0x2A))
    (found,) = arrived(sock)
    assert found.path == HOME[version]
    assert found.segment_size == 1000
    assert found.data == b"".join(burst)
    assert found.tos == 0x2A
    assert (sock.send_errors, sock.receive_errors) == (0, 0)
    sock.close()


@pytest.mark.parametrize("version", [4, 6])
@in_a_namespace
def test_without_offload_the_same_octets(version: int) -> None:
    sock = opened(version, offload=False)
    burst = tuple(bytes([number]) * 1000 for number in range(5))
    sock.send(Transmit(HOME[version], burst, segment_size=1000))
    found = arrived(sock)
    assert [item.data for item in found] == list(burst)
    assert {item.segment_size for item in found} == {0}
    assert {item.tos for item in found} == {0}
    sock.close()


@in_a_namespace
def test_the_source_is_the_path_s_and_the_destination_is_told() -> None:
    one, other = opened(port=4500), opened(port=500)
    there = Path(Endpoint(ip_address("127.0.0.7"), 4500), Endpoint(ip_address("127.0.0.9"), 500))
    one.send(Transmit(there, (_IKE,)))
    (found,) = arrived(other)
    assert found.path == Path(there.remote, there.local)
    # The same path is the same object: the core compares by identity.
    one.send(Transmit(there, (_IKE,)))
    assert arrived(other)[0].path is found.path
    one.close()
    other.close()


@pytest.mark.parametrize("version", [4, 6])
@in_a_namespace
def test_raw_esp(version: int) -> None:
    home = path(*{4: ("127.0.0.1", "127.0.0.2"), 6: ("::1", "::1")}[version], port=0)
    sock = opened(version, 0, 50)
    packets = [bytes((0, 0, 1, n)) + bytes(60) for n in range(3)]
    sock.send(Transmit(home, tuple(packets), segment_size=64, tos=0x02))
    found = arrived(sock)
    assert [item.data for item in found] == packets
    assert {item.tos for item in found} == {2}
    assert {item.path for item in found} == {Path(home.remote, home.local)}
    assert sock.receive(4) == []
    sock.close()


@pytest.mark.parametrize("protocol", [50, 51])
@in_a_namespace
def test_whole_ipv4_packets_arrive_with_their_header(protocol: int) -> None:
    receiver, sender = opened(4, 0, protocol), opened(4, 0, 255)
    sent = [
        IP(src="127.0.0.5", dst="127.0.0.2", proto=protocol, id=0x1234, ttl=9, tos=0x2A, flags="DF",
           options=IPOption_Router_Alert()) / Raw(bytes([n]) * (100 + n))
        for n in range(3)
    ]  # fmt: skip
    home = path("127.0.0.5", "127.0.0.2", 0)
    sender.send(Transmit(home, tuple(bytes(packet) for packet in sent), whole=True))
    found = arrived(receiver)
    assert [bytes(item.header) + bytes(item.data) for item in found] == [bytes(packet) for packet in sent]
    assert {(len(item.header), item.tos, item.protocol) for item in found} == {(24, 0x2A, protocol)}
    assert {item.path for item in found} == {Path(home.remote, home.local)}
    assert (sender.send_errors, receiver.receive_errors) == (0, 0)
    receiver.close()
    sender.close()


@pytest.mark.parametrize("protocol", [50, 51])
@in_a_namespace
def test_whole_ipv6_packets_arrive_with_their_extension_headers(protocol: int) -> None:
    receiver, sender = opened(6, 0, protocol), opened(6, 0, 255)
    home = path("::1", "::1", 0)
    plain = IPv6(src="::1", dst="::1", hlim=9, tc=0x2A, nh=protocol) / Raw(b"p" * 64)
    extended = (
        IPv6(src="::1", dst="::1", hlim=9, tc=0x2A)
        / IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))])
        / IPv6ExtHdrDestOpt(nh=protocol, options=[PadN(optdata=bytes(4))])
        / Raw(b"e" * 64)
    )
    sender.send(Transmit(home, (bytes(plain), bytes(extended)), whole=True))
    one, other = arrived(receiver)
    assert (one.data, one.header, one.tos, one.protocol) == (b"p" * 64, b"", 0x2A, protocol)
    assert bytes(other.header) + bytes(other.data) == bytes(extended)
    receiver.close()
    sender.close()


@in_a_namespace
def test_whole_packets_leave_with_the_mark_and_their_identification() -> None:
    sender = opened(4, 0, 255)
    assert sender._socket.getsockopt(socket.SOL_SOCKET, 36) == 0x4D670001
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, 51) as watcher:
        watcher.settimeout(2)
        for identification in (1, 0xFFFF, 0):
            packet = IP(src="127.0.0.1", dst="127.0.0.2", proto=51, id=identification) / Raw(bytes(24))
            sender.send(Transmit(path("127.0.0.1", "127.0.0.2", 0), (bytes(packet),), whole=True))
            assert (IP(watcher.recv(2048)).id == identification) is (identification != 0)
    sender.close()


@pytest.mark.parametrize("version", [4, 6])
@in_a_namespace
def test_a_whole_packet_above_the_path_mtu_is_reported(version: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si12x", b"lo", 1400))
    reports: list[tuple[Endpoint, int]] = []
    sock = opened(version, 0, 255, path_mtu=lambda remote, mtu: reports.append((remote, mtu)))
    header = IP(src="127.0.0.1", dst="127.0.0.1", proto=51) if version == 4 else IPv6(dst="::1", nh=51)
    big, small = (bytes(header / Raw(bytes(size))) for size in (1500, 1000))
    home = Path(*(Endpoint(HOME[version].local.address, 0),) * 2)
    sock.send(Transmit(home, (big, small, big), whole=True))
    assert reports == [(Endpoint(home.remote.address, 0), 1400)]
    assert sock.send_errors == 2
    sock.close()


@pytest.mark.parametrize("protocol", [50, 51])
@in_a_namespace
def test_the_kernel_answers_no_esp_or_ah_while_the_socket_is_open(protocol: int) -> None:
    sender = opened(4, 0, 255)
    packet = bytes(IP(src="127.0.0.5", dst="127.0.0.2", proto=protocol, id=7) / Raw(bytes(24)))
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as icmp:
        icmp.settimeout(0.3)
        receiver = opened(4, 0, protocol)
        sender.send(Transmit(path("127.0.0.5", "127.0.0.2", 0), (packet,), whole=True))
        assert len(arrived(receiver)) == 1
        with pytest.raises(TimeoutError):
            icmp.recv(2048)
        receiver.close()
        sender.send(Transmit(path("127.0.0.5", "127.0.0.2", 0), (packet,), whole=True))
        assert IP(icmp.recv(2048))["ICMP"].type == 3  # so it would, without
    sender.close()


@in_a_namespace
def test_more_than_the_limit_is_left_for_later() -> None:
    sock = opened(offload=False)
    for _ in range(5):
        sock.send(Transmit(HOME[4], (b"x" * 24,)))
    assert [len(sock.receive(2)) for _ in range(4)] == [2, 2, 1, 0]
    sock.close()


@in_a_namespace
def test_a_datagram_above_the_path_mtu_is_reported_with_df_and_fragmented_without() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si12x", b"lo", 1400))
    reports: list[tuple[Endpoint, int]] = []
    for version in (4, 6):
        sock = opened(version, path_mtu=lambda remote, mtu: reports.append((remote, mtu)))
        sock.send(Transmit(HOME[version], (bytes(2000),), df=True))
        assert reports.pop() == (Endpoint(HOME[version].remote.address, 4500), 1400)
        assert sock.send_errors == 1
        sock.send(Transmit(HOME[version], (bytes(2000),), df=True))
        assert reports == []  # nobody needs to hear it for each packet
        assert sock.send_errors == 2
        sock._told.clear()
        # A burst whose segments are too long is the path's fault, not that of the segmentation.
        sock.send(Transmit(HOME[version], (bytes(1390), bytes(1390)), segment_size=1390, df=True))
        assert reports.pop()[1] == 1400
        assert reports == []
        assert sock.send_errors == 4
        sock.send(Transmit(HOME[version], (bytes(1000), bytes(1000)), segment_size=1000, df=True))
        assert arrived(sock)[0].segment_size == 1000
        sock.send(Transmit(HOME[version], (bytes(2000),), df=False))
        assert len(arrived(sock)[0].data) == 2000
        sock.close()


@in_a_namespace
def test_an_icmp_error_raises_nothing() -> None:
    sock = opened()
    nobody = Path(HOME[4].local, Endpoint(ip_address("127.0.0.1"), 9))
    for _ in range(3):
        sock.send(Transmit(nobody, (b"x",)))
    poller = select.poll()
    poller.register(sock.fd, select.POLLIN)
    assert poller.poll(50) == []  # no POLLERR
    assert sock.receive(4) == []
    sock.close()


@in_a_namespace
def test_own_packets_carry_the_mark() -> None:
    sock = opened()
    assert sock._socket.getsockopt(socket.SOL_SOCKET, 36) == 0x4D670001
    sock.close()


class FakeSocket:
    """Refuses what it is told to refuse."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.sent: list[tuple[bytes, bool]] = []

    def sendmsg(self, buffers: Any, ancillary: Any, flags: int, target: Any) -> int:
        answer = self.answers.pop(0) if self.answers else 0
        if answer:
            raise OSError(answer, os.strerror(answer))
        segmented = any(kind == cmsg.UDP_SEGMENT for _, kind, _ in ancillary)
        self.sent.append((b"".join(buffers), segmented))
        return 0

    def setsockopt(self, *option: object) -> None:
        pass

    def recvmsg_into(self, *_: object) -> None:
        raise OSError(errno.ENETDOWN, "down")


def fake(monkeypatch: pytest.MonkeyPatch, *answers: int) -> tuple[WireSocket, FakeSocket]:
    inner = FakeSocket(*answers)
    monkeypatch.setattr(sockets, "_open", lambda version, port, protocol: inner)
    monkeypatch.setattr(WireSocket, "_configure", lambda self, offload: None)
    monkeypatch.setattr(FakeSocket, "fileno", lambda self: 0, raising=False)
    return opened(), inner


BURST = Transmit(HOME[4], (b"aa", b"bb", b"c"), segment_size=2)


@pytest.mark.parametrize("refused", [errno.EIO, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_kernel_that_cannot_segment_is_asked_once(monkeypatch: pytest.MonkeyPatch, refused: int) -> None:
    sock, inner = fake(monkeypatch, refused)
    sock.send(BURST)
    sock.send(BURST)
    assert inner.sent == [(b"aa", False), (b"bb", False), (b"c", False)] * 2
    assert sock.send_errors == 0


def test_a_full_socket_keeps_the_order_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sock, inner = fake(monkeypatch, errno.EAGAIN)
    sock.send(BURST)
    assert sock.blocked
    sock.send(Transmit(HOME[4], (b"later",)))
    assert inner.sent == []
    sock.flush()
    assert [bool(sock.blocked)] == [False]
    assert inner.sent == [(b"aabbc", True), (b"later", False)]


def test_a_socket_that_fills_half_way_sends_the_rest_later(monkeypatch: pytest.MonkeyPatch) -> None:
    sock, inner = fake(monkeypatch, errno.EIO, 0, errno.EAGAIN, errno.ENOBUFS)
    sock.send(BURST)
    assert sock.blocked
    sock.flush()
    assert sock.blocked
    sock.flush()
    assert [data for data, _ in inner.sent] == [b"aa", b"bb", b"c"]
    assert sock.send_errors == 0


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    sock, inner = fake(monkeypatch, errno.EAGAIN)
    for _ in range(300):
        sock.send(Transmit(HOME[4], (b"x",)))
    assert sock.send_errors == 300 - 256
    sock.flush()
    assert len(inner.sent) == 256


def test_other_errors_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    sock, inner = fake(monkeypatch, errno.ENETUNREACH, errno.EPERM)
    sock.send(BURST)
    sock.send(Transmit(HOME[4], (b"x",)))
    assert (sock.send_errors, sock.blocked, inner.sent) == (4, False, [])


def test_a_socket_that_only_fails_does_not_hold_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    sock, _ = fake(monkeypatch)
    assert sock.receive(16) == []
    assert sock.receive_errors == 16


@in_a_namespace
def test_wire_has_a_socket_for_each_path() -> None:
    wire = Wire(offload=True, path_mtu=_no_mtu)
    kinds = ((500, 17), (4500, 17), (4500, 254), (0, 50), (0, 51), (0, 255))
    assert set(wire.sockets) == {(version, *kind) for version in (4, 6) for kind in kinds}
    assert wire.send(Transmit(HOME[6], (b"x" * 24,))) is wire.sockets[6, 4500, 17]
    raw = path("127.0.0.1", "127.0.0.1", 0)
    assert wire.send(Transmit(raw, (bytes(64),))) is wire.sockets[4, 0, 50]
    whole = bytes(IP(src="127.0.0.1", dst="127.0.0.1", proto=51) / Raw(bytes(24)))
    assert wire.send(Transmit(raw, (whole,), whole=True)) is wire.sockets[4, 0, 255]
    assert wire.send(Transmit(Path(Endpoint(ip_address("::1"), 9), HOME[6].remote), (b"x",))) is None
    assert wire.errors == {"kernel": 0, "send": 0, "receive": 0}
    with pytest.raises(HostError, match=r"UDP port 500 .* is in use: another IKE daemon"):
        Wire(offload=True, path_mtu=_no_mtu)
    wire.close()
    Wire(offload=True, path_mtu=_no_mtu).close()


@in_a_namespace
def test_routes() -> None:
    route = route_to(ip_address("127.0.0.9"))
    assert route is not None
    assert (str(route.source), route.mtu) == ("127.0.0.1", 65535)
    assert route_to(ip_address("192.0.2.1")) is None
    assert route_to(ip_address("2001:db8::1")) is None


def test_control_messages() -> None:
    four, six = ip_address("192.0.2.7"), ip_address("2001:db8::7")
    pktinfo = struct.pack("=I", 3) + ip_address("192.0.2.1").packed + four.packed
    assert cmsg.parse(
        [
            (socket.IPPROTO_IP, cmsg.IP_PKTINFO, pktinfo),
            (socket.IPPROTO_IP, cmsg.IP_TOS, b"\x2e"),
            (cmsg.SOL_UDP, cmsg.UDP_GRO, struct.pack("=i", 1400)),
            (99, 99, b"something else"),
        ]
    ) == cmsg.Received(four.packed, 0x2E, 1400)
    assert cmsg.parse(
        [
            (socket.IPPROTO_IPV6, cmsg.IPV6_PKTINFO, six.packed + struct.pack("=I", 3)),
            (socket.IPPROTO_IPV6, cmsg.IPV6_TCLASS, struct.pack("=i", 0x2E)),
        ]
    ) == cmsg.Received(six.packed, 0x2E, 0)
    assert cmsg.parse([]) == cmsg.Received(b"", 0, 0)
    assert cmsg.source(four)[0][2] == bytes(4) + four.packed + bytes(4)
    assert cmsg.source(six)[0][2] == six.packed + bytes(4)
    assert cmsg.segmentation(1400) == (17, 103, struct.pack("=H", 1400))
    assert cmsg.traffic_class(4, 5)[:2] == (0, 1)
    assert cmsg.traffic_class(6, 5)[:2] == (41, 67)
    assert [cmsg.address(address.packed) for address in (four, six)] == [four, six]


@pytest.mark.parametrize("version", [4, 6])
@in_a_namespace
def test_esp_of_unknown_spis_is_dropped_before_anything_is_made_of_it(version: int) -> None:
    wire = Wire(offload=True, path_mtu=_no_mtu)
    known: set[int] = {7}
    wire.screen(known)
    sock = wire.sockets[version, 4500, 17]

    def esp(spi: int, mark: int) -> bytes:
        return struct.pack("!II", spi, mark) + bytes(20 + mark)  # of unequal sizes: nothing is merged

    def send(*payloads: bytes) -> None:
        for payload in payloads:
            sock.send(Transmit(HOME[version], (payload,)))

    send(esp(9, 1), esp(7, 2), esp(9, 3), esp(10, 4), b"\xff", esp(7, 5))
    assert [bytes(item.data) for item in sock.receive(16)] == [esp(9, 1), esp(7, 2), b"\xff", esp(7, 5)]
    assert sock.unseen == 2
    known.add(10)  # the view stays true
    send(esp(10, 1), esp(10, 2))
    assert [bytes(item.data) for item in sock.receive(16)] == [esp(10, 1), esp(10, 2)]
    wire.close()


@in_a_namespace
def test_a_run_that_begins_with_an_unknown_spi_is_not_dropped_whole() -> None:
    wire = Wire(offload=True, path_mtu=_no_mtu)
    wire.screen({7})
    sock = wire.sockets[4, 4500, 17]
    run = (struct.pack("!II", 9, 1) + bytes(92), struct.pack("!II", 7, 1) + bytes(92))
    for _ in range(2):
        sock.send(Transmit(HOME[4], run, segment_size=100))
    assert [bytes(item.data) for item in sock.receive(16)] == [b"".join(run)] * 2
    assert sock.unseen == 0
    wire.close()


@in_a_namespace
def test_a_turn_is_bounded_by_octets_too() -> None:
    sock = opened(offload=False)
    for _ in range(40):
        sock.send(Transmit(HOME[4], (bytes([1]) * 60_000,)))
    first = sock.receive(64)
    assert len(first) == 18, "a megabyte"
    assert 0 < len(sock.receive(64)) <= 18
    sock.close()


@in_a_namespace
def test_a_turn_has_few_handshakes_and_much_data() -> None:
    wire = Wire(offload=True, path_mtu=_no_mtu)
    reads = {key: sock.reads for key, sock in wire.sockets.items() if key[0] == 4}
    assert reads[4, 500, 17] == reads[4, 4500, 254] < reads[4, 4500, 17] == reads[4, 0, 50]
    wire.close()
