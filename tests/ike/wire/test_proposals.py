"""The SA payload's proposals (RFC 7296 sections 3.3.1 to 3.3.5)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from ike.errors import LocalError, WireError
from ike.wire.cursor import Cursor
from ike.wire.payloads import SaPayload
from ike.wire.proposals import (
    MAX_PROPOSALS,
    MAX_TRANSFORMS,
    OpaqueTransform,
    WireProposal,
    encode_proposals,
    offer,
    parse_proposals,
    to_wire,
)
from policy.proposals import Encr, Esn, Group, Integ, Prf, Proposal, ProtocolId, Transform, TransformType
from tests.support.ike_messages import ESP_SA, IKE_SA, sa_payloads

GCM, CBC = Transform(1, Encr.AES_GCM_16, 256), Transform(1, Encr.AES_CBC, 128)
CHACHA = Transform(1, Encr.CHACHA20_POLY1305)


def parse(data: bytes) -> tuple[WireProposal, ...]:
    return parse_proposals(Cursor(data))


def test_layout() -> None:
    assert ESP_SA.encode_body().hex() == (
        "00000020"  # last proposal, 32 octets
        "01030402"  # number 1, ESP, SPI of 4, 2 transforms
        "c0ffee01"
        "0300000c"  # more transforms, 12 octets
        "01000014"  # ENCR AES-GCM-16
        "800e0100"  # Key Length 256
        "00000008"  # last transform, 8 octets
        "05000000"  # ESN no
    )


@settings(deadline=None)
@given(sa_payloads())
def test_round_trip(sent: SaPayload) -> None:
    assert parse(sent.encode_body()) == sent.proposals


def test_every_prefix_and_every_extension_is_refused() -> None:
    data = IKE_SA.encode_body()
    for length in range(len(data)):
        with pytest.raises(WireError):
            parse(data[:length])
    with pytest.raises(WireError):
        parse(data + b"\0")


def replace(data: bytes, offset: int, octets: bytes) -> bytes:
    return data[:offset] + octets + data[offset + len(octets) :]


@pytest.mark.parametrize("offset", [1, 13, 17, 25, 29])
def test_reserved_is_ignored(offset: int) -> None:
    data = ESP_SA.encode_body()
    assert data[offset] == 0
    assert parse(replace(data, offset, b"\xff")) == ESP_SA.proposals


@pytest.mark.parametrize(
    ("offset", "octets"),
    [
        (0, b"\x01"),  # neither last nor more
        (0, b"\x02"),  # more, and there are none
        (2, b"\x00\x07"),  # shorter than its header
        (2, b"\x00\x1f"),
        (2, b"\x00\x21"),
        (2, b"\xff\xff"),
        (4, b"\x00"),  # number 0
        (6, b"\x00"),  # SPI sizes
        (6, b"\x08"),
        (6, b"\xff"),
        (7, b"\x00"),  # no transforms, CVE-2016-5391
        (7, b"\x01"),
        (7, b"\x03"),
        (8, b"\x00\x00\x00\x00"),  # SPI zero
        (12, b"\x00"),  # last, and there are more
        (12, b"\x02"),
        (14, b"\x00\x00"),  # transform lengths
        (14, b"\x00\x07"),
        (14, b"\x00\x0a"),
        (14, b"\x00\x0d"),
        (14, b"\xff\xff"),
        (20, b"\x00\x0e"),  # the attribute as TLV: 256 octets of value are not there
        (24, b"\x03"),
    ],
)
def test_malformed(offset: int, octets: bytes) -> None:
    with pytest.raises(WireError):
        parse(replace(ESP_SA.encode_body(), offset, octets))


@pytest.mark.parametrize(
    ("protocol", "sizes"), [(ProtocolId.IKE, {0, 8}), (ProtocolId.AH, {4}), (ProtocolId.ESP, {4})]
)
def test_spi_sizes(protocol: ProtocolId, sizes: set[int]) -> None:
    for size in range(20):
        data = encode_proposals([WireProposal(1, protocol, b"\x01" * size, (CHACHA,))])
        if size in sizes:
            assert parse(data)[0].spi == b"\x01" * size
        else:
            with pytest.raises(WireError):
                parse(data)


def test_unknown_protocols_survive() -> None:
    sent = WireProposal(1, 77, b"any SPI at all", (Transform(99, 999), Transform(1, 1024, 7)))
    assert parse(encode_proposals([sent])) == (sent,)


def proposals(count: int, first: int = 1) -> list[WireProposal]:
    return [WireProposal(number, ProtocolId.IKE, b"", (CHACHA,)) for number in range(first, first + count)]


@pytest.mark.parametrize("count", [MAX_PROPOSALS - 1, MAX_PROPOSALS, MAX_PROPOSALS + 1])
def test_number_of_proposals(count: int) -> None:
    """Class of CVE-2026-12413: N-1, N, N+1."""
    data = encode_proposals(proposals(count))
    if count <= MAX_PROPOSALS:
        assert len(parse(data)) == count
    else:
        with pytest.raises(WireError):
            parse(data)


@pytest.mark.parametrize("count", [MAX_TRANSFORMS - 1, MAX_TRANSFORMS, MAX_TRANSFORMS + 1])
def test_number_of_transforms(count: int) -> None:
    """Class of CVE-2026-12413: N-1, N, N+1."""
    data = encode_proposals([WireProposal(1, ProtocolId.IKE, b"", (CHACHA,) * count)])
    if count <= MAX_TRANSFORMS:
        assert len(parse(data)[0].transforms) == count
    else:
        with pytest.raises(WireError):
            parse(data)


def test_numbers_rise_by_one() -> None:
    assert parse(encode_proposals(proposals(1, first=7)))[0].number == 7  # an answer
    for second in (1, 3, 0, 255):
        wrong = [*proposals(1), WireProposal(second, ProtocolId.IKE, b"", (CHACHA,))]
        with pytest.raises(WireError):
            parse(encode_proposals(wrong))


@pytest.mark.parametrize(
    "attributes",
    [
        "800f0100",  # another attribute
        "800e0100800e0100",  # Key Length twice
        "000e00020100",  # Key Length in the long form
        "800e010000010000",  # and another beside it
        "0001000401020304",
    ],
)
def test_attributes_that_are_not_understood_stay_with_their_transform(attributes: str) -> None:
    opaque = OpaqueTransform(TransformType.ENCR, Encr.AES_CBC, bytes.fromhex(attributes))
    sent = WireProposal(1, ProtocolId.IKE, b"", (GCM,), (opaque,))
    received = parse(encode_proposals([sent]))[0]
    assert received == sent
    assert received.of_type(TransformType.ENCR) == (GCM,)
    assert received.types == (TransformType.ENCR,)
    alone = WireProposal(1, ProtocolId.IKE, b"", (), (opaque,))
    assert parse(encode_proposals([alone]))[0].types == (TransformType.ENCR,)


def test_policy_becomes_wire() -> None:
    ours = Proposal(
        ProtocolId.IKE, (CBC,), (Prf.HMAC_SHA2_256,), (Integ.HMAC_SHA2_256_128,), (Group.ECP_256, Group.X25519)
    )
    sent = to_wire(ours, 3, b"")
    assert sent.number == 3
    assert sent.types == (1, 2, 3, 4)
    assert sent.of_type(TransformType.KE) == (Transform(4, 19), Transform(4, 31))
    assert parse(encode_proposals([sent])) == (sent,)


@pytest.mark.parametrize("esn", [(), (Esn.NO,), (Esn.YES, Esn.NO)])
def test_esp_always_has_an_esn_transform(esn: tuple[Esn, ...]) -> None:
    sent = to_wire(Proposal(ProtocolId.ESP, (GCM,), esn=esn), 1, b"spi!")
    assert sent.of_type(TransformType.ESN) == tuple(Transform(5, number) for number in esn or (Esn.NO,))


def test_combined_mode_ciphers_stand_apart() -> None:
    """RFC 7296 section 3.3: combined-mode and other ciphers in separate proposals, the former without INTEG."""
    mixed = Proposal(ProtocolId.ESP, (GCM, CBC, CHACHA), (), (Integ.HMAC_SHA2_256_128,), (Group.X25519,))
    with pytest.raises(LocalError):
        to_wire(mixed, 1, b"spi!")
    first, second = offer([mixed], b"spi!")
    assert (first.number, second.number) == (1, 2)
    assert first.of_type(TransformType.ENCR) == (GCM, CHACHA)
    assert TransformType.INTEG not in first.types
    assert second.of_type(TransformType.ENCR) == (CBC,)
    assert second.of_type(TransformType.INTEG) == (Transform(3, 12),)
    assert first.spi == second.spi == b"spi!"
    # The operator's order of preference stays.
    swapped = offer([Proposal(ProtocolId.ESP, (CBC, GCM), (), (Integ.HMAC_SHA2_256_128,))], b"spi!")
    assert [proposal.of_type(TransformType.ENCR) for proposal in swapped] == [(CBC,), (GCM,)]
    assert (
        TransformType.INTEG
        not in to_wire(Proposal(ProtocolId.ESP, (GCM,), integ=(Integ.HMAC_SHA2_256_128,)), 1, b"spi!").types
    )
