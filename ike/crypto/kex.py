"""Key exchange methods (RFC 7296 section 3.4): MODP, ECP (RFC 5903), X25519 and X448 (RFC 8031).

A private key comes from entropy that is an argument. A peer's public value passes the tests of RFC 6989 before
it meets the private key.
"""

from __future__ import annotations

from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec, x448, x25519

from ike.crypto.modp import GENERATOR, exponent_length, modp_length, modp_power, prime
from ike.errors import InvalidPublicValue, LocalError
from policy.clock import Entropy
from policy.proposals import Group
from policy.secret import Secret


class KeyExchange:
    """Our half of one key exchange: used once, then forgotten (section 2.12)."""

    __slots__ = ("_method", "group", "public")

    def __init__(self, group: Group, method: _Method) -> None:
        self.group = group
        self._method = method
        #: Key exchange data of our KE payload, of the length that the group fixes.
        self.public: bytes = method.public

    def shared(self, peer_public: bytes) -> Secret:
        """Return g^ir of fixed length. InvalidPublicValue if the peer's value fails a test."""
        if len(peer_public) != len(self.public):
            raise InvalidPublicValue(
                f"{self.group.name} public value of {len(peer_public)} octets, not {len(self.public)}"
            )
        return Secret(self._method.shared(peer_public))

    def __repr__(self) -> str:
        return f"KeyExchange({self.group.name})"


def generate(group: Group, entropy: Entropy) -> KeyExchange:
    """Return a fresh private key of *group*. LocalError for a group that we cannot do."""
    match group:
        case Group.X25519:
            return KeyExchange(group, _X25519(entropy(32)))
        case Group.X448:
            return KeyExchange(group, _X448(entropy(56)))
        case Group.ECP_256 | Group.ECP_384 | Group.ECP_521:
            return KeyExchange(group, _Ecp(*_CURVES[group], entropy))
        case Group.NONE:
            raise LocalError("a key exchange without a method")
        case _:
            return KeyExchange(group, _Modp(group, entropy))


def public_length(group: Group) -> int:
    """Return the octets of key exchange data that *group* fixes (section 3.4)."""
    match group:
        case Group.X25519:
            return 32
        case Group.X448:
            return 56
        case Group.ECP_256 | Group.ECP_384 | Group.ECP_521:
            return 2 * _octets(_CURVES[group][0])
        case Group.NONE:
            return 0
        case _:
            return modp_length(group)


class _Method(Protocol):
    """One kind of group; ``shared`` gets a value of the right length."""

    public: bytes

    def shared(self, peer: bytes) -> bytes: ...


class _Modp:
    __slots__ = ("_exponent", "_group", "public")

    def __init__(self, group: Group, entropy: Entropy) -> None:
        self._group = group
        self._exponent = 2 + int.from_bytes(entropy(exponent_length(group)), "big")
        self.public = modp_power(group, GENERATOR, self._exponent)

    def shared(self, peer: bytes) -> bytes:
        """The groups' primes are safe ones: 1 < value < p-1 is the whole test (RFC 6989 section 2.1)."""
        value = int.from_bytes(peer, "big")
        if not 1 < value < prime(self._group) - 1:
            raise InvalidPublicValue(f"{self._group.name} public value out of range")
        return modp_power(self._group, value, self._exponent)


#: Curve and prime of its field.
_CURVES: dict[Group, tuple[ec.EllipticCurve, int]] = {
    Group.ECP_256: (ec.SECP256R1(), 2**256 - 2**224 + 2**192 + 2**96 - 1),  # RFC 5903 section 3.1
    Group.ECP_384: (ec.SECP384R1(), 2**384 - 2**128 - 2**96 + 2**32 - 1),  # RFC 5903 section 3.2
    Group.ECP_521: (ec.SECP521R1(), 2**521 - 1),  # RFC 5903 section 3.3
}


def _octets(curve: ec.EllipticCurve) -> int:
    return (curve.key_size + 7) // 8


class _Ecp:
    """Public values are x | y (RFC 5903 section 7); the shared secret is x alone."""

    __slots__ = ("_curve", "_field", "_private", "public")

    def __init__(self, curve: ec.EllipticCurve, field: int, entropy: Entropy) -> None:
        self._curve = curve
        self._field = field
        # 64 bits more than the order make the remainder even enough (FIPS 186-5 appendix A.2.1).
        number = int.from_bytes(entropy(_octets(curve) + 8), "big") % (curve.group_order - 1) + 1
        self._private = ec.derive_private_key(number, curve)
        numbers = self._private.public_key().public_numbers()
        size = _octets(curve)
        self.public = numbers.x.to_bytes(size, "big") + numbers.y.to_bytes(size, "big")

    def shared(self, peer: bytes) -> bytes:
        """The point must be on the curve and not at infinity (RFC 6989 section 2.3).

        OpenSSL takes coordinates that are not reduced, which P-521's odd bits have room for: so range first.
        """
        size = _octets(self._curve)
        x, y = int.from_bytes(peer[:size], "big"), int.from_bytes(peer[size:], "big")
        if x >= self._field or y >= self._field:
            raise InvalidPublicValue(f"{self._curve.name} public value out of range")
        try:
            public = ec.EllipticCurvePublicNumbers(x, y, self._curve).public_key()
        except ValueError:
            raise InvalidPublicValue(f"{self._curve.name} public value is not on the curve") from None
        return self._private.exchange(ec.ECDH(), public)


class _X25519:
    __slots__ = ("_private", "public")

    def __init__(self, octets: bytes) -> None:
        self._private = x25519.X25519PrivateKey.from_private_bytes(octets)
        self.public = self._private.public_key().public_bytes_raw()

    def shared(self, peer: bytes) -> bytes:
        """An all-zero result means a point of small order (RFC 8031 section 3.2): the library raises."""
        try:
            return self._private.exchange(x25519.X25519PublicKey.from_public_bytes(peer))
        except ValueError:
            raise InvalidPublicValue("X25519 public value of small order") from None


class _X448:
    __slots__ = ("_private", "public")

    def __init__(self, octets: bytes) -> None:
        self._private = x448.X448PrivateKey.from_private_bytes(octets)
        self.public = self._private.public_key().public_bytes_raw()

    def shared(self, peer: bytes) -> bytes:
        """As for X25519."""
        try:
            return self._private.exchange(x448.X448PublicKey.from_public_bytes(peer))
        except ValueError:
            raise InvalidPublicValue("X448 public value of small order") from None
