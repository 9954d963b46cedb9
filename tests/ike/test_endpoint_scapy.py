"""An independent reader understands every message that we send unprotected."""

from __future__ import annotations

import pytest

from ike.constants import ExchangeType
from ike.v2.settings import IkeSettings
from policy.clock import SECOND
from tests.support.ike_pair import IKE_ECP256, Datagram, Pair, site_b, with_ike

ikev2 = pytest.importorskip("scapy.contrib.ikev2")


def payload_types(octets: bytes) -> list[int]:
    """Return the payload types that scapy finds; every octet must be understood."""
    packet = ikev2.IKEv2(octets)
    kinds = [packet.next_payload]
    layer = packet.payload
    while layer and hasattr(layer, "next_payload"):
        assert type(layer).__name__ != "Raw"
        kinds.append(layer.next_payload)
        layer = layer.payload
    assert bytes(packet) == octets
    assert packet.length == len(octets)
    assert kinds[-1] == 0
    return [int(kind) for kind in kinds[:-1]]


def unprotected(pair: Pair) -> list[Datagram]:
    sent = [*pair.a.sent, *pair.b.sent]
    return [datagram for datagram in sent if datagram.exchange == ExchangeType.IKE_SA_INIT]


@pytest.mark.parametrize("case", ["plain", "cookie", "refused"])
def test_scapy_reads_what_we_send(case: str) -> None:
    pair = Pair(
        b=with_ike(site_b(), proposals=(IKE_ECP256,)) if case == "refused" else None,
        settings_b=IkeSettings(cookie_threshold=0) if case == "cookie" else None,
    )
    pair.acquire(pair.a)
    pair.wait(5 * SECOND)
    seen = [payload_types(datagram.ike) for datagram in unprotected(pair)]
    assert seen[0] == [33, 34, 40, 41, 41, 41, 43]
    expected = {"plain": [33, 34, 40, 41, 41, 41, 43], "cookie": [41], "refused": [41]}[case]
    assert expected in seen[1:]


def test_scapy_reads_the_envelope_of_protected_messages() -> None:
    pair = Pair()
    pair.connect()
    protected = [d for d in [*pair.a.sent, *pair.b.sent] if d.exchange == ExchangeType.IKE_AUTH]
    assert len(protected) == 2
    for datagram in protected:
        packet = ikev2.IKEv2(datagram.ike)
        assert packet.next_payload == 46
        assert packet.length == len(datagram.ike)
