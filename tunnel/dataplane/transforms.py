"""What a suite does to an ESP packet: confidentiality, integrity, sizes (RFC 4303 sections 2 and 3.3.2).

An AEAD cipher is used directly by the burst loops of ``esp`` (``Aead``); everything else is a cipher, then a MAC
(``Separate``). Algorithms are rows of tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from policy.proposals import Encr, Integ, Suite
from policy.secret import Secret
from tunnel.dataplane.contract import Buffer
from tunnel.dataplane.macs import HMACS, Mac, mac_of


class AeadCipher(Protocol):
    """The two calls of `cryptography`'s AEAD classes."""

    def encrypt(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None) -> bytes:
        """Return ciphertext and tag."""

    def decrypt(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None) -> bytes:
        """Return the plaintext, or raise InvalidTag."""


@dataclass(frozen=True, slots=True)
class Aead:
    """AES-GCM (RFC 4106) and ChaCha20-Poly1305 (RFC 7634): nonce is salt and IV, the IV is the sequence number."""

    cipher: AeadCipher
    salt: bytes
    iv_size: int = 8
    icv_size: int = 16
    #: The plaintext with its trailer is a multiple of this.
    block: int = 4


class Separate:
    """A cipher in CBC mode, or NULL, and a MAC over header, IV, ciphertext and the high half of an ESN.

    RFC 4303 section 2.2.1 (ESN), RFC 3602 (AES-CBC), RFC 2410 (NULL), RFC 4868 (HMAC-SHA2).
    """

    __slots__ = ("_cipher", "_iv_cipher", "_mac", "block", "icv_size", "iv_size")

    def __init__(self, cipher: algorithms.AES | None, mac: Mac) -> None:
        self._cipher = cipher
        self._mac = mac
        self.icv_size = mac.size
        self.iv_size = self.block = 16
        self._iv_cipher = None
        if cipher is None:
            self.iv_size, self.block = 0, 4
        else:
            # The IV is the sequence number under the same key: unpredictable without it (SP 800-38A appendix C).
            self._iv_cipher = Cipher(cipher, modes.ECB()).encryptor()  # noqa: S305

    def seal(self, header: bytes, number: int, plaintext: bytes, high: bytes) -> bytes:
        """Return the ESP packet: *header* (SPI and sequence number), IV, ciphertext and ICV.

        *number* is the whole sequence number; *high* is its upper half under ESN, else empty.
        """
        if self._cipher is None or self._iv_cipher is None:
            body = header + plaintext
        else:
            iv = self._iv_cipher.update(number.to_bytes(16, "big"))
            body = header + iv + encrypt_cbc(self._cipher, iv, plaintext)
        return body + self._mac.compute(body + high, number)

    def open(self, packet: Buffer, high: bytes) -> bytes:
        """Return the plaintext of *packet*, long enough for IV and ICV. InvalidTag if it is forged."""
        view = memoryview(packet)
        end = len(view) - self.icv_size
        body = bytes(view[:end])
        if not self._mac.verify(body + high, bytes(view[end:])):
            raise InvalidTag
        if self._cipher is None:
            return body[8:]
        if (end - 24) % 16:
            return b""  # authentic, yet no CBC ciphertext: the trailer check refuses it
        return decrypt_cbc(self._cipher, body[8:24], body[24:])


class NullGmac(Separate):
    """ENCR_NULL_AUTH_AES_GMAC (RFC 4543 section 3): nothing is hidden, and IV and tag are AES-GCM's."""

    __slots__ = ("_gcm", "_salt")

    def __init__(self, key: bytes, salt: bytes) -> None:
        super().__init__(None, _NoMac())
        self._gcm, self._salt = AESGCM(key), salt
        self.iv_size, self.icv_size = 8, 16

    def seal(self, header: bytes, number: int, plaintext: bytes, high: bytes) -> bytes:
        """See ``Separate``; the upper half of an ESN stands before the lower (section 3.3)."""
        iv = number.to_bytes(8, "big")
        covered = b"".join((header[:4], high, header[4:], iv, plaintext))
        return header + iv + plaintext + self._gcm.encrypt(self._salt + iv, b"", covered)

    def open(self, packet: Buffer, high: bytes) -> bytes:
        """See ``Separate``."""
        octets = bytes(packet)
        body, iv = octets[:-16], octets[8:16]
        self._gcm.decrypt(self._salt + iv, octets[-16:], b"".join((body[:4], high, body[4:])))
        return body[16:]


#: ESP's algorithms of one SA, with its keys.
EspTransform: TypeAlias = Aead | Separate


class _NoMac:
    """What an AH SA has for ESP: nothing."""

    size = 0

    def compute(self, data: bytes, number: int) -> bytes:
        """There is no ESP."""
        raise TypeError("an AH SA seals no ESP")

    def verify(self, data: bytes, icv: bytes) -> bool:
        """There is no ESP."""
        return False


#: Stands for ESP's algorithms in an AH SA.
NO_ESP: EspTransform = Separate(None, _NoMac())

#: Octets of key by cipher; a cipher with several lengths lists them.
_KEY_SIZES = {
    Encr.AES_GCM_16: (16, 24, 32),
    Encr.CHACHA20_POLY1305: (32,),
    Encr.AES_CBC: (16, 24, 32),
    Encr.NULL: (0,),
    Encr.NULL_AUTH_AES_GMAC: (16, 24, 32),
}
_SALT_SIZE = 4


def esp_transform(suite: Suite, encryption_key: Secret, salt: Secret, integrity_key: Secret) -> EspTransform:
    """Return the transform of an ESP suite. ValueError for an algorithm not known here or a key of a wrong size.

    Encryption without integrity does not exist here (RFC 8221 section 4).
    """
    encr = suite.encr
    sizes = _KEY_SIZES.get(encr) if encr is not None else None
    if encr is None or sizes is None:
        raise ValueError(f"no ESP cipher {encr!r}")
    if len(encryption_key) not in sizes or (suite.key_bits and suite.key_bits != len(encryption_key) * 8):
        raise ValueError(f"{encr.name} with a key of {len(encryption_key)} octets")
    if suite.aead or encr is Encr.NULL_AUTH_AES_GMAC:
        if len(salt) != _SALT_SIZE or suite.integ is not Integ.NONE:
            raise ValueError(f"{encr.name} takes a salt of {_SALT_SIZE} octets and no integrity algorithm")
        key = encryption_key.reveal()
        if encr is Encr.NULL_AUTH_AES_GMAC:
            return NullGmac(key, salt.reveal())
        return Aead(AESGCM(key) if encr is Encr.AES_GCM_16 else ChaCha20Poly1305(key), salt.reveal())
    if suite.integ not in HMACS and suite.integ is not Integ.AES_XCBC_96:
        raise ValueError(f"no ESP integrity algorithm {suite.integ!r} beside {encr.name}")
    cipher = None if encr is Encr.NULL else algorithms.AES(encryption_key.reveal())
    return Separate(cipher, mac_of(suite, integrity_key, salt))


def encrypt_cbc(cipher: algorithms.AES, iv: bytes, plaintext: bytes) -> bytes:
    """Return the CBC ciphertext of whole blocks (RFC 3602 section 2)."""
    encryptor = Cipher(cipher, modes.CBC(iv)).encryptor()
    return encryptor.update(plaintext) + encryptor.finalize()


def decrypt_cbc(cipher: algorithms.AES, iv: bytes, ciphertext: bytes) -> bytes:
    """Return the plaintext of whole blocks."""
    decryptor = Cipher(cipher, modes.CBC(iv)).decryptor()
    return decryptor.update(ciphertext) + decryptor.finalize()
