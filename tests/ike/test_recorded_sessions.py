"""Sessions with a strongSwan, recorded once: our keys are the keys that it logged, and we open what it sealed.

    initiator (we)                                        responder (strongSwan 5.9.8)
    HDR, SAi1, KEi, Ni, N(FRAG), N(NATD), N(NATD)  -->
                                                   <--    HDR, SAr1, KEr, Nr, N...
    HDR, SKF{IDi, IDr, AUTH, SAi2, TSi, TSr, V}    -->    in fragments
                                                   <--    HDR, SK{IDr, AUTH, SAr2, TSi, TSr}
    HDR, SK{SA, Ni, KEi}                           -->    the IKE SA is rekeyed
                                                   <--    HDR, SK{SA, Nr, KEr}
    HDR, SK{D}                                     -->    the old one deleted
                                                   <--    HDR, SK{}
    HDR, SK{}                                      -->    liveness on the new one
                                                   <--    HDR, SK{}
    HDR, SK{D}                                     -->    and it is deleted too
                                                   <--    HDR, SK{}

Everything random of ours came from one seeded stream, so that every octet we send is known too.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from ike.constants import AuthMethod, ExchangeType, NotifyType, PayloadType
from ike.crypto.auth import psk_auth, verify_psk_auth
from ike.crypto.ciphers import IkeCipher
from ike.crypto.kex import KeyExchange, generate
from ike.crypto.keymat import IkeKeys, derive_child_keys, derive_ike_keys, rekey_skeyseed, skeyseed
from ike.negotiate import verify_answer
from ike.wire.header import Header
from ike.wire.message import Message, encode_message, parse_message
from ike.wire.payloads import (
    AuthPayload,
    DeletePayload,
    IdPayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    Payload,
    SaPayload,
    TsPayload,
    VendorIdPayload,
)
from ike.wire.proposals import WireProposal, offer
from ike.wire.protected import Reassembler, open_message, seal, seal_fragments
from ike.wire.rules import check
from policy.clock import Entropy
from policy.pad import Identity
from policy.proposals import Encr, Group, Integ, Prf, Proposal, ProtocolId, Suite, Transform, TransformType
from policy.secret import Secret
from tests.support.ike_messages import v4
from tests.support.vectors import vectors

RECORD: dict[str, Any] = vectors("strongswan_ikev2")
PSK = Secret(RECORD["psk"].encode())


def cipher(number: Encr, key_bits: int | None = None) -> tuple[Transform, ...]:
    return (Transform(TransformType.ENCR, number, key_bits),)


IKE_PROPOSALS = {
    "aes256gcm16-prfsha384-x25519": Proposal(
        ProtocolId.IKE, cipher(Encr.AES_GCM_16, 256), (Prf.HMAC_SHA2_384,), (), (Group.X25519,)
    ),
    "aes128-sha256-prfsha256-modp2048": Proposal(
        ProtocolId.IKE,
        cipher(Encr.AES_CBC, 128),
        (Prf.HMAC_SHA2_256,),
        (Integ.HMAC_SHA2_256_128,),
        (Group.MODP_2048,),
    ),
    "chacha20poly1305-prfsha512-ecp256": Proposal(
        ProtocolId.IKE, cipher(Encr.CHACHA20_POLY1305), (Prf.HMAC_SHA2_512,), (), (Group.ECP_256,)
    ),
    "aes256-sha512-prfsha512-ecp521": Proposal(
        ProtocolId.IKE,
        cipher(Encr.AES_CBC, 256),
        (Prf.HMAC_SHA2_512,),
        (Integ.HMAC_SHA2_512_256,),
        (Group.ECP_521,),
    ),
}
AEAD_ESP = Proposal(ProtocolId.ESP, cipher(Encr.AES_GCM_16, 256))
CBC_ESP = Proposal(ProtocolId.ESP, cipher(Encr.AES_CBC, 128), integ=(Integ.HMAC_SHA2_256_128,))


def stream(seed: str) -> Entropy:
    position = 0

    def entropy(count: int) -> bytes:
        nonlocal position
        position += count
        return hashlib.shake_256(seed.encode()).digest(position)[-count:]

    return entropy


class Wire:
    """The recorded datagrams, in order."""

    def __init__(self, datagrams: list[list[str]]) -> None:
        self._left = [(who, bytes.fromhex(data)) for who, data in datagrams]

    def sent(self, *datagrams: bytes) -> None:
        """These octets are what was sent next."""
        for data in datagrams:
            assert self._left.pop(0) == ("sent", data)

    def received(self) -> Message:
        who, data = self._left.pop(0)
        assert who == "received"
        return parse_message(data)

    def opened(self, responder: IkeCipher) -> Message:
        reassembler = Reassembler()
        while (message := open_message(responder, self.received(), reassembler)) is None:
            pass
        check(message)
        return message

    def finish(self) -> None:
        assert not self._left


def only(message: Message, kind: type[Any]) -> Any:
    (payload,) = message.all(kind)
    return payload


def same_keys(keys: IkeKeys, logged: dict[str, str]) -> None:
    ours = {
        "Sk_d": keys.sk_d.reveal(),
        "Sk_ai": keys.sk_ai.reveal(),
        "Sk_ar": keys.sk_ar.reveal(),
        "Sk_ei": keys.sk_ei.reveal() + keys.salt_ei.reveal(),
        "Sk_er": keys.sk_er.reveal() + keys.salt_er.reveal(),
        "Sk_pi": keys.sk_pi.reveal(),
        "Sk_pr": keys.sk_pr.reveal(),
    }
    assert {name: key.hex() for name, key in ours.items() if key} == {
        name: key for name, key in logged.items() if name.startswith("Sk_")
    }


class Session:
    """One recorded session played again, step by step."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.wire = Wire(record["datagrams"])
        self.proposal = IKE_PROPOSALS[record["suite"]]
        self.entropy = stream(record["entropy"])

    def ike_sa_init(self) -> None:
        self.spi_i, self.ni = self.entropy(8), self.entropy(32)
        exchange, sent = generate(self.proposal.groups[0], self.entropy), offer([self.proposal], b"")
        self.head = Header(
            spi_i=self.spi_i,
            spi_r=bytes(8),
            exchange=ExchangeType.IKE_SA_INIT,
            initiator=True,
            response=False,
            message_id=0,
        )
        zeros = bytes(20)
        self.request = encode_message(
            self.head,
            [
                SaPayload(sent),
                KePayload(exchange.group, exchange.public),
                NoncePayload(self.ni),
                NotifyPayload(NotifyType.IKEV2_FRAGMENTATION_SUPPORTED),
                NotifyPayload(NotifyType.NAT_DETECTION_SOURCE_IP, data=zeros),
                NotifyPayload(NotifyType.NAT_DETECTION_DESTINATION_IP, data=zeros),
            ],
        )
        self.wire.sent(self.request)
        answer = self.wire.received()
        check(answer)
        self.response, self.nr = answer.octets, only(answer, NoncePayload).data
        self.suite, self.keys = self.derive(answer, sent, exchange, answer.header.spi_r)
        assert self.suite.prf is not None
        same_keys(self.keys, self.record["first"])
        self.head = replace(self.head, spi_r=answer.header.spi_r)
        self.ours, self.theirs = self.keys.ciphers(self.suite)

    def derive(
        self, answer: Message, sent: tuple[WireProposal, ...], exchange: KeyExchange, spi_r: bytes
    ) -> tuple[Suite, IkeKeys]:
        suite = verify_answer(sent, only(answer, SaPayload).proposals)
        assert suite.prf is not None
        shared = exchange.shared(only(answer, KePayload).data)
        assert skeyseed(suite.prf, self.ni, self.nr, shared).reveal().hex() == self.record["first"]["SKEYSEED"]
        return suite, derive_ike_keys(suite, self.ni, self.nr, self.spi_i, spi_r, shared)

    def request_of(self, exchange: ExchangeType, message_id: int) -> Header:
        return replace(self.head, exchange=exchange, message_id=message_id)

    def ike_auth(self) -> None:
        prf = self.suite.prf
        assert prf is not None
        identity = IdPayload(True, Identity.parse("gw-a.example"))
        auth = psk_auth(
            prf,
            PSK,
            message=self.request,
            nonce=self.nr,
            sk_p=self.keys.sk_pi,
            id_body=identity.signed_body,
        )
        esp = AEAD_ESP if self.suite.aead else CBC_ESP
        sent = offer([esp], self.entropy(4))
        payloads: list[Payload] = [
            identity,
            IdPayload(False, Identity.parse("gw-b.example")),
            AuthPayload(AuthMethod.SHARED_KEY, auth),
            SaPayload(sent),
            TsPayload(True, (v4(0x0A010000, 0x0A0100FF),)),
            TsPayload(False, (v4(0x0A020000, 0x0A0200FF),)),
            VendorIdPayload(b"padding" * 30),
        ]
        head = self.request_of(ExchangeType.IKE_AUTH, 1)
        fragments = seal_fragments(self.ours, head, payloads, 300)
        assert len(fragments) > 1
        self.wire.sent(*fragments)
        answer = self.wire.opened(self.theirs)
        theirs, received = only(answer, IdPayload), only(answer, AuthPayload)
        assert str(theirs.identity) == "gw-b.example"
        assert verify_psk_auth(
            prf,
            PSK,
            received.data,
            message=self.response,
            nonce=self.ni,
            sk_p=self.keys.sk_pr,
            id_body=theirs.signed_body,
        )
        assert [ts.selectors for ts in answer.all(TsPayload)] == [ts.selectors for ts in payloads[4:6]]  # type: ignore[union-attr]
        suite = verify_answer(sent, only(answer, SaPayload).proposals)
        forth, back = derive_child_keys(suite, self.keys.sk_d, prf, self.ni, self.nr)
        logged = self.record["child"]
        for keys, side in ((forth, "initiator"), (back, "responder")):
            assert (keys.encryption.reveal() + keys.salt.reveal()).hex() == logged[f"encryption_{side}_key"]
            assert keys.integrity.reveal().hex() == logged.get(f"integrity_{side}_key", "")

    def rekey(self) -> None:
        """RFC 7296 section 2.18."""
        prf = self.suite.prf
        assert prf is not None
        ni, exchange = self.entropy(32), generate(self.proposal.groups[0], self.entropy)
        spi = self.entropy(8)
        sent = offer([self.proposal], spi)
        payloads: list[Payload] = [SaPayload(sent), NoncePayload(ni), KePayload(exchange.group, exchange.public)]
        self.wire.sent(seal(self.ours, self.request_of(ExchangeType.CREATE_CHILD_SA, 2), payloads))
        answer = self.wire.opened(self.theirs)
        proposals = only(answer, SaPayload).proposals
        suite, nr = verify_answer(sent, proposals), only(answer, NoncePayload).data
        shared = exchange.shared(only(answer, KePayload).data)
        seed = rekey_skeyseed(prf, self.keys.sk_d, ni, nr, shared)
        assert seed.reveal().hex() == self.record["rekeyed"]["SKEYSEED"]
        keys = derive_ike_keys(suite, ni, nr, spi, proposals[0].spi, shared, self.keys.sk_d, prf)
        same_keys(keys, self.record["rekeyed"])
        self.informational(3, [DeletePayload(ProtocolId.IKE)])
        self.ours, self.theirs = keys.ciphers(suite)
        self.head = replace(self.head, spi_i=spi, spi_r=proposals[0].spi)

    def informational(self, message_id: int, payloads: list[Payload]) -> None:
        head = self.request_of(ExchangeType.INFORMATIONAL, message_id)
        self.wire.sent(seal(self.ours, head, payloads))
        answer = self.wire.opened(self.theirs)
        assert answer.payloads == ()
        assert (answer.header.response, answer.header.initiator) == (True, False)
        assert answer.header.message_id == message_id


@pytest.mark.parametrize("record", RECORD["sessions"], ids=lambda record: str(record["suite"]))
def test_session(record: dict[str, Any]) -> None:
    session = Session(record)
    session.ike_sa_init()
    session.ike_auth()
    session.rekey()
    session.informational(0, [])
    session.informational(1, [DeletePayload(ProtocolId.IKE)])
    session.wire.finish()


def test_the_record_covers_what_matters() -> None:
    assert {record["suite"] for record in RECORD["sessions"]} == set(IKE_PROPOSALS)
    for record in RECORD["sessions"]:
        kinds = [bytes.fromhex(data)[16] for _, data in record["datagrams"]]
        assert kinds.count(PayloadType.SKF) >= 2
