"""Keying material (RFC 7296 sections 2.14, 2.17 and 2.18), recomputed here from the formulas."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import fields
from typing import Any

import pytest

from ike.crypto.keymat import IkeKeys, derive_child_keys, derive_ike_keys
from ike.errors import LocalError
from policy.proposals import Encr, Group, Integ, Prf, ProtocolId, Suite
from policy.secret import Secret

NI, NR, SPI_I, SPI_R = b"i" * 32, b"r" * 40, b"\x11" * 8, b"\x22" * 8
SHARED, OLD_SK_D = Secret(b"g^ir" * 8), Secret(b"old sk_d" * 4)
HASHES: dict[Prf, Any] = {
    Prf.HMAC_SHA1: hashlib.sha1,
    Prf.HMAC_SHA2_256: hashlib.sha256,
    Prf.HMAC_SHA2_384: hashlib.sha384,
    Prf.HMAC_SHA2_512: hashlib.sha512,
}


def prf(prf_id: Prf, key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, HASHES[prf_id]).digest()


def prf_plus(prf_id: Prf, key: bytes, seed: bytes, length: int) -> bytes:
    out = block = b""
    number = 0
    while len(out) < length:
        number += 1
        block = prf(prf_id, key, block + seed + bytes([number]))
        out += block
    return out[:length]


def ike(encr: Encr, key_bits: int, integ: Integ, prf_id: Prf) -> Suite:
    return Suite(ProtocolId.IKE, encr, key_bits, integ, prf_id, Group.X25519)


#: Suite, and the octets of SK_d, SK_a, key and salt of SK_e, SK_p.
IKE_SUITES = [
    (ike(Encr.AES_GCM_16, 256, Integ.NONE, Prf.HMAC_SHA2_384), (48, 0, 32, 4, 48)),
    (ike(Encr.AES_GCM_16, 128, Integ.NONE, Prf.HMAC_SHA2_256), (32, 0, 16, 4, 32)),
    (ike(Encr.CHACHA20_POLY1305, 0, Integ.NONE, Prf.HMAC_SHA2_512), (64, 0, 32, 4, 64)),
    (ike(Encr.AES_CBC, 128, Integ.HMAC_SHA2_256_128, Prf.HMAC_SHA2_256), (32, 32, 16, 0, 32)),
    (ike(Encr.AES_CBC, 192, Integ.HMAC_SHA2_384_192, Prf.HMAC_SHA2_256), (32, 48, 24, 0, 32)),
    (ike(Encr.AES_CBC, 256, Integ.HMAC_SHA2_512_256, Prf.HMAC_SHA2_512), (64, 64, 32, 0, 64)),
    (ike(Encr.AES_CBC, 256, Integ.HMAC_SHA1_96, Prf.HMAC_SHA1), (20, 20, 32, 0, 20)),
]


def in_order(keys: IkeKeys) -> bytes:
    """SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr."""
    parts = (
        keys.sk_d,
        keys.sk_ai,
        keys.sk_ar,
        keys.sk_ei,
        keys.salt_ei,
        keys.sk_er,
        keys.salt_er,
        keys.sk_pi,
        keys.sk_pr,
    )
    return b"".join(part.reveal() for part in parts)


@pytest.mark.parametrize(("suite", "lengths"), IKE_SUITES)
def test_ike_keys(suite: Suite, lengths: tuple[int, ...]) -> None:
    assert suite.prf is not None
    keys = derive_ike_keys(suite, NI, NR, SPI_I, SPI_R, SHARED)
    skeyseed = prf(suite.prf, NI + NR, SHARED.reveal())
    assert in_order(keys) == prf_plus(suite.prf, skeyseed, NI + NR + SPI_I + SPI_R, 2 * sum(lengths) - lengths[0])
    assert lengths == tuple(map(len, (keys.sk_d, keys.sk_ai, keys.sk_ei, keys.salt_ei, keys.sk_pi)))
    assert lengths[1:] == tuple(map(len, (keys.sk_ar, keys.sk_er, keys.salt_er, keys.sk_pr)))


def test_rekeying_uses_the_old_key_and_the_old_prf() -> None:
    """Section 2.18: SKEYSEED = prf(SK_d (old), g^ir (new) | Ni | Nr), prf being the old SA's; prf+ the new's."""
    suite = IKE_SUITES[0][0]
    assert suite.prf is Prf.HMAC_SHA2_384
    keys = derive_ike_keys(suite, NI, NR, SPI_I, SPI_R, SHARED, OLD_SK_D, Prf.HMAC_SHA2_256)
    skeyseed = prf(Prf.HMAC_SHA2_256, OLD_SK_D.reveal(), SHARED.reveal() + NI + NR)
    octets = in_order(keys)
    assert octets == prf_plus(Prf.HMAC_SHA2_384, skeyseed, NI + NR + SPI_I + SPI_R, len(octets))
    same = derive_ike_keys(suite, NI, NR, SPI_I, SPI_R, SHARED, OLD_SK_D)
    assert same == derive_ike_keys(suite, NI, NR, SPI_I, SPI_R, SHARED, OLD_SK_D, Prf.HMAC_SHA2_384)
    assert same != keys


def test_an_ike_sa_needs_a_prf() -> None:
    with pytest.raises(LocalError):
        derive_ike_keys(Suite(ProtocolId.IKE, Encr.AES_GCM_16, 128), NI, NR, SPI_I, SPI_R, SHARED)


def child(encr: Encr | None, key_bits: int = 0, integ: Integ = Integ.NONE) -> Suite:
    return Suite(ProtocolId.AH if encr is None else ProtocolId.ESP, encr, key_bits, integ)


#: Suite, and the octets of encryption key, salt and integrity key.
CHILD_SUITES = [
    (child(Encr.AES_GCM_16, 256), (32, 4, 0)),
    (child(Encr.AES_GCM_8, 128), (16, 4, 0)),
    (child(Encr.CHACHA20_POLY1305), (32, 4, 0)),
    (child(Encr.AES_CBC, 128, Integ.HMAC_SHA2_256_128), (16, 0, 32)),
    (child(Encr.AES_CBC, 256, Integ.HMAC_SHA2_512_256), (32, 0, 64)),
    (child(Encr.AES_CTR, 192, Integ.HMAC_SHA1_96), (24, 4, 20)),
    (child(Encr.AES_CBC, 128, Integ.AES_XCBC_96), (16, 0, 16)),
    (child(Encr.TRIPLE_DES, 0, Integ.HMAC_MD5_96), (24, 0, 16)),
    (child(Encr.DES, 0, Integ.HMAC_SHA1_96), (8, 0, 20)),
    (child(Encr.NULL, 0, Integ.HMAC_SHA2_256_128), (0, 0, 32)),
    (child(Encr.NULL_AUTH_AES_GMAC, 128), (16, 4, 0)),
    (child(None, 0, Integ.HMAC_SHA2_384_192), (0, 0, 48)),
]


@pytest.mark.parametrize("shared", [None, SHARED])
@pytest.mark.parametrize(("suite", "lengths"), CHILD_SUITES)
def test_child_keys(suite: Suite, lengths: tuple[int, int, int], shared: Secret | None) -> None:
    """Section 2.17: initiator to responder first, encryption before integrity; g^ir (new) goes before nonces."""
    sk_d = Secret(b"d" * 32)
    forth, back = derive_child_keys(suite, sk_d, Prf.HMAC_SHA2_256, NI, NR, shared)
    assert tuple(map(len, forth)) == tuple(map(len, back)) == lengths
    seed = (shared.reveal() if shared else b"") + NI + NR
    keymat = prf_plus(Prf.HMAC_SHA2_256, sk_d.reveal(), seed, 2 * sum(lengths))
    assert b"".join(part.reveal() for part in (*forth, *back)) == keymat


def test_the_salt_of_ah_gmac_ends_its_key() -> None:
    """RFC 4543 section 3.3."""
    suite = child(None, 0, Integ.AES_256_GMAC)
    forth, back = derive_child_keys(suite, Secret(b"d" * 32), Prf.HMAC_SHA2_256, NI, NR)
    keymat = prf_plus(Prf.HMAC_SHA2_256, b"d" * 32, NI + NR, 72)
    assert (forth.integrity.reveal(), forth.salt.reveal()) == (keymat[:32], keymat[32:36])
    assert (back.integrity.reveal(), back.salt.reveal()) == (keymat[36:68], keymat[68:])
    assert forth.encryption.reveal() == b""


def test_keys_are_not_printed_and_can_be_wiped() -> None:
    suite = IKE_SUITES[3][0]
    keys = derive_ike_keys(suite, NI, NR, SPI_I, SPI_R, SHARED)
    text = repr(keys) + repr(keys.ciphers(suite))
    for field in fields(keys):
        secret = getattr(keys, field.name)
        assert isinstance(secret, Secret)
        if len(secret):
            assert secret.reveal().hex() not in text
            assert repr(secret.reveal()) not in text
    keys.wipe()
    assert not any(in_order(keys))


def test_the_ciphers_of_both_ends_meet() -> None:
    for suite, _ in IKE_SUITES:
        keys = derive_ike_keys(suite, NI, NR, SPI_I, SPI_R, SHARED)
        (initiator, responder), (far_initiator, far_responder) = keys.ciphers(suite), keys.ciphers(suite)
        assert far_initiator.open(initiator.seal(b"forth", b"aad"), b"aad") == b"forth"
        assert responder.open(far_responder.seal(b"back", b"aad"), b"aad") == b"back"
