"""Integrity algorithms against published vectors; AES-GMAC in ESP against the kernel's."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from policy.proposals import Encr, Integ, ProtocolId, Suite
from policy.secret import Secret
from tests.support.packets import AHS, GMAC, keys
from tests.support.vectors import vectors
from tunnel.dataplane.macs import mac_of
from tunnel.dataplane.transforms import NullGmac, esp_transform

_EMPTY = Secret(b"")


@pytest.mark.parametrize("case", vectors("integrity")["vectors"], ids=lambda case: case["algorithm"])
def test_published_values(case: dict[str, Any]) -> None:
    suite = Suite(ProtocolId.AH, integ=Integ[case["algorithm"]])
    mac = mac_of(suite, Secret(bytes.fromhex(case["key"])), _EMPTY)
    data, icv = bytes.fromhex(case["data"]), bytes.fromhex(case["icv"])
    assert mac.size == len(icv)
    assert mac.compute(data, 7) == icv
    assert mac.verify(data, icv)
    assert not mac.verify(data + b"x", icv)
    assert not mac.verify(data, icv[:-1] + bytes((icv[-1] ^ 1,)))


@pytest.mark.parametrize("suite", [suite for suite in AHS if "GMAC" in suite.integ.name], ids=str)
def test_gmac_is_gcm_of_no_plaintext(suite: Suite) -> None:
    _, salt, key = keys(suite)
    mac = mac_of(suite, Secret(key), Secret(salt))
    icv = mac.compute(b"covered", 0x1_0000_0002)
    assert icv[:8] == b"\0\0\0\1\0\0\0\2"
    assert icv[8:] == AESGCM(key).encrypt(salt + icv[:8], b"", b"covered")
    assert mac.verify(b"covered", icv)
    assert not mac.verify(b"covereD", icv)
    assert not mac.verify(b"covered", b"\1" + icv[1:])


@pytest.mark.parametrize("case", vectors("esp_gmac")["vectors"])
def test_gmac_in_esp(case: dict[str, str]) -> None:
    key, salt, header, iv, payload, tag = (bytes.fromhex(text) for name, text in case.items())
    transform = NullGmac(key, salt)
    assert transform.seal(header, int.from_bytes(iv, "big"), payload, b"") == header + iv + payload + tag
    assert transform.open(header + iv + payload + tag, b"") == payload


@pytest.mark.parametrize(
    "suite",
    [
        Suite(ProtocolId.AH),
        Suite(ProtocolId.AH, integ=Integ.HMAC_SHA2_256_128),
        Suite(ProtocolId.AH, integ=Integ.AES_XCBC_96),
        Suite(ProtocolId.AH, integ=Integ.AES_128_GMAC),
    ],
    ids=str,
)
def test_keys_of_wrong_sizes_are_refused(suite: Suite) -> None:
    with pytest.raises(ValueError, match=r"integrity|octets"):
        mac_of(suite, Secret(bytes(5)), _EMPTY)


def test_gmac_needs_its_salt() -> None:
    with pytest.raises(ValueError, match="salt of 4"):
        mac_of(Suite(ProtocolId.AH, integ=Integ.AES_128_GMAC), Secret(bytes(16)), _EMPTY)
    with pytest.raises(ValueError, match="salt of 4"):
        esp_transform(GMAC, Secret(bytes(16)), _EMPTY, _EMPTY)


def test_esp_takes_no_gmac_beside_a_cipher() -> None:
    suite = Suite(ProtocolId.ESP, Encr.AES_CBC, 128, Integ.AES_128_GMAC)
    with pytest.raises(ValueError, match="no ESP integrity"):
        esp_transform(suite, Secret(bytes(16)), _EMPTY, Secret(bytes(16)))
