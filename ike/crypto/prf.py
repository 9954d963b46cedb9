"""Pseudo-random functions (RFC 7296 section 2.13, RFC 4868)."""

from __future__ import annotations

import hmac

from ike.errors import LocalError
from policy.proposals import Prf

#: Hash of each HMAC and its output length, which is also its preferred key length (section 2.13).
_HASHES: dict[Prf, tuple[str, int]] = {
    Prf.HMAC_MD5: ("md5", 16),  # RFC 2104
    Prf.HMAC_SHA1: ("sha1", 20),  # RFC 2104
    Prf.HMAC_SHA2_256: ("sha256", 32),  # RFC 4868 section 2.7
    Prf.HMAC_SHA2_384: ("sha384", 48),  # RFC 4868 section 2.7
    Prf.HMAC_SHA2_512: ("sha512", 64),  # RFC 4868 section 2.7
}
#: prf+ numbers its blocks with one octet (RFC 7296 section 2.13).
_MAX_BLOCKS = 255


def prf(prf_id: Prf, key: bytes, data: bytes) -> bytes:
    """Return prf(key, data)."""
    return hmac.digest(key, data, _HASHES[prf_id][0])


def prf_plus(prf_id: Prf, key: bytes, seed: bytes, length: int) -> bytes:
    """Return the first *length* octets of prf+ (key, seed) (section 2.13).

    T1 = prf (K, S | 0x01), T2 = prf (K, T1 | S | 0x02), ...: at most 255 blocks, else LocalError.
    """
    size = prf_output_length(prf_id)
    if not 0 <= length <= _MAX_BLOCKS * size:
        raise LocalError(f"{length} octets of prf+ with {prf_id.name}")
    block = output = b""
    for number in range(1, -(-length // size) + 1):
        block = prf(prf_id, key, block + seed + bytes([number]))
        output += block
    return output[:length]


def prf_key_length(prf_id: Prf) -> int:
    """Return the preferred key length in octets: that of SK_d, SK_pi and SK_pr (section 2.14)."""
    return _HASHES[prf_id][1]


def prf_output_length(prf_id: Prf) -> int:
    """Return the output length in octets."""
    return _HASHES[prf_id][1]
