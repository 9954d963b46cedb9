"""Published ESP packets, through the receiving path where they are tunnel mode, else through the transform."""

from __future__ import annotations

import hmac
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import algorithms

from policy.path import Path
from policy.proposals import Encr, Integ, ProtocolId, Suite
from policy.secret import Secret
from policy.spd import Mode
from tests.support.packets import ANY4, drain, packet_of, path, snapshot, written
from tests.support.vectors import vectors
from tunnel.dataplane.contract import DropReason, SaParams, WireDatagrams
from tunnel.dataplane.esp import trailers_of
from tunnel.dataplane.reference import ReferenceDataPlane
from tunnel.dataplane.transforms import decrypt_cbc, encrypt_cbc

_INTEGRITY_KEY = bytes(32)


def _plane(
    suite: Suite, key: bytes, salt: bytes, integrity: bytes, spi: int, number: int
) -> tuple[ReferenceDataPlane, Path]:
    """Return a data plane with one inbound SA that expects sequence number *number*."""
    along = path(port=0)
    plane = ReferenceDataPlane()
    plane.load(snapshot(), 0)
    plane.add_sa(
        SaParams(
            spi=spi,
            inbound=True,
            protocol=ProtocolId.ESP,
            mode=Mode.TUNNEL,
            suite=suite,
            encryption_key=Secret(key),
            salt=Secret(salt),
            integrity_key=Secret(integrity),
            path=along,
            selectors=(ANY4,),
            entry="v4",
            child=1,
        ),
        0,
    )
    if number > 1:
        plane._sad.inbound[spi].window.commit(number - 1)
    return plane, along


@pytest.mark.parametrize("case", vectors("esp_gcm")["vectors"], ids=lambda case: f"case {case['case']}")
def test_gcm_packets_are_authentic(case: dict[str, Any]) -> None:
    aad, nonce = bytes.fromhex(case["aad"]), bytes.fromhex(case["nonce"])
    esn = len(aad) == 12
    spi, number = int.from_bytes(aad[:4], "big"), int.from_bytes(aad[4:], "big")
    if spi < 256 or not number:
        spi_on_wire = 0x1000  # the draft uses SPIs that RFC 4303 reserves: the AAD then differs
        suite = Suite(ProtocolId.ESP, Encr.AES_GCM_16, len(case["key"]) * 4, esn=esn)
        plane, along = _plane(suite, bytes.fromhex(case["key"]), nonce[:4], b"", spi_on_wire, number)
        cipher = plane._sad.inbound[spi_on_wire].decrypt
        assert cipher is not None
        opened = cipher(nonce, bytes.fromhex(case["ciphertext"] + case["tag"]), aad)
        assert opened.hex() == case["plaintext"]
        return
    suite = Suite(ProtocolId.ESP, Encr.AES_GCM_16, len(case["key"]) * 4, esn=esn)
    plane, along = _plane(suite, bytes.fromhex(case["key"]), nonce[:4], b"", spi, number)
    packet = aad[:4] + aad[-4:] + nonce[4:] + bytes.fromhex(case["ciphertext"] + case["tag"])
    plane.inbound([WireDatagrams(along, packet)], 1)
    # Authentic; but an IP packet under next header 1 is nothing that tunnel mode delivers.
    stats = plane.query_sa(spi, inbound=True)
    assert stats is not None
    assert (stats.packets, stats.sequence) == (1, number)
    assert {reason: n for reason, n in plane.drops().items() if n} == {DropReason.BAD_PADDING: 1}


@pytest.mark.parametrize("flipped", [None, 0, 8, 20, -1])
def test_the_chacha_packet_is_delivered_and_altered_ones_are_not(flipped: int | None) -> None:
    (case,) = vectors("esp_chacha20poly1305")["vectors"]
    nonce = bytes.fromhex(case["nonce"])
    suite = Suite(ProtocolId.ESP, Encr.CHACHA20_POLY1305)
    plane, along = _plane(suite, bytes.fromhex(case["key"]), nonce[:4], b"", 0x01020304, 5)
    packet = bytearray(bytes.fromhex(case["aad"]) + nonce[4:] + bytes.fromhex(case["ciphertext"] + case["tag"]))
    if flipped is not None:
        packet[flipped] ^= 1
    plane.inbound([WireDatagrams(along, packet)], 1)
    frames = [packet_of(frame).hex() for frame in written(drain(plane))]
    assert frames == ([case["plaintext"][: 84 * 2]] if flipped is None else [])


@pytest.mark.parametrize("case", vectors("esp_aes_cbc")["vectors"], ids=lambda case: f"case {case['case']}")
def test_aes_cbc_packets(case: dict[str, Any]) -> None:
    packet, payload = bytes.fromhex(case["packet"]), bytes.fromhex(case["payload"])
    key, iv, ciphertext = bytes.fromhex(case["key"]), packet[8:24], packet[24:]
    pad = -(len(payload) + 2) % 16
    trailer = bytes(range(1, pad + 1)) + bytes((pad, case["next_header"]))
    cipher = algorithms.AES(key)
    assert decrypt_cbc(cipher, iv, ciphertext) == payload + trailer
    assert encrypt_cbc(cipher, iv, payload + trailer) == ciphertext
    if case["next_header"] != 4:
        return
    assert trailers_of(4)[pad] == trailer
    suite = Suite(ProtocolId.ESP, Encr.AES_CBC, 128, Integ.HMAC_SHA2_256_128)
    spi, number = int.from_bytes(packet[:4], "big"), int.from_bytes(packet[4:8], "big")
    plane, along = _plane(suite, key, b"", _INTEGRITY_KEY, spi, number)
    icv = hmac.digest(_INTEGRITY_KEY, packet, "sha256")[:16]
    plane.inbound([WireDatagrams(along, packet + icv)], 1)
    assert [packet_of(frame) for frame in written(drain(plane))] == [payload]
