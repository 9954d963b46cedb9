"""Protection of the Encrypted payload's octets (RFC 7296 section 3.14, RFC 5282, RFC 7634).

One ``IkeCipher`` serves one direction of one IKE SA, because it owns the counter that its IVs come from. What it
seals and opens is IV, ciphertext and integrity check value; the associated data is the whole message before the
IV. With a combined-mode cipher that is its associated data, with others the start of what the MAC covers.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from ike.errors import IntegrityError, LocalError
from policy.proposals import Encr, Integ, Suite
from policy.secret import Secret

_AES_BLOCK = 16
_AES_KEY_BITS = (128, 192, 256)
#: Explicit IV and salt of the combined-mode ciphers (RFC 5282 section 4, RFC 7634 section 2).
_AEAD_IV, AEAD_SALT, _AEAD_TAG = 8, 4, 16
_MAX_MESSAGES = 2**64 - 1

#: Hash, key length and truncated length (RFC 2403, RFC 2404, RFC 4868 section 2).
_MACS: dict[Integ, tuple[str, int, int]] = {
    Integ.HMAC_MD5_96: ("md5", 16, 12),
    Integ.HMAC_SHA1_96: ("sha1", 20, 12),
    Integ.HMAC_SHA2_256_128: ("sha256", 32, 16),
    Integ.HMAC_SHA2_384_192: ("sha384", 48, 24),
    Integ.HMAC_SHA2_512_256: ("sha512", 64, 32),
}


class IkeCipher:
    """Seals and opens in one direction. Raises LocalError if the suite is not one that IKE can use."""

    __slots__ = ("_counter", "_method")

    def __init__(self, suite: Suite, key: Secret, salt: Secret, integrity_key: Secret) -> None:
        self._method = _method(suite, key, salt, integrity_key)
        self._counter = 0

    def overhead(self) -> int:
        """Return the octets of IV and integrity check value together."""
        return self._method.iv_length + self._method.icv_length

    def padded(self, length: int) -> int:
        """Return *length* octets of payloads with padding and the pad length octet."""
        return -(-(length + 1) // self._method.block) * self._method.block

    def sealed_length(self, length: int) -> int:
        """Return the octets that *length* octets of payloads become."""
        return self.overhead() + self.padded(length)

    def room(self, length: int) -> int:
        """Return the most octets of payloads that fit in *length* sealed octets; negative if none do."""
        return (length - self.overhead()) // self._method.block * self._method.block - 1

    def seal(self, plaintext: bytes, aad: bytes) -> bytes:
        """Return IV, ciphertext and integrity check value; padding is added here, zero octets.

        IVs are never repeated: they are a counter, for CBC encrypted into something unpredictable
        (NIST SP 800-38A appendix C). A sealed message is kept for retransmission, never sealed again.
        """
        if self._counter == _MAX_MESSAGES:
            raise LocalError("IVs are used up")
        self._counter += 1
        padding = self.padded(len(plaintext)) - len(plaintext) - 1
        return self._method.seal(self._counter, plaintext + bytes(padding) + bytes([padding]), aad)

    def open(self, body: bytes, aad: bytes) -> bytes:
        """Return the payload octets without padding. IntegrityError says nothing about what was wrong."""
        if len(body) < self.sealed_length(0) or (len(body) - self.overhead()) % self._method.block:
            raise IntegrityError("protected payload of an impossible length")
        plaintext = self._method.open(body, aad)
        padding = plaintext[-1]
        if padding >= len(plaintext):
            raise IntegrityError("authenticated padding is longer than its payload")
        return plaintext[: len(plaintext) - 1 - padding]

    def __repr__(self) -> str:
        return f"IkeCipher({type(self._method).__name__})"


def encryption_key_length(suite: Suite) -> int:
    """Return the octets of encryption key in a direction, without salt (RFC 7296 section 2.17)."""
    if suite.encr is None or suite.encr is Encr.NULL:
        return 0
    fixed = _FIXED_KEYS.get(suite.encr)
    return suite.key_bits // 8 if fixed is None else fixed


def salt_length(suite: Suite) -> int:
    """Return the octets of salt in a direction, taken from the keying material after the key."""
    if suite.encr is Encr.AES_CTR or suite.encr is Encr.NULL_AUTH_AES_GMAC:  # RFC 3686, RFC 4543
        return AEAD_SALT
    if suite.integ in _GMAC_KEYS:  # RFC 4543 section 3.3
        return AEAD_SALT
    return AEAD_SALT if suite.aead else 0


def integrity_key_length(suite: Suite) -> int:
    """Return the octets of integrity key in a direction, 0 for combined-mode ciphers."""
    if suite.aead or suite.integ is Integ.NONE:
        return 0
    if suite.integ in _GMAC_KEYS:
        return _GMAC_KEYS[suite.integ]
    if suite.integ is Integ.AES_XCBC_96:  # RFC 3566
        return 16
    return _MACS[suite.integ][1]


def supported(suite: Suite) -> bool:
    """Whether ``IkeCipher`` can protect an IKE SA with *suite*."""
    if suite.encr is Encr.CHACHA20_POLY1305:
        return suite.integ is Integ.NONE
    if suite.key_bits not in _AES_KEY_BITS:
        return False
    if suite.encr is Encr.AES_GCM_16:
        return suite.integ is Integ.NONE
    return suite.encr is Encr.AES_CBC and suite.integ in _MACS


_FIXED_KEYS = {Encr.DES: 8, Encr.TRIPLE_DES: 24, Encr.CHACHA20_POLY1305: 32}
_GMAC_KEYS = {Integ.AES_128_GMAC: 16, Integ.AES_192_GMAC: 24, Integ.AES_256_GMAC: 32}


class _Method(Protocol):
    """One way to protect; lengths in octets, *block* is what plaintext with padding is a multiple of."""

    iv_length: int
    icv_length: int
    block: int

    def seal(self, counter: int, plaintext: bytes, aad: bytes) -> bytes: ...

    def open(self, body: bytes, aad: bytes) -> bytes: ...


def _method(suite: Suite, key: Secret, salt: Secret, integrity_key: Secret) -> _Method:
    if not supported(suite):
        raise LocalError("a suite that the IKE SA cannot be protected with")
    lengths = (encryption_key_length(suite), salt_length(suite), integrity_key_length(suite))
    if (len(key), len(salt), len(integrity_key)) != lengths:
        raise LocalError("keys of wrong lengths")
    if suite.encr is Encr.AES_GCM_16:
        return _Aead(AESGCM(key.reveal()), salt)
    if suite.encr is Encr.CHACHA20_POLY1305:
        return _Aead(ChaCha20Poly1305(key.reveal()), salt)
    return _CbcHmac(key, suite.integ, integrity_key)


@dataclass(slots=True, repr=False)
class _Aead:
    """AES-GCM (RFC 5282) and ChaCha20-Poly1305 (RFC 7634): nonce = salt | explicit IV, no padding needed."""

    cipher: AESGCM | ChaCha20Poly1305
    salt: Secret
    iv_length: int = _AEAD_IV
    icv_length: int = _AEAD_TAG
    block: int = 1

    def seal(self, counter: int, plaintext: bytes, aad: bytes) -> bytes:
        iv = counter.to_bytes(_AEAD_IV, "big")
        return iv + self.cipher.encrypt(self.salt.reveal() + iv, plaintext, aad)

    def open(self, body: bytes, aad: bytes) -> bytes:
        try:
            return self.cipher.decrypt(self.salt.reveal() + body[:_AEAD_IV], body[_AEAD_IV:], aad)
        except InvalidTag:
            raise IntegrityError("integrity check failed") from None


class _CbcHmac:
    """AES-CBC, then HMAC over the message from its first octet to the end of the ciphertext (section 3.14)."""

    __slots__ = ("_algorithm", "_hash", "_integrity_key", "block", "icv_length", "iv_length")

    def __init__(self, key: Secret, integ: Integ, integrity_key: Secret) -> None:
        self._algorithm = algorithms.AES(key.reveal())
        self._hash, _, self.icv_length = _MACS[integ]
        self._integrity_key = integrity_key
        self.iv_length = self.block = _AES_BLOCK

    def seal(self, counter: int, plaintext: bytes, aad: bytes) -> bytes:
        block = Cipher(self._algorithm, modes.ECB()).encryptor()  # noqa: S305  # one block: the IV
        iv = block.update(counter.to_bytes(_AES_BLOCK, "big")) + block.finalize()
        encryptor = Cipher(self._algorithm, modes.CBC(iv)).encryptor()
        sealed = iv + encryptor.update(plaintext) + encryptor.finalize()
        return sealed + self._mac(aad + sealed)

    def open(self, body: bytes, aad: bytes) -> bytes:
        sealed, icv = body[: -self.icv_length], body[-self.icv_length :]
        if not hmac.compare_digest(self._mac(aad + sealed), icv):
            raise IntegrityError("integrity check failed")
        decryptor = Cipher(self._algorithm, modes.CBC(sealed[:_AES_BLOCK])).decryptor()
        return decryptor.update(sealed[_AES_BLOCK:]) + decryptor.finalize()

    def _mac(self, data: bytes) -> bytes:
        return hmac.digest(self._integrity_key.reveal(), data, self._hash)[: self.icv_length]
