"""Authentication of the IKE SA by a shared secret (RFC 7296 section 2.15)."""

from __future__ import annotations

import hmac

from ike.crypto.prf import prf
from policy.proposals import Prf
from policy.secret import Secret

_KEY_PAD = b"Key Pad for IKEv2"


def psk_auth(prf_id: Prf, shared: Secret, *, message: bytes, nonce: bytes, sk_p: Secret, id_body: bytes) -> bytes:
    """Return AUTH = prf( prf(Shared Secret, "Key Pad for IKEv2"), <SignedOctets>).

    *message* is the signer's whole IKE_SA_INIT message as it went over the wire (RealMessage1 or 2), *nonce*
    the other side's nonce data, *sk_p* the signer's SK_pi or SK_pr, *id_body* the signer's ID payload without
    its generic header, as sent (``IdPayload.signed_body``).
    """
    key = prf(prf_id, shared.reveal(), _KEY_PAD)
    return prf(prf_id, key, signed_octets(prf_id, message=message, nonce=nonce, sk_p=sk_p, id_body=id_body))


def verify_psk_auth(
    prf_id: Prf, shared: Secret, received: bytes, *, message: bytes, nonce: bytes, sk_p: Secret, id_body: bytes
) -> bool:
    """Whether *received* is the AUTH data of ``psk_auth``; whole length, constant time."""
    expected = psk_auth(prf_id, shared, message=message, nonce=nonce, sk_p=sk_p, id_body=id_body)
    return hmac.compare_digest(expected, received)


def signed_octets(prf_id: Prf, *, message: bytes, nonce: bytes, sk_p: Secret, id_body: bytes) -> bytes:
    """Return RealMessage | Nonce | MACedID: what a signature would cover too."""
    return message + nonce + prf(prf_id, sk_p.reveal(), id_body)
