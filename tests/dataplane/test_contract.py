"""The border itself: the reference data plane is one, and the same calls give the same octets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.packets import SUITES, Pair, arrival, drain, tcp4, tcp6, tun, udp4
from tunnel.dataplane.contract import (
    Buffer,
    Counters,
    DataPlane,
    DataPlaneOutput,
    DropReason,
    Transmit,
    TunFrame,
    TunOffload,
    WireDatagrams,
)
from tunnel.dataplane.reference import ReferenceDataPlane

_FRAMES = [
    tun(tcp4(bytes(9000)), 1, 1300, 1, 20, 16),
    tun(tcp6(bytes(9000)), 4, 1300, 1, 40, 16),
    tun(udp4(b"data")),
    b"nonsense",
]


def test_the_reference_is_a_data_plane() -> None:
    plane: DataPlane = ReferenceDataPlane()
    assert plane.counters() == Counters(
        outbound_in=0,
        outbound_out=0,
        outbound_drops=0,
        held=0,
        esp_out=0,
        errors_out=0,
        inbound_in=0,
        inbound_out=0,
        inbound_drops=0,
        control_in=0,
    )
    assert set(plane.drops()) == set(DropReason)
    plane.set_offload(TunOffload(tso4=False))


@pytest.mark.parametrize("suite", SUITES, ids=str)
@pytest.mark.parametrize("kind", [bytes, bytearray, lambda data: memoryview(bytearray(data))])
def test_the_same_calls_give_the_same_octets(suite: object, kind: Callable[[bytes], Buffer]) -> None:
    def run(make: Callable[[bytes], Buffer]) -> list[DataPlaneOutput]:
        pair = Pair(suite)  # type: ignore[arg-type]
        pair.left.outbound([TunFrame(make(frame)) for frame in _FRAMES], 1)
        sent = drain(pair.left)
        arrivals = [arrival(output) for output in sent if isinstance(output, Transmit)]
        pair.right.inbound(
            [WireDatagrams(a.path, make(bytes(a.data)), a.segment_size, a.tos) for a in arrivals], 1
        )
        return [*sent, *drain(pair.right)]

    assert run(kind) == run(bytes)


def test_offloads_can_be_switched_off_between_bursts() -> None:
    pair = Pair()
    transmits = pair.send(_FRAMES[0]) + pair.send(_FRAMES[0])
    assert len(pair.receive(transmits[:1])) == 1
    pair.right.set_offload(TunOffload(tso4=False))
    assert len(pair.receive(transmits[1:])) == 7
