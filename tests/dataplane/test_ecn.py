"""RFC 6040 section 4.2, figure 4, all sixteen cases, both families, with the IPv4 checksum kept right."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP

from tests.support.packets import Pair, arrival, drain, packet_of, tun, udp4, udp6, written
from tunnel.dataplane.contract import DropReason

NOT_ECT, ECT1, ECT0, CE = range(4)
#: Rows: inner; columns: outer Not-ECT, ECT(0), ECT(1), CE, as the RFC prints them.
FIGURE_4 = {
    NOT_ECT: (NOT_ECT, NOT_ECT, NOT_ECT, None),
    ECT0: (ECT0, ECT0, ECT1, CE),
    ECT1: (ECT1, ECT1, ECT1, CE),
    CE: (CE, CE, CE, CE),
}
CASES = [
    (inner, outer, row[column])
    for inner, row in FIGURE_4.items()
    for column, outer in enumerate((NOT_ECT, ECT0, ECT1, CE))
]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("inner", "outer", "outgoing"), CASES)
def test_figure_4(inner: int, outer: int, outgoing: int | None, family: int) -> None:
    pair = Pair()
    dscp = 0xB8
    packet = udp4(b"x", tos=dscp | inner) if family == 4 else udp6(b"x", traffic_class=dscp | inner)
    (transmit,) = pair.send(tun(packet))
    assert transmit.tos == dscp | inner  # normal mode: copied
    pair.right.inbound([arrival(transmit, tos=dscp | outer)], 1)
    frames = [packet_of(frame) for frame in written(drain(pair.right))]
    if outgoing is None:
        assert frames == []
        assert pair.right.drops()[DropReason.ECN_CE_NOT_ECT] == 1
        return
    if family == 6:
        assert frames == [udp6(b"x", traffic_class=dscp | outgoing)]
        return
    assert frames == [udp4(b"x", tos=dscp | outgoing)]
    rebuilt = IP(frames[0])
    del rebuilt.chksum
    assert bytes(rebuilt) == frames[0]


@pytest.mark.parametrize("identification", range(0, 65536, 2111))
def test_the_checksum_follows_for_any_header(identification: int) -> None:
    pair = Pair()
    packet = udp4(b"", tos=ECT0, identification=identification)
    (transmit,) = pair.send(tun(packet))
    pair.right.inbound([arrival(transmit, tos=CE)], 1)
    (frame,) = written(drain(pair.right))
    assert packet_of(frame) == udp4(b"", tos=CE, identification=identification)
