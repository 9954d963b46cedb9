"""The choice of a suite (RFC 7296 sections 2.7 and 3.3), and the check of a peer's choice."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ike.constants import NotifyType
from ike.errors import BadAnswer, InvalidKePayload
from ike.names import describe, describe_offer, describe_proposal, describe_wire, transform_name
from ike.negotiate import Choice, Mismatch, check_group, choose, retry_group, verify_answer
from ike.wire.cursor import Cursor
from ike.wire.proposals import OpaqueTransform, WireProposal, encode_proposals, offer, parse_proposals
from policy.proposals import (
    AEAD,
    Encr,
    Esn,
    Group,
    Integ,
    Prf,
    Proposal,
    ProtocolId,
    Suite,
    Transform,
    TransformType,
)
from tests.support.ike_messages import wire_proposals

ENCR, PRF, INTEG, KE, ESN = TransformType
GCM256, GCM128 = Transform(ENCR, Encr.AES_GCM_16, 256), Transform(ENCR, Encr.AES_GCM_16, 128)
CBC256, CBC128 = Transform(ENCR, Encr.AES_CBC, 256), Transform(ENCR, Encr.AES_CBC, 128)
CHACHA, NULL = Transform(ENCR, Encr.CHACHA20_POLY1305), Transform(ENCR, Encr.NULL)
SHA256, SHA384 = Prf.HMAC_SHA2_256, Prf.HMAC_SHA2_384
MAC256 = Integ.HMAC_SHA2_256_128
MODERN = Proposal(ProtocolId.IKE, (GCM256,), (SHA384,), (), (Group.X25519,), text="aes256gcm16-prfsha384-x25519")
CLASSIC = Proposal(ProtocolId.IKE, (CBC256, CBC128), (SHA256,), (MAC256,), (Group.MODP_2048, Group.ECP_256))
ESP_GCM = Proposal(ProtocolId.ESP, (GCM256, GCM128))
ESP_CBC = Proposal(ProtocolId.ESP, (CBC128,), integ=(MAC256,))
ESP_PFS = Proposal(ProtocolId.ESP, (GCM256,), groups=(Group.X25519, Group.ECP_256))
AH = Proposal(ProtocolId.AH, integ=(MAC256, Integ.HMAC_SHA1_96))


def wire(*transforms: Transform, protocol: int = ProtocolId.IKE, spi: bytes = b"") -> WireProposal:
    return WireProposal(1, protocol, spi, transforms)


def esp(*transforms: Transform, opaque: tuple[OpaqueTransform, ...] = ()) -> WireProposal:
    return WireProposal(1, ProtocolId.ESP, b"spi!", transforms, opaque)


#: Our SPI by theirs: as long.
SPI = {b"": b"", b"spi!": b"ours"}
NO_ESN, YES_ESN = Transform(ESN, Esn.NO), Transform(ESN, Esn.YES)
MAC = Transform(INTEG, MAC256)


def chosen(offered: Sequence[WireProposal], acceptable: Sequence[Proposal]) -> Choice:
    choice = choose(offered, acceptable, spi=SPI[offered[0].spi])
    assert isinstance(choice, Choice), str(choice)
    assert verify_answer(offered, [choice.answer]) == choice.suite
    return choice


def refused(offered: Sequence[WireProposal], acceptable: Sequence[Proposal]) -> Mismatch:
    mismatch = choose(offered, acceptable)
    assert isinstance(mismatch, Mismatch)
    assert "\n" not in str(mismatch)
    return mismatch


@pytest.mark.parametrize("proposal", [MODERN, CLASSIC, ESP_GCM, ESP_CBC, ESP_PFS, AH])
def test_two_alike_agree(proposal: Proposal) -> None:
    spi = b"" if proposal.protocol is ProtocolId.IKE else b"spi!"
    choice = chosen(offer([proposal], spi), [proposal])
    suite = choice.suite
    assert suite.protocol is proposal.protocol
    if proposal.encr:
        assert (suite.encr, suite.key_bits) == (proposal.encr[0].id, proposal.encr[0].key_bits or 0)
    assert suite.prf == (proposal.prf[0] if proposal.prf else None)
    assert suite.integ == (proposal.integ[0] if proposal.integ else Integ.NONE)
    assert suite.group == (proposal.groups[0] if proposal.groups else Group.NONE)
    assert (choice.index, choice.offered.spi) == (0, spi)


def test_the_answer_has_one_of_each_and_our_spi() -> None:
    offered = offer([MODERN, CLASSIC], b"")
    choice = choose(offered, [CLASSIC], spi=b"ourspi!!")
    assert isinstance(choice, Choice)
    assert choice.answer == WireProposal(
        2,
        ProtocolId.IKE,
        b"ourspi!!",
        (CBC256, Transform(PRF, SHA256), MAC, Transform(KE, Group.MODP_2048)),
    )
    assert choice.offered is offered[1]


def test_our_order_of_preference_decides() -> None:
    offered = offer([CLASSIC, MODERN], b"")
    assert chosen(offered, [MODERN, CLASSIC]).index == 0
    assert chosen(offered, [MODERN, CLASSIC]).answer.number == 2
    assert chosen(offered, [CLASSIC, MODERN]).suite.encr is Encr.AES_CBC
    mine = Proposal(ProtocolId.ESP, (GCM128, GCM256), esn=(Esn.YES, Esn.NO))
    theirs = esp(GCM256, GCM128, NO_ESN, YES_ESN)
    assert (chosen([theirs], [mine]).suite.key_bits, chosen([theirs], [mine]).suite.esn) == (128, True)


def test_a_preferred_group_saves_a_round_trip() -> None:
    offered = offer([CLASSIC], b"")
    for group, expected in (
        (None, Group.MODP_2048),
        (Group.ECP_256, Group.ECP_256),
        (Group.MODP_2048, Group.MODP_2048),
        (Group.X25519, Group.MODP_2048),
        (65535, Group.MODP_2048),
    ):
        choice = choose(offered, [CLASSIC], preferred_group=group)
        assert isinstance(choice, Choice)
        assert choice.suite.group is expected


def test_the_group_of_the_ke_payload_must_be_the_chosen_one() -> None:
    suite = Suite(ProtocolId.IKE, group=Group.ECP_256)
    check_group(suite, Group.ECP_256)
    check_group(Suite(ProtocolId.ESP), Group.X25519)  # NONE was chosen: KE is ignored
    check_group(Suite(ProtocolId.ESP), None)
    for group in (None, Group.X25519, 0, 65535):
        with pytest.raises(InvalidKePayload) as caught:
            check_group(suite, group)
        assert caught.value.notify is NotifyType.INVALID_KE_PAYLOAD
        assert caught.value.notify_data == b"\x00\x13"


def test_only_an_offered_group_is_tried_next() -> None:
    """RFC 7296 section 1.2: a forged INVALID_KE_PAYLOAD must not steer us to what we did not offer."""
    sent = offer([MODERN, CLASSIC], b"")
    assert retry_group(sent, b"\x00\x13", Group.X25519) is Group.ECP_256
    for data in (b"\x00\x1f", b"\x00\x02", b"\x00\x00", b"\x13", b"", b"\x00\x13\x00", b"\xff\xff"):
        with pytest.raises(BadAnswer):
            retry_group(sent, data, Group.X25519)


# Types that are there or not.


def test_integrity_goes_with_the_cipher() -> None:
    """RFC 7296 section 3.3: none, or NONE alone, beside a combined-mode cipher; one beside any other."""
    none = Transform(INTEG, Integ.NONE)
    assert chosen([esp(GCM256, NO_ESN)], [ESP_GCM]).suite.integ is Integ.NONE
    assert chosen([esp(GCM256, none, NO_ESN)], [ESP_GCM]).answer.transforms == (GCM256, none, NO_ESN)
    refused([esp(GCM256, MAC, NO_ESN)], [ESP_GCM])
    refused([esp(CBC128, NO_ESN)], [ESP_CBC])
    refused([esp(CBC128, none, NO_ESN)], [ESP_CBC])
    # What our own policy may not say either: encryption without integrity (RFC 8221 section 4).
    bare = Proposal(ProtocolId.ESP, (CBC128, NULL))
    for offered in (esp(CBC128, NO_ESN), esp(CBC128, none, NO_ESN), esp(NULL, none, NO_ESN)):
        refused([offered], [bare])
        refused([offered], [Proposal(ProtocolId.ESP, (CBC128, NULL), integ=(Integ.NONE,))])
    refused([WireProposal(1, ProtocolId.AH, b"spi!", (none, NO_ESN))], [AH])


def test_a_mixed_proposal_of_a_careless_peer() -> None:
    both = esp(GCM256, CBC128, MAC, NO_ESN)
    mine = Proposal(ProtocolId.ESP, (GCM256, CBC128), integ=(MAC256,))
    suite = chosen([both], [mine]).suite
    assert (suite.encr, suite.integ) == (Encr.AES_CBC, MAC256)
    with_none = esp(GCM256, CBC128, MAC, Transform(INTEG, 0), NO_ESN)
    suite = chosen([with_none], [mine]).suite
    assert (suite.encr, suite.integ) == (Encr.AES_GCM_16, Integ.NONE)


def test_pfs_is_what_policy_says() -> None:
    x25519, none = Transform(KE, Group.X25519), Transform(KE, Group.NONE)
    assert chosen([esp(GCM256, NO_ESN, x25519)], [ESP_PFS]).suite.group is Group.X25519
    refused([esp(GCM256, NO_ESN)], [ESP_PFS])
    refused([esp(GCM256, NO_ESN, none)], [ESP_PFS])
    refused([esp(GCM256, NO_ESN, x25519)], [ESP_GCM])
    assert chosen([esp(GCM256, NO_ESN, x25519, none)], [ESP_GCM]).answer.of_type(KE) == (none,)
    optional = Proposal(ProtocolId.ESP, (GCM256,), groups=(Group.X25519, Group.NONE))
    assert chosen([esp(GCM256, NO_ESN)], [optional]).suite.group is Group.NONE
    assert chosen([esp(GCM256, NO_ESN, none)], [optional]).suite.group is Group.NONE
    assert chosen([esp(GCM256, NO_ESN, x25519)], [optional]).suite.group is Group.X25519


@pytest.mark.parametrize("missing", [ENCR, PRF, KE])
def test_an_ike_sa_needs_them_all(missing: int) -> None:
    """CVE-2016-5391 and CVE-2016-3071: proposals without a DH group."""
    whole = offer([MODERN], b"")[0]
    rest = tuple(transform for transform in whole.transforms if transform.type != missing)
    mismatch = refused([wire(*rest)], [MODERN])
    assert [difference.type for difference in mismatch.nearest[0].differences] == [missing]
    refused([wire(*rest, Transform(missing, 0))], [MODERN])
    # And not even if our policy forgot it.
    loose = Proposal(ProtocolId.IKE, (GCM256,), (), (), (Group.NONE,))
    refused([wire(GCM256)], [loose])
    refused([wire(GCM256, Transform(KE, Group.NONE))], [loose])


def test_esn_must_be_told() -> None:
    refused([esp(GCM256)], [ESP_GCM])
    refused([esp(GCM256, YES_ESN)], [ESP_GCM])
    assert not chosen([esp(GCM256, YES_ESN, NO_ESN)], [ESP_GCM]).suite.esn


def test_unknown_types_make_the_proposal_unacceptable() -> None:
    """RFC 7296 section 3.3.6."""
    addke = Transform(6, 35)
    mismatch = refused([esp(GCM256, NO_ESN, addke)], [ESP_GCM])
    assert "transform type 6" in str(mismatch)
    assert chosen([esp(GCM256, NO_ESN, addke), WireProposal(2, 3, b"spi!", (GCM256, NO_ESN))], [ESP_GCM])


def test_unknown_transforms_and_attributes_are_passed_over() -> None:
    """CVE-2024-3652 and section 3.3.6: only that transform is unacceptable."""
    strange = Transform(ENCR, 1024, 256)
    assert chosen([esp(strange, GCM256, NO_ESN)], [ESP_GCM]).suite.encr is Encr.AES_GCM_16
    opaque = OpaqueTransform(ENCR, Encr.AES_GCM_16, b"\x80\x0e\x01\x00\x80\x0f\x00\x01")
    assert chosen([esp(GCM128, NO_ESN, opaque=(opaque,))], [ESP_GCM]).suite.key_bits == 128
    refused([esp(NO_ESN, opaque=(opaque,))], [ESP_GCM])
    # A type whose only transform is not understood is still a type that is offered.
    for kind in (KE, INTEG, ESN, 6):
        odd = OpaqueTransform(kind, 1, b"\x80\x0f\x00\x01")
        rest = (GCM256,) if kind == ESN else (GCM256, NO_ESN)
        refused([esp(*rest, opaque=(odd,))], [ESP_GCM])


def test_key_lengths() -> None:
    """Section 3.3.5: required for variable-key ciphers, forbidden for fixed ones."""
    bare = Transform(ENCR, Encr.AES_GCM_16)
    refused([esp(bare, NO_ESN)], [ESP_GCM])
    refused([esp(Transform(ENCR, Encr.AES_GCM_16, 512), NO_ESN)], [ESP_GCM])
    fixed = Proposal(ProtocolId.ESP, (CHACHA,))
    assert chosen([esp(CHACHA, NO_ESN)], [fixed]).answer.transforms == (CHACHA, NO_ESN)
    refused([esp(Transform(ENCR, Encr.CHACHA20_POLY1305, 256), NO_ESN)], [fixed])


def test_duplicates_are_harmless() -> None:
    choice = chosen([esp(GCM256, GCM256, NO_ESN, NO_ESN)], [ESP_GCM])
    assert choice.answer.transforms == (GCM256, NO_ESN)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 255])
def test_other_protocols(protocol: int) -> None:
    mismatch = refused([WireProposal(1, protocol, b"", (GCM256, NO_ESN))], [ESP_GCM])
    assert mismatch.nearest[0].differences[0].type is None
    assert "protocol (wanted ESP" in str(mismatch)


# Telling the operator.


def test_one_line_tells_what_to_change() -> None:
    theirs = Proposal(ProtocolId.IKE, (CBC256,), (SHA384,), (MAC256,), (Group.X25519,))
    assert str(refused(offer([theirs], b""), [MODERN])) == (
        "peer offers AES-CBC-256/PRF-HMAC-SHA2-384/HMAC-SHA2-256-128/X25519; "
        "we accept aes256gcm16-prfsha384-x25519; "
        "nearest differs in: encryption (wanted AES-GCM-16-256, got AES-CBC-256)"
    )


def test_the_nearest_is_told() -> None:
    nearly = Proposal(ProtocolId.IKE, (GCM256,), (SHA384,), (), (Group.ECP_384,))
    mismatch = refused(offer([nearly, CLASSIC], b""), [CLASSIC_192, MODERN])
    assert [(entry.number, entry.index, len(entry.differences)) for entry in mismatch.nearest] == [
        (1, 1, 1),
        (2, 0, 1),
    ]
    assert str(mismatch).endswith("nearest differs in: key exchange (wanted X25519, got ECP-384)")
    assert mismatch.nearest[0].ours == MODERN.text


CLASSIC_192 = Proposal(
    ProtocolId.IKE, (Transform(ENCR, Encr.AES_CBC, 192),), (SHA256,), (MAC256,), (Group.MODP_2048,)
)


def test_nothing_offered_and_nothing_accepted() -> None:
    assert str(refused([], [MODERN])) == f"peer offers nothing; we accept {MODERN.text}"
    assert str(refused(offer([MODERN], b""), [])).endswith("we accept nothing")


@settings(deadline=None)
@given(st.lists(wire_proposals(1), max_size=16))
def test_any_offer_is_answered_or_explained(offered: list[WireProposal]) -> None:
    """CVE-2014-9221 and CVE-2024-3652: a grammar of proposals; the line stays a line, printable and bounded."""
    result = choose(offered, [MODERN, CLASSIC, ESP_GCM, ESP_PFS, AH])
    if isinstance(result, Mismatch):
        text = str(result)
        assert text.isprintable()
        assert len(text) < 2500
        assert len(result.nearest) == len(offered)
        for entry in result.nearest:
            assert entry.differences


choices = {
    ENCR: [GCM256, GCM128, CBC256, CBC128, CHACHA, NULL, Transform(ENCR, Encr.AES_GCM_16)],
    PRF: [Transform(PRF, number) for number in (0, *Prf, 9999)],
    INTEG: [Transform(INTEG, number) for number in (*Integ, 9999)],
    KE: [Transform(KE, number) for number in (0, 14, 19, 31, 9999)],
    ESN: [NO_ESN, YES_ESN],
}


@st.composite
def plausible(draw: st.DrawFn) -> WireProposal:
    transforms = [
        transform for kind in choices.values() for transform in draw(st.lists(st.sampled_from(kind), max_size=3))
    ]
    protocol = draw(st.sampled_from(ProtocolId))
    spi = b"" if protocol is ProtocolId.IKE else b"spi!"
    return WireProposal(1, protocol, spi, tuple(draw(st.permutations(transforms))))


OURS = [MODERN, CLASSIC, ESP_GCM, ESP_CBC, ESP_PFS, AH]


@settings(deadline=None)
@given(plausible())
def test_whatever_is_chosen_was_offered_and_is_acceptable(offered: WireProposal) -> None:
    result = choose([offered], OURS, spi=SPI[offered.spi])
    if isinstance(result, Mismatch):
        return
    ours, suite = OURS[result.index], result.suite
    assert verify_answer([offered], [result.answer]) == suite
    assert set(result.answer.transforms) <= set(offered.transforms)
    assert result.answer.types == offered.types
    kinds = [transform.type for transform in result.answer.transforms]
    assert len(kinds) == len(set(kinds))
    assert suite.protocol is ours.protocol is offered.protocol
    if ours.encr:
        assert Transform(ENCR, suite.encr or 0, suite.key_bits or None) in ours.encr
    assert suite.prf in (ours.prf or (None,))
    assert suite.group in (ours.groups or (Group.NONE,))
    assert (suite.encr in AEAD) == (suite.integ is Integ.NONE)
    # And it survives the wire.
    assert parse_proposals(Cursor(encode_proposals([result.answer]))) == (result.answer,)


# The initiator's check.


SENT = offer([MODERN, CLASSIC], b"")
GOOD = WireProposal(2, ProtocolId.IKE, b"", (CBC128, Transform(PRF, SHA256), MAC, Transform(KE, Group.ECP_256)))


def test_a_good_answer() -> None:
    assert verify_answer(SENT, [GOOD]) == Suite(ProtocolId.IKE, Encr.AES_CBC, 128, MAC256, SHA256, Group.ECP_256)


def changed(**fields: object) -> WireProposal:
    values: dict[str, object] = {
        "number": GOOD.number,
        "protocol": GOOD.protocol,
        "spi": GOOD.spi,
        "transforms": GOOD.transforms,
        "opaque": (),
    }
    return WireProposal(**(values | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "answer",
    [
        (),
        (GOOD, GOOD),
        (changed(number=1),),
        (changed(number=3),),
        (changed(number=0),),
        (changed(protocol=ProtocolId.ESP),),
        (changed(spi=b"newspi!!"),),
        (changed(transforms=GOOD.transforms[1:]),),
        (changed(transforms=GOOD.transforms[:-1]),),
        (changed(transforms=(*GOOD.transforms, CBC256)),),
        (changed(transforms=(*GOOD.transforms, CBC128)),),
        (changed(transforms=(*GOOD.transforms, Transform(KE, Group.MODP_2048))),),
        (changed(transforms=(*GOOD.transforms, NO_ESN)),),
        (changed(transforms=(*GOOD.transforms, Transform(99, 1))),),
        (changed(transforms=(GCM256, *GOOD.transforms[1:])),),
        (changed(transforms=(Transform(ENCR, Encr.AES_CBC), *GOOD.transforms[1:])),),
        (changed(transforms=(Transform(ENCR, Encr.AES_CBC, 192), *GOOD.transforms[1:])),),
        (changed(transforms=(*GOOD.transforms[:-1], Transform(KE, Group.X25519))),),
        (changed(transforms=(*GOOD.transforms[:-1], Transform(KE, Group.MODP_1024))),),
        (changed(transforms=(*GOOD.transforms[:-1], Transform(KE, 65535))),),
        (changed(opaque=(OpaqueTransform(ENCR, 12, b"\x80\x0f\x00\x01"),)),),
    ],
)
def test_bad_answers(answer: tuple[WireProposal, ...]) -> None:
    """Section 3.3.6: an answer that is not one of the offers ends the exchange."""
    with pytest.raises(BadAnswer):
        verify_answer(SENT, answer)


def test_a_type_offered_with_none_may_be_left_out() -> None:
    sent = [esp(GCM256, NO_ESN, Transform(KE, Group.X25519), Transform(KE, Group.NONE))]
    for transforms in ((GCM256, NO_ESN), (GCM256, NO_ESN, Transform(KE, Group.NONE))):
        assert verify_answer(sent, [esp(*transforms)]).group is Group.NONE
    with pytest.raises(BadAnswer):
        verify_answer([esp(GCM256, NO_ESN, Transform(KE, Group.X25519))], [esp(GCM256, NO_ESN)])


# Names.


@pytest.mark.parametrize(
    ("suite", "text"),
    [
        (
            Suite(ProtocolId.IKE, Encr.AES_GCM_16, 256, prf=SHA384, group=Group.X25519),
            "AES-GCM-16-256/PRF-HMAC-SHA2-384/X25519",
        ),
        (
            Suite(ProtocolId.IKE, Encr.AES_CBC, 128, MAC256, SHA256, Group.MODP_2048),
            "AES-CBC-128/PRF-HMAC-SHA2-256/HMAC-SHA2-256-128/MODP-2048",
        ),
        (Suite(ProtocolId.ESP, Encr.CHACHA20_POLY1305, esn=True), "ChaCha20-Poly1305/ESN"),
        (Suite(ProtocolId.ESP, Encr.TRIPLE_DES, 0, Integ.HMAC_MD5_96), "3DES/HMAC-MD5-96"),
        (Suite(ProtocolId.ESP, Encr.NULL, 0, MAC256), "NULL/HMAC-SHA2-256-128"),
        (Suite(ProtocolId.AH, None, 0, MAC256), "HMAC-SHA2-256-128"),
    ],
)
def test_suites_have_names(suite: Suite, text: str) -> None:
    assert describe(suite) == text


def test_numbers_without_a_name() -> None:
    assert transform_name(Transform(ENCR, 1024, 256)) == "encryption number 1024-256"
    assert transform_name(Transform(KE, 35)) == "key exchange number 35"
    assert transform_name(Transform(9, 35)) == "type 9 number 35"
    assert transform_name(Transform(KE, 0)) == "no key exchange"


def test_long_offers_are_cut() -> None:
    many = wire(*(Transform(KE, number) for number in range(1, 33)))
    assert describe_wire(many) == "MODP-768|MODP-1024|key exchange number 3|key exchange number 4|..."
    assert describe_offer([many] * 16).endswith(", ...")
    assert describe_wire(esp(GCM256, NO_ESN)) == "AES-GCM-16-256"
    assert describe_wire(esp(GCM256, NO_ESN, YES_ESN)).endswith("/no ESN|ESN")
    assert describe_proposal(MODERN) == MODERN.text
    assert describe_proposal(CLASSIC) == (
        "AES-CBC-256|AES-CBC-128/PRF-HMAC-SHA2-256/HMAC-SHA2-256-128/MODP-2048|ECP-256"
    )
