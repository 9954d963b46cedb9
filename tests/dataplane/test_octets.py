"""Both ends count the octets of a Child SA alike: those of the inner packets, without padding."""

from __future__ import annotations

import pytest

from policy.proposals import Suite
from tests.support.packets import CBC_SHA256, GCM, Pair, tcp4, tun, udp4


@pytest.mark.parametrize("suite", [GCM, CBC_SHA256], ids=["GCM", "CBC"])
@pytest.mark.parametrize("size", [56, 57, 58, 59, 1001, 1003])
def test_single_packets_and_runs(suite: Suite, size: int) -> None:
    pair = Pair(suite)
    single = udp4(bytes(size))
    run = tun(tcp4(bytes(10 * size)), gso_type=1, gso_size=size, flags=1, start=20, offset=16)
    pair.receive(pair.send(tun(single), tun(single)))
    pair.receive(pair.send(run))
    sent = pair.left.query_sa(0x1004, inbound=False)
    received = pair.right.query_sa(0x1004, inbound=True)
    assert sent is not None
    assert received is not None
    assert (
        (received.packets, received.octets)
        == (sent.packets, sent.octets)
        == (12, 2 * (28 + size) + 10 * (40 + size))
    )
