"""IKE ciphers: published values, the layout by hand, and what must not open."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ike.crypto.ciphers import IkeCipher, encryption_key_length, integrity_key_length, salt_length, supported
from ike.errors import IntegrityError, LocalError, Reach
from policy.proposals import Encr, Integ, ProtocolId, Suite
from policy.secret import Secret
from tests.support.vectors import vectors


def suite(encr: Encr, key_bits: int = 0, integ: Integ = Integ.NONE) -> Suite:
    return Suite(ProtocolId.IKE, encr, key_bits, integ)


MACS = [
    Integ.HMAC_MD5_96,
    Integ.HMAC_SHA1_96,
    Integ.HMAC_SHA2_256_128,
    Integ.HMAC_SHA2_384_192,
    Integ.HMAC_SHA2_512_256,
]
SUITES = [
    *(suite(Encr.AES_GCM_16, bits) for bits in (128, 192, 256)),
    suite(Encr.CHACHA20_POLY1305),
    *(suite(Encr.AES_CBC, bits, integ) for bits in (128, 192, 256) for integ in MACS),
]
AAD = bytes(range(32))


def key_octets(of: Suite) -> tuple[bytes, bytes, bytes]:
    lengths = (encryption_key_length(of), salt_length(of), integrity_key_length(of))
    return b"k" * lengths[0], b"s" * lengths[1], b"a" * lengths[2]


def cipher(of: Suite) -> IkeCipher:
    key, salt, integrity = key_octets(of)
    return IkeCipher(of, Secret(key), Secret(salt), Secret(integrity))


@pytest.mark.parametrize("of", SUITES)
def test_round_trip_and_lengths(of: Suite) -> None:
    ours, theirs = cipher(of), cipher(of)
    for length in (*range(40), 255, 256, 1000, 65000):
        plaintext = bytes(index % 251 for index in range(length))
        sealed = ours.seal(plaintext, AAD)
        assert len(sealed) == ours.sealed_length(length)
        assert theirs.open(sealed, AAD) == plaintext
        room = ours.room(len(sealed))
        assert room >= length
        assert ours.sealed_length(room) == len(sealed)
        assert ours.sealed_length(room + 1) > len(sealed)
    assert ours.room(ours.overhead()) < 0


@pytest.mark.parametrize("of", SUITES)
def test_what_was_changed_does_not_open(of: Suite) -> None:
    sealed = cipher(of).seal(b"payloads", AAD)
    for index in range(len(sealed)):
        with pytest.raises(IntegrityError) as caught:
            cipher(of).open(sealed[:index] + bytes([sealed[index] ^ 0x80]) + sealed[index + 1 :], AAD)
        assert caught.value.notify is None
        assert caught.value.reach is Reach.MESSAGE
        with pytest.raises(IntegrityError):
            cipher(of).open(sealed[:index], AAD)
    for aad in (AAD[:-1], AAD + b"\0", b"", bytes(32)):
        with pytest.raises(IntegrityError):
            cipher(of).open(sealed, aad)
    with pytest.raises(IntegrityError):
        cipher(of).open(sealed + bytes(16), AAD)


@pytest.mark.parametrize("of", SUITES)
def test_ivs_are_never_repeated(of: Suite) -> None:
    ours = cipher(of)
    size = 16 if of.encr is Encr.AES_CBC else 8
    ivs = [ours.seal(b"same", AAD)[:size] for _ in range(200)]
    assert len(set(ivs)) == len(ivs)
    if of.encr is not Encr.AES_CBC:
        assert ivs == [number.to_bytes(8, "big") for number in range(1, 201)]
        return
    # CBC's are not predictable without the key: no two share their first half.
    assert len({iv[:8] for iv in ivs}) == len(ivs)


def test_ivs_run_out() -> None:
    ours = cipher(SUITES[0])
    ours._counter = 2**64 - 2
    ours.seal(b"the last one", AAD)
    with pytest.raises(LocalError):
        ours.seal(b"one too many", AAD)


@pytest.mark.parametrize("bits", [128, 192, 256])
def test_gcm_layout(bits: int) -> None:
    """RFC 5282 section 4: salt | IV is the nonce; section 3: IV, ciphertext, 16 octets of ICV; pad length 0."""
    of = suite(Encr.AES_GCM_16, bits)
    key, salt, _ = key_octets(of)
    iv = (1).to_bytes(8, "big")
    assert cipher(of).seal(b"payloads", AAD) == iv + AESGCM(key).encrypt(salt + iv, b"payloads\x00", AAD)


@pytest.mark.parametrize(
    ("integ", "digest", "size"),
    [
        (Integ.HMAC_SHA2_256_128, hashlib.sha256, 16),
        (Integ.HMAC_SHA2_384_192, hashlib.sha384, 24),
        (Integ.HMAC_SHA2_512_256, hashlib.sha512, 32),
        (Integ.HMAC_SHA1_96, hashlib.sha1, 12),
        (Integ.HMAC_MD5_96, hashlib.md5, 12),
    ],
)
def test_cbc_layout(integ: Integ, digest: str, size: int) -> None:
    """RFC 7296 section 3.14: IV, ciphertext, then the MAC over the whole message before it (RFC 4868)."""
    of = suite(Encr.AES_CBC, 256, integ)
    key, _, integrity = key_octets(of)
    sealed = cipher(of).seal(b"payloads", AAD)
    assert sealed[-size:] == hmac.new(integrity, AAD + sealed[:-size], digest).digest()[:size]
    decryptor = Cipher(algorithms.AES(key), modes.CBC(sealed[:16])).decryptor()
    assert decryptor.update(sealed[16:-size]) + decryptor.finalize() == b"payloads" + bytes(7) + b"\x07"


@pytest.mark.parametrize("vector", vectors("aes_cbc")["vectors"])
def test_cbc_known_values(vector: dict[str, str]) -> None:
    of = suite(Encr.AES_CBC, 128, Integ.HMAC_SHA2_256_128)
    ours = IkeCipher(of, Secret(bytes.fromhex(vector["key"])), Secret(b""), Secret(b"a" * 32))
    sealed = bytes.fromhex(vector["iv"] + vector["ciphertext"])
    icv = hmac.new(b"a" * 32, AAD + sealed, hashlib.sha256).digest()[:16]
    # Below the padding, which these plaintexts do not have.
    assert ours._method.open(sealed + icv, AAD).hex() == vector["plaintext"]


def with_plaintext(of: Suite, plaintext: bytes) -> bytes:
    """Seal exactly *plaintext*, padding and all."""
    return cipher(of)._method.seal(1, plaintext, AAD)


def test_any_padding_of_the_peer_is_taken() -> None:
    # Section 3.14: contents of the padding are the sender's choice, up to 255 octets.
    of = suite(Encr.AES_CBC, 128, Integ.HMAC_SHA2_256_128)
    padded = b"payloads" + b"\xee" * 247
    assert cipher(of).open(with_plaintext(of, padded + b"\xf7"), AAD) == b"payloads"
    assert cipher(of).open(with_plaintext(of, bytes(15) + b"\x0f"), AAD) == b""
    aead = suite(Encr.AES_GCM_16, 128)
    assert cipher(aead).open(with_plaintext(aead, b"payloads\x11\x22\x02"), AAD) == b"payloads"


@pytest.mark.parametrize("of", [SUITES[0], SUITES[3], SUITES[6]])
def test_padding_longer_than_the_payload_is_refused(of: Suite) -> None:
    with pytest.raises(IntegrityError):
        cipher(of).open(with_plaintext(of, bytes(15) + b"\x10"), AAD)
    with pytest.raises(IntegrityError):
        cipher(of).open(with_plaintext(of, bytes(15) + b"\xff"), AAD)


@pytest.mark.parametrize("of", SUITES)
def test_every_short_body_is_refused(of: Suite) -> None:
    for length in range(cipher(of).sealed_length(0)):
        with pytest.raises(IntegrityError):
            cipher(of).open(bytes(length), AAD)


@pytest.mark.parametrize(
    "of",
    [
        suite(Encr.AES_CBC, 128),
        suite(Encr.AES_CBC, 0, Integ.HMAC_SHA2_256_128),
        suite(Encr.AES_CBC, 127, Integ.HMAC_SHA2_256_128),
        suite(Encr.AES_CBC, 128, Integ.AES_XCBC_96),
        suite(Encr.AES_GCM_16, 128, Integ.HMAC_SHA2_256_128),
        suite(Encr.AES_GCM_8, 128),
        suite(Encr.CHACHA20_POLY1305, 0, Integ.HMAC_SHA2_256_128),
        suite(Encr.NULL, 0, Integ.HMAC_SHA2_256_128),
        suite(Encr.TRIPLE_DES, 0, Integ.HMAC_SHA1_96),
        Suite(ProtocolId.IKE),
    ],
)
def test_other_suites_are_not_supported(of: Suite) -> None:
    assert not supported(of)
    with pytest.raises(LocalError):
        IkeCipher(of, Secret(b""), Secret(b""), Secret(b""))


@pytest.mark.parametrize("of", SUITES)
def test_keys_of_wrong_lengths_are_ours(of: Suite) -> None:
    assert supported(of)
    key, salt, integrity = key_octets(of)
    for wrong in ((key + b"k", salt, integrity), (key, salt + b"s", integrity), (key, salt, integrity + b"a")):
        with pytest.raises(LocalError):
            IkeCipher(of, *map(Secret, wrong))
