"""Integrity algorithms by themselves, as AH uses them (RFC 4302 section 3.3.3, RFC 8221 section 6)."""

from __future__ import annotations

import hmac
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from policy.proposals import Integ, Suite
from policy.secret import Secret

#: HMAC by transform: digest, octets of key, octets of ICV (RFC 4868 section 2.6, RFC 2403, RFC 2404).
HMACS = {
    Integ.HMAC_SHA2_256_128: ("sha256", 32, 16),
    Integ.HMAC_SHA2_384_192: ("sha384", 48, 24),
    Integ.HMAC_SHA2_512_256: ("sha512", 64, 32),
    Integ.HMAC_SHA1_96: ("sha1", 20, 12),
    Integ.HMAC_MD5_96: ("md5", 16, 12),
}
#: Octets of key of AES-GMAC; four octets of salt come behind (RFC 4543 section 5.3).
GMACS = {Integ.AES_128_GMAC: 16, Integ.AES_192_GMAC: 24, Integ.AES_256_GMAC: 32}
_SALT = 4


class Mac(Protocol):
    """An integrity algorithm with its key; *size* is the octets of its ICV."""

    size: int

    def compute(self, data: bytes, number: int) -> bytes:
        """Return the ICV of *data*; *number* is the packet's sequence number."""

    def verify(self, data: bytes, icv: bytes) -> bool:
        """Whether *icv* is that of *data*, in constant time."""


class Hmac:
    """HMAC, truncated."""

    __slots__ = ("_digest", "_key", "size")

    def __init__(self, digest: str, size: int, key: bytes) -> None:
        self._digest, self.size, self._key = digest, size, key

    def compute(self, data: bytes, number: int) -> bytes:
        """Return the ICV."""
        return hmac.digest(self._key, data, self._digest)[: self.size]

    def verify(self, data: bytes, icv: bytes) -> bool:
        """Whether *icv* is that of *data*."""
        return hmac.compare_digest(self.compute(data, 0), icv)


class Xcbc:
    """AES-XCBC-MAC-96 (RFC 3566)."""

    __slots__ = ("_chain", "_last", "_padded", "size")

    def __init__(self, key: bytes) -> None:
        self.size = 12
        # Three keys, each a constant block under the given one (section 4).
        ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305
        one, self._last, self._padded = (ecb.update(bytes([number]) * 16) for number in (1, 2, 3))
        self._chain = algorithms.AES(one)

    def compute(self, data: bytes, number: int) -> bytes:
        """Return the ICV."""
        whole = len(data) % 16 == 0 and data != b""
        padded = data if whole else data + b"\x80" + bytes(-(len(data) + 1) % 16)
        mask = self._last if whole else self._padded
        last = bytes(one ^ other for one, other in zip(padded[-16:], mask, strict=True))
        encryptor = Cipher(self._chain, modes.CBC(bytes(16))).encryptor()
        return encryptor.update(padded[:-16] + last)[-16:][:12]

    def verify(self, data: bytes, icv: bytes) -> bool:
        """Whether *icv* is that of *data*."""
        return hmac.compare_digest(self.compute(data, 0), icv)


class Gmac:
    """AES-GMAC (RFC 4543 section 4): the ICV field is an IV of eight octets, then the tag."""

    __slots__ = ("_cipher", "_salt", "size")

    def __init__(self, key: bytes, salt: bytes) -> None:
        self.size = 24
        self._cipher, self._salt = AESGCM(key), salt

    def compute(self, data: bytes, number: int) -> bytes:
        """Return IV and tag: the IV is the sequence number, never used twice under one key."""
        iv = number.to_bytes(8, "big")
        return iv + self._cipher.encrypt(self._salt + iv, b"", data)

    def verify(self, data: bytes, icv: bytes) -> bool:
        """Whether *icv* is that of *data*."""
        try:
            self._cipher.decrypt(self._salt + icv[:8], icv[8:], data)
        except InvalidTag:
            return False
        return True


def mac_of(suite: Suite, key: Secret, salt: Secret) -> Mac:
    """Return the integrity algorithm of a suite. ValueError for one not known here, or a key of a wrong size."""
    integ = suite.integ
    if integ in HMACS:
        digest, key_size, size = HMACS[integ]
        _check(suite, key, key_size)
        return Hmac(digest, size, key.reveal())
    if integ is Integ.AES_XCBC_96:
        _check(suite, key, 16)
        return Xcbc(key.reveal())
    if integ in GMACS:
        _check(suite, key, GMACS[integ])
        if len(salt) != _SALT:
            raise ValueError(f"{integ.name} takes a salt of {_SALT} octets")
        return Gmac(key.reveal(), salt.reveal())
    raise ValueError(f"no integrity algorithm {integ!r}")


def _check(suite: Suite, key: Secret, size: int) -> None:
    if len(key) != size:
        raise ValueError(f"{suite.integ.name} with a key of {len(key)} octets")
