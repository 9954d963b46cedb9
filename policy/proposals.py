"""Transforms, proposals and their choice (RFC 7296 section 3.3); the numbers are IANA's.

This file owns the transform numbers, because policy names them; ``ike.constants`` imports them from here.
The text forms ("aes256gcm16-prfsha384-x25519", "esp:aes128-sha256") are parsed in ``policy.suites``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ProtocolId(IntEnum):
    """Security protocol identifiers (RFC 7296 section 3.3.1)."""

    IKE = 1
    AH = 2
    ESP = 3


class TransformType(IntEnum):
    """Transform types (RFC 7296 section 3.3.2; 4 was renamed by RFC 9370)."""

    ENCR = 1
    PRF = 2
    INTEG = 3
    KE = 4
    ESN = 5


class Encr(IntEnum):
    """Transform type 1, encryption algorithms."""

    DES = 2
    TRIPLE_DES = 3
    NULL = 11
    AES_CBC = 12
    AES_CTR = 13
    AES_GCM_8 = 18
    AES_GCM_12 = 19
    AES_GCM_16 = 20
    NULL_AUTH_AES_GMAC = 21
    CHACHA20_POLY1305 = 28


class Prf(IntEnum):
    """Transform type 2, pseudo-random functions."""

    HMAC_MD5 = 1
    HMAC_SHA1 = 2
    HMAC_SHA2_256 = 5
    HMAC_SHA2_384 = 6
    HMAC_SHA2_512 = 7


class Integ(IntEnum):
    """Transform type 3, integrity algorithms."""

    NONE = 0
    HMAC_MD5_96 = 1
    HMAC_SHA1_96 = 2
    AES_XCBC_96 = 5
    AES_128_GMAC = 9
    AES_192_GMAC = 10
    AES_256_GMAC = 11
    HMAC_SHA2_256_128 = 12
    HMAC_SHA2_384_192 = 13
    HMAC_SHA2_512_256 = 14


class Group(IntEnum):
    """Transform type 4, key exchange methods."""

    NONE = 0
    MODP_768 = 1
    MODP_1024 = 2
    MODP_1536 = 5
    MODP_2048 = 14
    MODP_3072 = 15
    MODP_4096 = 16
    ECP_256 = 19
    ECP_384 = 20
    ECP_521 = 21
    X25519 = 31
    X448 = 32


class Esn(IntEnum):
    """Transform type 5, extended sequence numbers."""

    NO = 0
    YES = 1


#: Combined-mode ciphers: they are negotiated without an integrity algorithm (RFC 7296 section 3.3).
AEAD = frozenset({Encr.AES_GCM_8, Encr.AES_GCM_12, Encr.AES_GCM_16, Encr.CHACHA20_POLY1305})
#: Ciphers whose transform carries the Key Length attribute (RFC 7296 section 3.3.5).
VARIABLE_KEY = frozenset(
    {Encr.AES_CBC, Encr.AES_CTR, Encr.AES_GCM_8, Encr.AES_GCM_12, Encr.AES_GCM_16, Encr.NULL_AUTH_AES_GMAC}
)


@dataclass(frozen=True, slots=True, order=True)
class Transform:
    """One transform: a type, an identifier and, for variable-key ciphers, the key length in bits.

    Unknown identifiers survive a round trip; they are merely never chosen.
    """

    type: int
    id: int
    key_bits: int | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """Acceptable transforms of one protocol, each type in order of preference (RFC 7296 section 3.3.1).

    An empty tuple means that the type is not negotiated (INTEG of an AEAD cipher, KE without PFS).
    """

    protocol: ProtocolId
    encr: tuple[Transform, ...] = ()
    prf: tuple[Prf, ...] = ()
    integ: tuple[Integ, ...] = ()
    groups: tuple[Group, ...] = ()
    esn: tuple[Esn, ...] = ()
    #: As the operator wrote it, for messages.
    text: str = ""


@dataclass(frozen=True, slots=True)
class Suite:
    """The transforms chosen for one SA, exactly one of each negotiated type."""

    protocol: ProtocolId
    encr: Encr | None = None
    key_bits: int = 0
    integ: Integ = Integ.NONE
    prf: Prf | None = None
    group: Group = Group.NONE
    esn: bool = False

    @property
    def aead(self) -> bool:
        """Whether one transform does both encryption and integrity."""
        return self.encr in AEAD
