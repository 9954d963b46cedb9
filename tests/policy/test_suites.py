"""Proposals and security methods: their words, both ways, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.problems import TextError
from policy.proposals import Encr, Esn, Group, Integ, Prf, Proposal, ProtocolId, Suite, Transform, TransformType
from policy.suites import (
    method_text,
    parse_group,
    parse_ike_proposal,
    parse_method,
    proposal_text,
    suite_text,
    transform_text,
)


def encr(id_: Encr, bits: int | None = None) -> Transform:
    return Transform(TransformType.ENCR, id_, bits)


@pytest.mark.parametrize(
    ("text", "ciphers", "prf", "integ", "groups"),
    [
        ("aes256gcm16-prfsha384-x25519", (encr(Encr.AES_GCM_16, 256),), (Prf.HMAC_SHA2_384,), (), (Group.X25519,)),
        (
            "aes128-sha256-modp2048",
            (encr(Encr.AES_CBC, 128),),
            (Prf.HMAC_SHA2_256,),
            (Integ.HMAC_SHA2_256_128,),
            (Group.MODP_2048,),
        ),
        (
            "chacha20poly1305-prfsha256-ecp256",
            (encr(Encr.CHACHA20_POLY1305),),
            (Prf.HMAC_SHA2_256,),
            (),
            (Group.ECP_256,),
        ),
        (
            "aes256-sha384-prfsha512-ecp384",
            (encr(Encr.AES_CBC, 256),),
            (Prf.HMAC_SHA2_512,),
            (Integ.HMAC_SHA2_384_192,),
            (Group.ECP_384,),
        ),
        (
            "AES192-SHA2_512-curve25519-modp3072-modp4096-ecp521",
            (encr(Encr.AES_CBC, 192),),
            (Prf.HMAC_SHA2_512,),
            (Integ.HMAC_SHA2_512_256,),
            (Group.X25519, Group.MODP_3072, Group.MODP_4096, Group.ECP_521),
        ),
        (
            "aes256gcm128-aes128gcm-prfsha256-dh14",
            (encr(Encr.AES_GCM_16, 256), encr(Encr.AES_GCM_16, 128)),
            (Prf.HMAC_SHA2_256,),
            (),
            (Group.MODP_2048,),
        ),
    ],
)
def test_ike_proposals(
    text: str,
    ciphers: tuple[Transform, ...],
    prf: tuple[Prf, ...],
    integ: tuple[Integ, ...],
    groups: tuple[Group, ...],
) -> None:
    assert parse_ike_proposal(text) == Proposal(ProtocolId.IKE, ciphers, prf, integ, groups, (), text)


BOTH = (Esn.YES, Esn.NO)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("esp:aes256gcm16", [(ProtocolId.ESP, (encr(Encr.AES_GCM_16, 256),), (), BOTH)]),
        ("esp:aes192gcm16-esn", [(ProtocolId.ESP, (encr(Encr.AES_GCM_16, 192),), (), (Esn.YES,))]),
        (
            "esp:aes128-sha256-noesn",
            [(ProtocolId.ESP, (encr(Encr.AES_CBC, 128),), (Integ.HMAC_SHA2_256_128,), (Esn.NO,))],
        ),
        ("esp:null-sha256", [(ProtocolId.ESP, (encr(Encr.NULL),), (Integ.HMAC_SHA2_256_128,), BOTH)]),
        ("esp:chacha20poly1305", [(ProtocolId.ESP, (encr(Encr.CHACHA20_POLY1305),), (), BOTH)]),
        ("ah:sha256", [(ProtocolId.AH, (), (Integ.HMAC_SHA2_256_128,), BOTH)]),
        (
            "ah:sha256+esp:aes256-sha256",
            [
                (ProtocolId.AH, (), (Integ.HMAC_SHA2_256_128,), BOTH),
                (ProtocolId.ESP, (encr(Encr.AES_CBC, 256),), (Integ.HMAC_SHA2_256_128,), BOTH),
            ],
        ),
    ],
)
def test_methods(
    text: str, parts: list[tuple[ProtocolId, tuple[Transform, ...], tuple[Integ, ...], tuple[Esn, ...]]]
) -> None:
    method = parse_method(text)
    assert method.text == text
    assert [(p.protocol, p.encr, p.integ, p.esn) for p in method.protocols] == parts
    assert all(p.prf == () and p.groups == () for p in method.protocols)
    assert method_text(method) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("aes256gcm16-prfsha384-x25591", 'unknown algorithm "x25591" (did you mean "x25519"?)'),
        ("aes257-sha256-modp2048", 'unknown algorithm "aes257" (did you mean "aes256"?)'),
        ("aes256-sha256-curve25518", 'unknown algorithm "curve25518" (did you mean "x25519"?)'),
        ("3des-sha256-modp2048", '"3des" is not available in this version (write "aes256gcm16")'),
        ("des-sha256-modp2048", '"des" is not available in this version'),
        ("aes128-md5-modp2048", '"md5" is not available in this version (write "sha256")'),
        ("aes128-sha1-modp2048", '"sha1" is not available in this version (write "sha256")'),
        ("aes128-sha256-modp768", '"modp768" is not available in this version (write "modp2048")'),
        ("aes128-sha256-modp1024", '"modp1024" is not available in this version (write "modp2048")'),
        ("aes128-sha256-modp1536", '"modp1536" is not available in this version (write "modp2048")'),
        ("aes128-sha256-prfsha1-modp2048", '"prfsha1" is not available in this version (write "prfsha256")'),
        (
            "aes128gcm16-sha256-modp2048",
            'has its own integrity, "sha256" cannot stand beside it (remove "sha256" or',
        ),
        ("aes128-modp2048", 'encryption without integrity is refused (add "-sha256")'),
        ("null-sha256-modp2048", 'IKE cannot go without encryption (write "aes256" for "null")'),
        (
            "aes128-aes256gcm16-sha256-modp2048",
            "mixes combined-mode ciphers with others (write them as two proposals)",
        ),
        ("aes256gcm16-x25519", "has no pseudo-random function (a combined-mode cipher needs one"),
        ("aes256-sha256", 'has no key exchange group (add one, such as "x25519"'),
        ("sha256-modp2048", 'has no cipher (add one, such as "aes256gcm16"'),
        ("aes256-sha256-esn-modp2048", "extended sequence numbers are for ESP and AH, not for IKE (remove it)"),
        ("aes256--sha256-modp2048", 'there is an empty word (words are joined by one "-")'),
        ("aes256-aes256-sha256-modp2048", '"aes256" is there twice (remove one of them)'),
        ("zzzzzzzz", 'unknown algorithm "zzzzzzzz" (one of: aes128, aes192'),
        ("-".join(["aes256"] * 33), "has more than 32 words (write several proposals)"),
        ("", "there is an empty word"),
    ],
)
def test_refused_ike_proposals(text: str, message: str) -> None:
    with pytest.raises(TextError) as caught:
        parse_ike_proposal(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("esp:aes256", 'encryption without integrity is refused (add "-sha256")'),
        ("esp:null", 'protects nothing: neither encryption nor integrity (add "-sha256")'),
        ("esp:aes256gcm16-sha256", 'has its own integrity, "sha256" cannot stand beside it (remove "sha256")'),
        ("esp:aes256gcm16-x25519", 'does not name the key exchange group (write pfs = "x25519" beside it)'),
        ("esp:aes256-sha256-prfsha256", "a pseudo-random function is for IKE only (remove it)"),
        ("ah:aes256-sha256", "AH does not encrypt (name an integrity algorithm only)"),
        ("ah:esn", 'has no integrity algorithm (write "ah:sha256")'),
        ("ah:sha1", '"sha1" is not available in this version (write "sha256")'),
        ("aes256gcm16", 'does not begin with a protocol (write "esp:aes256gcm16" or "ah:sha256")'),
        ("espp:aes256gcm16", 'does not begin with a protocol (write "esp:aes256gcm16" or "ah:sha256")'),
        (
            "esp:aes256-sha256+ah:sha256",
            'does not combine protocols in a way that exists (write "esp:...", "ah:..."',
        ),
        ("esp:aes256gcm16+esp:aes256gcm16", "does not combine protocols"),
        ("esp:\naes256", "encryption without integrity is refused"),
    ],
)
def test_refused_methods(text: str, message: str) -> None:
    with pytest.raises(TextError) as caught:
        parse_method(text)
    assert message in str(caught.value)


def test_groups() -> None:
    assert parse_group("Curve25519") is Group.X25519
    with pytest.raises(TextError, match='unknown key exchange group "x25518" \\(did you mean "x25519"\\?\\)'):
        parse_group("x25518")
    with pytest.raises(TextError, match='"modp1024" is not available in this version'):
        parse_group("modp1024")


def test_suites_have_a_text() -> None:
    ike = Suite(ProtocolId.IKE, Encr.AES_GCM_16, 256, Integ.NONE, Prf.HMAC_SHA2_384, Group.X25519)
    assert suite_text(ike) == "aes256gcm16-prfsha384-x25519"
    esp = Suite(ProtocolId.ESP, Encr.AES_CBC, 128, Integ.HMAC_SHA2_256_128, esn=True)
    assert suite_text(esp) == "aes128-sha256-esn"
    assert suite_text(Suite(ProtocolId.ESP, Encr.CHACHA20_POLY1305, 0)) == "chacha20poly1305"
    assert suite_text(Suite(ProtocolId.AH, integ=Integ.HMAC_SHA2_512_256)) == "sha512"


@pytest.mark.parametrize(
    ("type_", "id_", "bits", "word"),
    [
        (TransformType.ENCR, 20, 256, "aes256gcm16"),
        (TransformType.ENCR, 3, None, "3des"),
        (TransformType.PRF, 5, None, "prfsha256"),
        (TransformType.INTEG, 14, None, "sha512"),
        (TransformType.KE, 31, None, "x25519"),
        (TransformType.KE, 1999, None, "group-1999"),
        (TransformType.ESN, 0, None, "noesn"),
        (TransformType.ESN, 1, None, "esn"),
        (TransformType.ESN, 9, None, "esn-9"),
        (99, 7, None, "transform-99-7"),
    ],
)
def test_transforms_have_a_word(type_: int, id_: int, bits: int | None, word: str) -> None:
    assert transform_text(type_, id_, bits) == word


AEAD_WORDS = ["aes128gcm16", "aes192gcm16", "aes256gcm16", "chacha20poly1305"]
CBC_WORDS = ["aes128", "aes192", "aes256"]


def some(words: list[str], least: int = 1) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(words), min_size=least, unique=True)


INTEGS = ["sha256", "sha384", "sha512"]
PRFS = ["prfsha256", "prfsha384", "prfsha512"]
GROUPS = ["modp2048", "modp3072", "modp4096", "ecp256", "ecp384", "ecp521", "x25519"]
IKE_WORDS = st.tuples(some(AEAD_WORDS), some(PRFS), some(GROUPS)) | st.tuples(
    some(CBC_WORDS), some(INTEGS), some(PRFS, 0), some(GROUPS)
)


@settings(deadline=None)
@given(IKE_WORDS)
def test_a_proposal_and_its_words_are_the_same(words: tuple[list[str], ...]) -> None:
    text = "-".join(word for kind in words for word in kind)
    proposal = parse_ike_proposal(text)
    again = parse_ike_proposal(proposal_text(proposal))
    assert (again.encr, again.prf, again.integ, again.groups) == (
        proposal.encr,
        proposal.prf,
        proposal.integ,
        proposal.groups,
    )


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_parses_or_is_refused_in_one_line(text: str) -> None:
    said: list[str] = []
    for parse in (parse_ike_proposal, parse_method, parse_group):
        try:
            parse(text)
        except TextError as error:
            said.append(str(error))
    assert all(line.isprintable() for line in said)
