"""Keying material of the IKE SA and of Child SAs (RFC 7296 sections 2.14, 2.17 and 2.18)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ike.crypto.ciphers import IkeCipher, encryption_key_length, integrity_key_length, salt_length
from ike.crypto.prf import prf, prf_key_length, prf_plus
from ike.errors import LocalError
from policy.proposals import Prf, Suite
from policy.secret import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeKeys:
    """SK_d, SK_ai, SK_ar, SK_ei, SK_er, SK_pi, SK_pr; the salts are the ends of SK_ei and SK_er (RFC 5282).

    "i" is the original initiator of this IKE SA.
    """

    sk_d: Secret
    sk_ai: Secret
    sk_ar: Secret
    sk_ei: Secret
    salt_ei: Secret
    sk_er: Secret
    salt_er: Secret
    sk_pi: Secret
    sk_pr: Secret

    def ciphers(self, suite: Suite) -> tuple[IkeCipher, IkeCipher]:
        """Return the cipher that the initiator sends with, and the responder's."""
        return (
            IkeCipher(suite, self.sk_ei, self.salt_ei, self.sk_ai),
            IkeCipher(suite, self.sk_er, self.salt_er, self.sk_ar),
        )

    def wipe(self) -> None:
        """Overwrite every key (section 2.12: keys are forgotten when the SA is closed)."""
        for key in (
            self.sk_d,
            self.sk_ai,
            self.sk_ar,
            self.sk_ei,
            self.salt_ei,
            self.sk_er,
            self.salt_er,
            self.sk_pi,
            self.sk_pr,
        ):
            key.wipe()


class ChildKeys(NamedTuple):
    """Keys of one direction of a Child SA."""

    encryption: Secret
    salt: Secret
    integrity: Secret


def derive_ike_keys(
    suite: Suite,
    ni: bytes,
    nr: bytes,
    spi_i: bytes,
    spi_r: bytes,
    shared: Secret,
    old_sk_d: Secret | None = None,
    old_prf: Prf | None = None,
) -> IkeKeys:
    """Return the keys of an IKE SA.

    SKEYSEED = prf(Ni | Nr, g^ir), or for a rekeyed SA prf(SK_d (old), g^ir (new) | Ni | Nr) with the PRF of
    the old SA, *old_prf* (section 2.18; the suite's own if None); then
    {SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr} = prf+ (SKEYSEED, Ni | Nr | SPIi | SPIr).
    """
    if suite.prf is None:
        raise LocalError("an IKE SA without a PRF")
    seed = skeyseed(suite.prf, ni, nr, shared)
    if old_sk_d is not None:
        seed = rekey_skeyseed(suite.prf if old_prf is None else old_prf, old_sk_d, ni, nr, shared)
    prf_key, integrity = prf_key_length(suite.prf), integrity_key_length(suite)
    encryption, salt = encryption_key_length(suite), salt_length(suite)
    lengths = (prf_key, integrity, integrity, encryption, salt, encryption, salt, prf_key, prf_key)
    material = prf_plus(suite.prf, seed.reveal(), ni + nr + spi_i + spi_r, sum(lengths))
    sk_d, sk_ai, sk_ar, sk_ei, salt_ei, sk_er, salt_er, sk_pi, sk_pr = _split(material, lengths)
    return IkeKeys(
        sk_d=sk_d,
        sk_ai=sk_ai,
        sk_ar=sk_ar,
        sk_ei=sk_ei,
        salt_ei=salt_ei,
        sk_er=sk_er,
        salt_er=salt_er,
        sk_pi=sk_pi,
        sk_pr=sk_pr,
    )


def derive_child_keys(
    suite: Suite, sk_d: Secret, prf_id: Prf, ni: bytes, nr: bytes, shared: Secret | None = None
) -> tuple[ChildKeys, ChildKeys]:
    """Return the keys from initiator to responder, and those from responder to initiator.

    KEYMAT = prf+(SK_d, [g^ir (new) |] Ni | Nr): first the direction from the initiator of the exchange, in each
    the encryption key before the integrity key (section 2.17). *prf_id* is the IKE SA's.
    """
    ((there, back),) = derive_bundle_keys((suite,), sk_d, prf_id, ni, nr, shared)
    return there, back


def derive_bundle_keys(
    suites: Sequence[Suite], sk_d: Secret, prf_id: Prf, ni: bytes, nr: bytes, shared: Secret | None = None
) -> list[tuple[ChildKeys, ChildKeys]]:
    """Return ``derive_child_keys`` for several protocols on one packet, the outermost first.

    In each direction keys are taken in the order in which the headers appear (section 2.17).
    """
    lengths = [length for suite in suites for length in _lengths(suite)]
    seed = (b"" if shared is None else shared.reveal()) + ni + nr
    parts = _split(prf_plus(prf_id, sk_d.reveal(), seed, 2 * sum(lengths)), tuple(lengths * 2))
    there = [_child_keys(suite, parts[3 * at : 3 * at + 3]) for at, suite in enumerate(suites)]
    half = len(lengths)
    back = [_child_keys(suite, parts[half + 3 * at : half + 3 * at + 3]) for at, suite in enumerate(suites)]
    return list(zip(there, back, strict=True))


def skeyseed(prf_id: Prf, ni: bytes, nr: bytes, shared: Secret) -> Secret:
    """Return SKEYSEED = prf(Ni | Nr, g^ir) (section 2.14)."""
    return Secret(prf(prf_id, ni + nr, shared.reveal()))


def rekey_skeyseed(old_prf: Prf, old_sk_d: Secret, ni: bytes, nr: bytes, shared: Secret) -> Secret:
    """Return SKEYSEED = prf(SK_d (old), g^ir (new) | Ni | Nr) (section 2.18)."""
    return Secret(prf(old_prf, old_sk_d.reveal(), shared.reveal() + ni + nr))


def _lengths(suite: Suite) -> tuple[int, int, int]:
    """Return how many octets of KEYMAT a direction takes, part by part."""
    integrity, salt = integrity_key_length(suite), salt_length(suite)
    if suite.encr is None:  # AH: the salt of GMAC ends the integrity key (RFC 4543 section 3.3)
        return integrity, salt, 0
    return encryption_key_length(suite), salt, integrity


def _child_keys(suite: Suite, parts: Sequence[Secret]) -> ChildKeys:
    first, salt, last = parts
    return ChildKeys(last, salt, first) if suite.encr is None else ChildKeys(first, salt, last)


def _split(material: bytes, lengths: tuple[int, ...]) -> list[Secret]:
    parts: list[Secret] = []
    position = 0
    for length in lengths:
        parts.append(Secret(material[position : position + length]))
        position += length
    return parts
