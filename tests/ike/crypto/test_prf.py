"""prf and prf+ against published values and against the formula, written out once more."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest

from ike.crypto.prf import prf, prf_key_length, prf_output_length, prf_plus
from ike.errors import LocalError
from policy.proposals import Prf
from tests.support.vectors import vectors

HASHES = {
    Prf.HMAC_MD5: hashlib.md5,
    Prf.HMAC_SHA1: hashlib.sha1,
    Prf.HMAC_SHA2_256: hashlib.sha256,
    Prf.HMAC_SHA2_384: hashlib.sha384,
    Prf.HMAC_SHA2_512: hashlib.sha512,
}


@pytest.mark.parametrize("vector", vectors("prf_hmac")["vectors"])
def test_known_values(vector: dict[str, Any]) -> None:
    result = prf(Prf[vector["prf"]], bytes.fromhex(vector["key"]), bytes.fromhex(vector["data"]))
    assert result.hex() == vector["output"]


@pytest.mark.parametrize("prf_id", list(Prf))
def test_lengths(prf_id: Prf) -> None:
    assert len(prf(prf_id, b"key", b"data")) == prf_output_length(prf_id) == prf_key_length(prf_id)


@pytest.mark.parametrize("prf_id", list(Prf))
def test_prf_plus_is_the_concatenation_of_numbered_blocks(prf_id: Prf) -> None:
    # T1 = prf (K, S | 0x01), T2 = prf (K, T1 | S | 0x02), T3 = prf (K, T2 | S | 0x03) ... (RFC 7296 2.13)
    key, seed = b"K" * 32, b"S" * 77
    t1 = hmac.new(key, seed + b"\x01", HASHES[prf_id]).digest()
    t2 = hmac.new(key, t1 + seed + b"\x02", HASHES[prf_id]).digest()
    t3 = hmac.new(key, t2 + seed + b"\x03", HASHES[prf_id]).digest()
    whole = t1 + t2 + t3
    for length in (0, 1, len(t1) - 1, len(t1), len(t1) + 1, len(whole) - 1, len(whole)):
        assert prf_plus(prf_id, key, seed, length) == whole[:length]


@pytest.mark.parametrize("prf_id", list(Prf))
def test_prf_plus_ends_after_255_blocks(prf_id: Prf) -> None:
    most = 255 * prf_output_length(prf_id)
    assert len(prf_plus(prf_id, b"k", b"s", most - 1)) == most - 1
    assert len(prf_plus(prf_id, b"k", b"s", most)) == most
    with pytest.raises(LocalError):
        prf_plus(prf_id, b"k", b"s", most + 1)
