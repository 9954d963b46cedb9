"""Many datagrams in one system call are what they are one by one."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.host import cmsg, mmsg

LOOPBACK = {4: "127.0.0.1", 6: "::1"}


@pytest.fixture(params=[4, 6])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket, int]]:
    """A socket to send on, one that receives and tells the address a datagram came to, and the IP version."""
    version: int = request.param
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        left, right = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
        left.bind((LOOPBACK[version], 0))
        right.bind((LOOPBACK[version], 0))
    except OSError as error:
        pytest.skip(f"no IPv{version} here: {error}")
    right.setblocking(False)
    if version == 4:
        right.setsockopt(socket.IPPROTO_IP, cmsg.IP_PKTINFO, 1)
        right.setsockopt(socket.IPPROTO_IP, cmsg.IP_RECVTOS, 1)
    else:
        right.setsockopt(socket.IPPROTO_IPV6, cmsg.IPV6_RECVPKTINFO, 1)
        right.setsockopt(socket.IPPROTO_IPV6, cmsg.IPV6_RECVTCLASS, 1)
    with left, right:
        yield left, right, version


def test_a_batch_goes_and_comes(pair: tuple[socket.socket, socket.socket, int]) -> None:
    left, right, version = pair
    here = ip_address(LOOPBACK[version])
    target = mmsg.sockaddr(here, right.getsockname()[1])
    control = mmsg.packed([*cmsg.source(here), cmsg.traffic_class(version, 0x2A)])
    sent = [bytes([number]) * (1 + number * 20) for number in range(70)]
    outbox, inbox = mmsg.Outbox(), mmsg.Inbox(256)
    assert outbox.send(left.fileno(), sent, target, control) == mmsg.MOST
    assert outbox.send(left.fileno(), sent[mmsg.MOST :], target, b"") == 70 - mmsg.MOST
    arrivals = []
    for limit, count in ((5, 5), (1000, 64), (1000, 1), (1000, 0)):
        found = inbox.receive(right.fileno(), limit)
        assert len(found) == count
        arrivals += [(bytes(data), name, said, flags) for data, name, said, flags in found]
    assert [data for data, *_ in arrivals] == sent
    for number, (_, name, said, flags) in enumerate(arrivals):
        assert mmsg.endpoint(name) == (here, left.getsockname()[1])
        received = cmsg.parse(mmsg.unpacked(said))
        assert received.local == here.packed
        assert received.tos == (0x2A if number < mmsg.MOST else 0)
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)


def test_it_stops_before_the_one_that_the_kernel_refuses(pair: tuple[socket.socket, socket.socket, int]) -> None:
    left, right, version = pair
    target = mmsg.sockaddr(ip_address(LOOPBACK[version]), right.getsockname()[1])
    outbox = mmsg.Outbox()
    assert outbox.send(left.fileno(), [b"a", b"b", bytes(65_600), b"d"], target, b"") == 2
    assert outbox.send(left.fileno(), [bytes(65_600), b"d"], target, b"") == 0


def test_what_does_not_fit_is_told(pair: tuple[socket.socket, socket.socket, int]) -> None:
    left, right, _ = pair
    left.sendto(b"x", right.getsockname())
    ((_, _, said, flags),) = mmsg.Inbox(24).receive(right.fileno(), 9)
    assert flags & socket.MSG_CTRUNC
    cmsg.parse(mmsg.unpacked(said))


def test_a_socket_that_is_gone_is_an_error() -> None:
    with pytest.raises(OSError) as caught:
        mmsg.Inbox(256).receive(-1, 9)
    assert caught.value.errno == errno.EBADF


@given(
    st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.binary(max_size=40)), max_size=5)
)
def test_control_messages_round_trip(ancillary: cmsg.Ancillary) -> None:
    assert mmsg.unpacked(mmsg.packed(ancillary)) == ancillary


@given(st.binary(max_size=200))
def test_any_control_octets_and_names_are_read(octets: bytes) -> None:
    cmsg.parse(mmsg.unpacked(octets))
    mmsg.endpoint(octets)
