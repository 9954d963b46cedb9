"""Duplicates and reordering in great numbers: nothing is accepted twice, and what is accepted is counted once.

MIRRORGATE_REPLAY_PACKETS makes it more than the few thousand of an ordinary run.
"""

from __future__ import annotations

import os
from dataclasses import replace
from random import Random

import pytest

from policy.proposals import Suite
from tests.support.packets import GCM, Pair, arrivals, drain, packet_of, tun, udp4, written
from tunnel.dataplane.contract import DropReason, Transmit, TunFrame, WireDatagrams

_PACKETS = int(os.environ.get("MIRRORGATE_REPLAY_PACKETS", "20000"))
_BURST = 2000
_DUPLICATES = 0.3


@pytest.mark.parametrize("suite", [GCM, replace(GCM, esn=True)], ids=["32 bits", "ESN across 2^32"])
@pytest.mark.timeout(3600)
def test_nothing_is_accepted_twice(suite: Suite) -> None:
    dice = Random(3)
    pair = Pair(suite)
    if suite.esn:  # the high half of the sequence number is never sent: it steps in the middle of this
        start = 2**32 - _PACKETS // 2
        pair.left._sad.outbound[0x1004][0].sequence = start
        pair.right._sad.inbound[0x1004].window.top = start
    accepted = sent = replayed = 0
    late: list[WireDatagrams] = []
    while sent < _PACKETS:
        numbers = range(sent, sent + _BURST)
        pair.left.outbound([TunFrame(tun(udp4(n.to_bytes(8, "big")))) for n in numbers], 1)
        transmits = [output for output in drain(pair.left) if isinstance(output, Transmit)]
        singles = [
            WireDatagrams(item.path, data)
            for transmit in transmits for item in arrivals(transmit)
            for data in _each(bytes(item.data), item.segment_size)
        ]  # fmt: skip
        copies = [single for single in singles if dice.random() < _DUPLICATES]
        arriving = sorted(enumerate(singles + late), key=lambda pair: pair[0] + dice.uniform(0, 300))
        late = copies
        pair.right.inbound([item for _, item in arriving], 1)
        got = [packet_of(frame)[28:] for frame in written(drain(pair.right))]
        octets = b"".join(got)  # datagrams that follow each other come as one
        seen = [int.from_bytes(octets[at : at + 8], "big") for at in range(0, len(octets), 8)]
        assert len(seen) == len(set(seen))
        assert set(seen) <= set(numbers), "none of an earlier burst: those were copies"
        accepted += len(seen)
        replayed += len(arriving) - len(singles)
        sent += _BURST
    drops = {reason: count for reason, count in pair.right.drops().items() if count}
    assert accepted == sent, "none of the originals is lost within the window"
    assert sum(drops.values()) == replayed
    # With ESN what is older than the window is taken for 2^32 later (RFC 4303 appendix A2.1), and does not verify.
    assert set(drops) <= {DropReason.REPLAYED, DropReason.OUTSIDE_WINDOW, DropReason.INTEGRITY}
    assert suite.esn or DropReason.INTEGRITY not in drops


def _each(data: bytes, size: int) -> list[bytes]:
    step = size or len(data)
    return [data[at : at + step] for at in range(0, len(data), step)]
