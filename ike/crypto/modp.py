"""Finite-field Diffie-Hellman over the MODP groups (RFC 7296 appendix B, RFC 3526): the one module that knows it.

``cryptography`` deprecates finite-field DH, and IKE cannot live without it: this file is all that another
implementation has to replace, and the only place where the warning is silenced.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from cryptography.hazmat.primitives.asymmetric import dh
from cryptography.utils import CryptographyDeprecationWarning

from policy.proposals import Group

GENERATOR = 2


def modp_length(group: Group) -> int:
    """Return the octets of a public value and of the shared secret: those of the prime (section 3.4)."""
    return len(_PRIMES[group]) // 2


def exponent_length(group: Group) -> int:
    """Return the octets of entropy for a private exponent: twice the strength RFC 3526 section 8 estimates."""
    return _EXPONENTS[group]


def prime(group: Group) -> int:
    """Return the group's prime."""
    return int(_PRIMES[group], 16)


def modp_power(group: Group, base: int, exponent: int) -> bytes:
    """Return base ** exponent modulo the prime, as long as the prime, leading zeros kept.

    OpenSSL computes it in time that does not tell the exponent. *base* must lie in 2..p-2.
    """
    with _deprecation_silenced():
        parameters = dh.DHParameterNumbers(prime(group), GENERATOR)
        # The public half of our key plays no part in an exchange: the generator stands in for it.
        private = dh.DHPrivateNumbers(exponent, dh.DHPublicNumbers(GENERATOR, parameters)).private_key()
        return private.exchange(dh.DHPublicNumbers(base, parameters).public_key())


@contextmanager
def _deprecation_silenced() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        yield


#: Octets of private exponent; never below 160 bits, which is what the weak groups need against rho.
_EXPONENTS: dict[Group, int] = {
    Group.MODP_768: 20,
    Group.MODP_1024: 20,
    Group.MODP_1536: 24,
    Group.MODP_2048: 40,
    Group.MODP_3072: 56,
    Group.MODP_4096: 64,
}

_PRIMES: dict[Group, str] = {
    # RFC 7296 appendix B.1
    Group.MODP_768: (
        "ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74020bbea63b139b22514a08798e3404dd"
        "ef9519b3cd3a431b302b0a6df25f14374fe1356d6d51c245e485b576625e7ec6f44c42e9a63a3620ffffffffffffffff"
    ),
    # RFC 7296 appendix B.2
    Group.MODP_1024: (
        "ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74020bbea63b139b22514a08798e3404dd"
        "ef9519b3cd3a431b302b0a6df25f14374fe1356d6d51c245e485b576625e7ec6f44c42e9a637ed6b0bff5cb6f406b7ed"
        "ee386bfb5a899fa5ae9f24117c4b1fe649286651ece65381ffffffffffffffff"
    ),
    # RFC 3526 section 2
    Group.MODP_1536: (
        "ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74020bbea63b139b22514a08798e3404dd"
        "ef9519b3cd3a431b302b0a6df25f14374fe1356d6d51c245e485b576625e7ec6f44c42e9a637ed6b0bff5cb6f406b7ed"
        "ee386bfb5a899fa5ae9f24117c4b1fe649286651ece45b3dc2007cb8a163bf0598da48361c55d39a69163fa8fd24cf5f"
        "83655d23dca3ad961c62f356208552bb9ed529077096966d670c354e4abc9804f1746c08ca237327ffffffffffffffff"
    ),
    # RFC 3526 section 3
    Group.MODP_2048: (
        "ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74020bbea63b139b22514a08798e3404dd"
        "ef9519b3cd3a431b302b0a6df25f14374fe1356d6d51c245e485b576625e7ec6f44c42e9a637ed6b0bff5cb6f406b7ed"
        "ee386bfb5a899fa5ae9f24117c4b1fe649286651ece45b3dc2007cb8a163bf0598da48361c55d39a69163fa8fd24cf5f"
        "83655d23dca3ad961c62f356208552bb9ed529077096966d670c354e4abc9804f1746c08ca18217c32905e462e36ce3b"
        "e39e772c180e86039b2783a2ec07a28fb5c55df06f4c52c9de2bcbf6955817183995497cea956ae515d2261898fa0510"
        "15728e5a8aacaa68ffffffffffffffff"
    ),
    # RFC 3526 section 4
    Group.MODP_3072: (
        "ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74020bbea63b139b22514a08798e3404dd"
        "ef9519b3cd3a431b302b0a6df25f14374fe1356d6d51c245e485b576625e7ec6f44c42e9a637ed6b0bff5cb6f406b7ed"
        "ee386bfb5a899fa5ae9f24117c4b1fe649286651ece45b3dc2007cb8a163bf0598da48361c55d39a69163fa8fd24cf5f"
        "83655d23dca3ad961c62f356208552bb9ed529077096966d670c354e4abc9804f1746c08ca18217c32905e462e36ce3b"
        "e39e772c180e86039b2783a2ec07a28fb5c55df06f4c52c9de2bcbf6955817183995497cea956ae515d2261898fa0510"
        "15728e5a8aaac42dad33170d04507a33a85521abdf1cba64ecfb850458dbef0a8aea71575d060c7db3970f85a6e1e4c7"
        "abf5ae8cdb0933d71e8c94e04a25619dcee3d2261ad2ee6bf12ffa06d98a0864d87602733ec86a64521f2b18177b200c"
        "bbe117577a615d6c770988c0bad946e208e24fa074e5ab3143db5bfce0fd108e4b82d120a93ad2caffffffffffffffff"
    ),
    # RFC 3526 section 5
    Group.MODP_4096: (
        "ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74020bbea63b139b22514a08798e3404dd"
        "ef9519b3cd3a431b302b0a6df25f14374fe1356d6d51c245e485b576625e7ec6f44c42e9a637ed6b0bff5cb6f406b7ed"
        "ee386bfb5a899fa5ae9f24117c4b1fe649286651ece45b3dc2007cb8a163bf0598da48361c55d39a69163fa8fd24cf5f"
        "83655d23dca3ad961c62f356208552bb9ed529077096966d670c354e4abc9804f1746c08ca18217c32905e462e36ce3b"
        "e39e772c180e86039b2783a2ec07a28fb5c55df06f4c52c9de2bcbf6955817183995497cea956ae515d2261898fa0510"
        "15728e5a8aaac42dad33170d04507a33a85521abdf1cba64ecfb850458dbef0a8aea71575d060c7db3970f85a6e1e4c7"
        "abf5ae8cdb0933d71e8c94e04a25619dcee3d2261ad2ee6bf12ffa06d98a0864d87602733ec86a64521f2b18177b200c"
        "bbe117577a615d6c770988c0bad946e208e24fa074e5ab3143db5bfce0fd108e4b82d120a92108011a723c12a787e6d7"
        "88719a10bdba5b2699c327186af4e23c1a946834b6150bda2583e9ca2ad44ce8dbbbc2db04de8ef92e8efc141fbecaa6"
        "287c59474e6bc05d99b2964fa090c3a2233ba186515be7ed1f612970cee2d7afb81bdd762170481cd0069127d5b05aa9"
        "93b4ea988d8fddc186ffb7dc90a6c08f4df435c934063199ffffffffffffffff"
    ),
}
