"""What we encode, scapy decodes to the same meaning: someone else's reading of RFC 7296."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.contrib import ikev2

from ike.constants import ExchangeType, PayloadType
from ike.wire.message import encode_message
from ike.wire.payloads import NotifyPayload, Payload, SaPayload, TsPayload
from ike.wire.proposals import WireProposal
from ike.wire.protected import seal, seal_fragments
from policy.proposals import TransformType
from tests.support.ike_messages import (
    AUTH,
    CBC,
    CERT,
    CERTREQ,
    CHACHA,
    CONFIG,
    DELETE,
    ESP_SA,
    EVERY_PAYLOAD,
    EXCHANGES,
    GCM,
    ID_I,
    ID_R,
    IKE_SA,
    KE,
    NONCE,
    NOTIFY,
    REKEY,
    REKEY_SA,
    SPI_I,
    SPI_R,
    TS_I,
    TS_R,
    VENDOR,
    cipher,
    header,
)


def decode(*payloads: Payload) -> Any:
    return ikev2.IKEv2(encode_message(header(), payloads))


def chain(packet: Any) -> list[Any]:
    """Return the layers of a decoded chain."""
    layers = []
    while packet:
        layers.append(packet)
        packet = packet.payload
    return layers


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_header(exchange: tuple[ExchangeType, bool]) -> None:
    head = header(exchange[0], response=exchange[1], message_id=0x01020304)
    data = encode_message(head, EXCHANGES[exchange])
    theirs = ikev2.IKEv2(data)
    assert theirs.init_SPI == SPI_I
    assert theirs.resp_SPI == head.spi_r
    assert (theirs.exch_type, theirs.id, theirs.version, theirs.length) == (
        exchange[0],
        0x01020304,
        0x20,
        len(data),
    )
    assert str(theirs.flags) == ("Response" if exchange[1] else "Initiator")


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_chain(exchange: tuple[ExchangeType, bool]) -> None:
    sent = EXCHANGES[exchange]
    theirs = ikev2.IKEv2(encode_message(header(exchange[0], response=exchange[1]), sent))
    layers = chain(theirs)[1:]
    assert len(layers) == len(sent)
    kinds = [theirs.next_payload, *(layer.next_payload for layer in layers)]
    assert kinds == [*(payload.payload_type for payload in sent), 0]
    assert [layer.length for layer in layers] == [4 + len(payload.encode_body()) for payload in sent]


def proposals(packet: Any) -> list[Any]:
    return chain(packet[ikev2.IKEv2_SA].prop)


@pytest.mark.parametrize("sent", [IKE_SA, REKEY_SA, ESP_SA])
def test_proposals(sent: SaPayload) -> None:
    theirs = proposals(decode(sent, NONCE))
    assert len(theirs) == len(sent.proposals)
    for ours, packet in zip(sent.proposals, theirs, strict=True):
        assert (packet.proposal, packet.proto, packet.trans_nb) == (
            ours.number,
            ours.protocol,
            len(ours.transforms),
        )
        assert (packet.SPIsize, packet.SPI or b"") == (len(ours.spi), ours.spi)
        assert transforms(packet) == [(t.type, t.id, t.key_bits or 0) for t in ours.transforms]


def transforms(packet: Any) -> list[tuple[int, int, int]]:
    return [
        (t.transform_type, t.transform_id, (t.key_length or 0) if t.transform_type == TransformType.ENCR else 0)
        for t in chain(packet.trans)
    ]


def test_a_whole_proposal_is_one_packet() -> None:
    many = tuple(transform for proposal in IKE_SA.proposals for transform in proposal.transforms)
    theirs = proposals(decode(SaPayload((WireProposal(9, 1, b"", many),))))
    assert len(transforms(theirs[0])) == len(many)


def test_key_exchange_and_nonce() -> None:
    theirs = decode(KE, NONCE)
    assert (theirs[ikev2.IKEv2_KE].group, theirs[ikev2.IKEv2_KE].ke) == (KE.group, KE.data)
    assert theirs[ikev2.IKEv2_Nonce].nonce == NONCE.data


def test_identities_and_auth() -> None:
    theirs = decode(ID_I, ID_R, AUTH, CERTREQ, CERT)
    assert (theirs[ikev2.IKEv2_IDi].IDtype, theirs[ikev2.IKEv2_IDi].ID) == (2, b"gw-a.example")
    assert (theirs[ikev2.IKEv2_IDr].IDtype, theirs[ikev2.IKEv2_IDr].ID) == (1, "10.9.0.2")
    assert (theirs[ikev2.IKEv2_AUTH].auth_type, theirs[ikev2.IKEv2_AUTH].load) == (2, AUTH.data)
    assert theirs[ikev2.IKEv2_CERTREQ].cert_encoding == 4
    assert theirs[ikev2.IKEv2_CERTREQ].cert_authority == CERTREQ.authorities


@pytest.mark.parametrize("sent", [NOTIFY, REKEY, NotifyPayload(14), NotifyPayload(8191, data=b"x")])
def test_notify(sent: NotifyPayload) -> None:
    theirs = decode(sent)[ikev2.IKEv2_Notify]
    assert (theirs.proto, theirs.type, theirs.SPIsize) == (sent.protocol, sent.type, len(sent.spi))
    assert (theirs.SPI or b"", theirs.notify or b"") == (sent.spi, sent.data)


def test_delete_vendor_and_config() -> None:
    theirs = decode(DELETE, VENDOR, CONFIG)
    delete = theirs[ikev2.IKEv2_Delete]
    assert (delete.proto, delete.SPIsize, delete.SPInum) == (3, 4, 2)
    assert [bytes(spi) for spi in delete.SPI] == list(DELETE.spis)
    assert theirs[ikev2.IKEv2_VendorID].vendorID == VENDOR.data
    config = theirs[ikev2.IKEv2_CP]
    assert config.CFGType == CONFIG.type
    assert [attribute.type for attribute in config.attributes] == [1, 3]
    assert str(config.attributes[1].value) == "10.0.0.1"


@pytest.mark.parametrize("sent", [TS_I, TS_R])
def test_traffic_selectors(sent: TsPayload) -> None:
    layer = ikev2.IKEv2_TSi if sent.initiator else ikev2.IKEv2_TSr
    theirs = decode(sent)[layer]
    assert theirs.number_of_TSs == len(sent.selectors)
    for ours, packet in zip(sent.selectors, theirs.traffic_selector, strict=True):
        four = ours.addresses.version == 4
        assert (packet.TS_type, packet.IP_protocol_ID) == (7 if four else 8, ours.protocol)
        assert (packet.start_port, packet.end_port) == (ours.ports.start, ours.ports.end)
        first = packet.starting_address_v4 if four else packet.starting_address_v6
        last = packet.ending_address_v4 if four else packet.ending_address_v6
        assert (first, last) == (str(ours.addresses.first), str(ours.addresses.last))


@pytest.mark.parametrize("suite", [GCM, CBC, CHACHA])
def test_protected(suite: Any) -> None:
    head = header(ExchangeType.IKE_AUTH)
    theirs = ikev2.IKEv2(seal(cipher(suite), head, EVERY_PAYLOAD))
    encrypted = theirs[ikev2.IKEv2_Encrypted]
    assert theirs.resp_SPI == SPI_R
    assert (theirs.next_payload, encrypted.next_payload) == (PayloadType.SK, EVERY_PAYLOAD[0].payload_type)
    assert theirs.length == 28 + encrypted.length == 28 + 4 + len(encrypted.load)


@pytest.mark.parametrize("suite", [GCM, CBC, CHACHA])
def test_fragments(suite: Any) -> None:
    fragments = seal_fragments(cipher(suite), header(ExchangeType.IKE_AUTH), EVERY_PAYLOAD, 400)
    assert len(fragments) > 1
    for number, data in enumerate(fragments, 1):
        theirs = ikev2.IKEv2(data)
        part = theirs[ikev2.IKEv2_Encrypted_Fragment]
        assert theirs.next_payload == PayloadType.SKF
        assert (part.frag_number, part.frag_total) == (number, len(fragments))
        assert part.next_payload == (EVERY_PAYLOAD[0].payload_type if number == 1 else 0)
        assert theirs.length == 28 + part.length == len(data)
