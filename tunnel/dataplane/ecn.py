"""ECN at the egress of a tunnel: RFC 6040 section 4.2, figure 4."""

from __future__ import annotations

NOT_ECT, ECT_1, ECT_0, CE = 0, 1, 2, 3

#: Outgoing field by arriving outer and inner field; None is drop.
EGRESS: dict[int, tuple[int | None, int, int, int]] = {
    #        inner: Not-ECT  ECT(1)  ECT(0)  CE
    NOT_ECT: (NOT_ECT, ECT_1, ECT_0, CE),
    ECT_1: (NOT_ECT, ECT_1, ECT_1, CE),
    ECT_0: (NOT_ECT, ECT_1, ECT_0, CE),
    CE: (None, CE, CE, CE),
}


def decapsulate(packet: bytes, outer: int) -> bytes | None:
    """Return the inner *packet* with the ECN field that the outer one makes of it; None if it must be dropped.

    *packet* is a parsed IPv4 or IPv6 packet.
    """
    if packet[0] >> 4 == 4:
        inner = packet[1] & 3
        field = EGRESS[outer & 3][inner]
        if field is None or field == inner:
            return None if field is None else packet
        # RFC 1624 equation 3; the octet is the low one of its word.
        value = (int.from_bytes(packet[10:12], "big") + inner - field) % 65535
        return (
            packet[:1] + bytes((packet[1] & 0xFC | field,)) + packet[2:10] + value.to_bytes(2, "big") + packet[12:]
        )
    inner = packet[1] >> 4 & 3
    field = EGRESS[outer & 3][inner]
    if field is None or field == inner:
        return None if field is None else packet
    return packet[:1] + bytes((packet[1] & 0xCF | field << 4,)) + packet[2:]
