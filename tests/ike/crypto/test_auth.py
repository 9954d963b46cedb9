"""AUTH by shared secret (RFC 7296 section 2.15), against the formula written out once more."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from ike.crypto.auth import psk_auth, signed_octets, verify_psk_auth
from policy.proposals import Prf
from policy.secret import Secret

MESSAGE, NONCE, SK_P, ID_BODY = b"the whole first message" * 20, b"Nr" * 16, Secret(b"sk_pi" * 7), b"\2\0\0\0gw-a"
PSK = Secret(b"correct horse battery staple")


def sha256(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()


def auth(**changed: bytes) -> bytes:
    values = {"message": MESSAGE, "nonce": NONCE, "id_body": ID_BODY} | changed
    return psk_auth(Prf.HMAC_SHA2_256, PSK, sk_p=SK_P, **values)


def test_formula() -> None:
    signed = MESSAGE + NONCE + sha256(SK_P.reveal(), ID_BODY)
    assert auth() == sha256(sha256(PSK.reveal(), b"Key Pad for IKEv2"), signed)
    assert signed == signed_octets(Prf.HMAC_SHA2_256, message=MESSAGE, nonce=NONCE, sk_p=SK_P, id_body=ID_BODY)


@pytest.mark.parametrize("changed", ["message", "nonce", "id_body"])
def test_every_part_is_covered(changed: str) -> None:
    assert auth(**{changed: b"something else"}) != auth()


def test_every_octet_of_the_secret_counts() -> None:
    # Section 2.15: 64 octets and more are accepted, and no NUL is added.
    long = Secret(b"p" * 64)
    for other in (Secret(b"p" * 63), Secret(b"p" * 64 + b"\0"), Secret(b"p" * 65)):
        values = [
            psk_auth(Prf.HMAC_SHA2_512, secret, message=MESSAGE, nonce=NONCE, sk_p=SK_P, id_body=ID_BODY)
            for secret in (long, other)
        ]
        # HMAC itself pads a short key with zeros up to its block of 128 octets.
        assert (values[0] == values[1]) is (other.reveal().rstrip(b"\0") == long.reveal())


def test_verify_takes_the_whole_value_only() -> None:
    def verify(received: bytes) -> bool:
        return verify_psk_auth(
            Prf.HMAC_SHA2_256, PSK, received, message=MESSAGE, nonce=NONCE, sk_p=SK_P, id_body=ID_BODY
        )

    good = auth()
    assert verify(good)
    for bad in (b"", good[:-1], good + b"\0", good[:16], bytes(32), bytes([good[0] ^ 1]) + good[1:]):
        assert not verify(bad)
