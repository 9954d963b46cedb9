"""What Windows Server 2003 offered, in its own order: for systems that speak nothing newer.

None of it is safe today: DES and its small groups are broken by brute force, 3DES by collisions after some
gigabytes, and SHA-1 and MD5 are tolerable in HMAC only. A config gets it by a preset, and ``check`` warns.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from policy.clock import SECOND
from policy.lifetimes import Lifetime
from policy.model import SecurityMethod
from policy.proposals import Encr, Group, Integ, Prf, Proposal
from policy.suites import parse_ike_proposal, parse_method

#: The preset of key exchange settings.
IKE_PRESET = "windows-2003"


def _methods(*texts: str) -> tuple[SecurityMethod, ...]:
    return tuple(parse_method(text, historical=True) for text in texts)


#: Main mode methods of the console's policies, each for eight hours.
IKE_PROPOSALS = tuple(
    parse_ike_proposal(text, historical=True)
    for text in ("3des-sha1-modp1024", "3des-md5-modp1024", "des-sha1-modp768", "des-md5-modp768")
)
#: Security methods by preset: those of "Require Security", "Request Security (Optional)" and the default response
#: rule.
METHODS: Mapping[str, tuple[SecurityMethod, ...]] = MappingProxyType(
    {
        "windows-2003": _methods("esp:3des-sha1", "esp:3des-md5", "esp:des-sha1", "esp:des-md5"),
        "windows-2003-request": _methods("esp:3des-sha1", "esp:des-sha1", "ah:sha1", "ah:md5"),
        "windows-2003-response": _methods(
            "esp:3des-sha1", "esp:3des-md5", "esp:des-sha1", "esp:des-md5", "ah:sha1", "ah:md5"
        ),
    }
)
#: Lifetimes of the same lists; 100,000 KB and a time.
LIFETIMES: Mapping[str, Lifetime] = MappingProxyType(
    {
        "windows-2003": Lifetime(900 * SECOND, 100_000 * 1024),
        "windows-2003-request": Lifetime(900 * SECOND, 100_000 * 1024),
        "windows-2003-response": Lifetime(3600 * SECOND, 100_000 * 1024),
    }
)
_WEAK = frozenset({Encr.DES, Encr.TRIPLE_DES})
_WEAK_INTEGRITY = frozenset({Integ.HMAC_MD5_96, Integ.HMAC_SHA1_96})
_WEAK_PRFS = frozenset({Prf.HMAC_MD5, Prf.HMAC_SHA1})
_WEAK_GROUPS = frozenset({Group.MODP_768, Group.MODP_1024, Group.MODP_1536})


def is_weak(proposal: Proposal) -> bool:
    """Whether *proposal* may end in an algorithm that nobody should trust today (RFC 8221, RFC 8247)."""
    return (
        any(transform.id in _WEAK for transform in proposal.encr)
        or not _WEAK_INTEGRITY.isdisjoint(proposal.integ)
        or not _WEAK_PRFS.isdisjoint(proposal.prf)
        or not _WEAK_GROUPS.isdisjoint(proposal.groups)
    )


def missing(proposal: Proposal) -> Encr | None:
    """Return a cipher of *proposal* that this version cannot compute, or None."""
    return next((Encr(transform.id) for transform in proposal.encr if transform.id in _WEAK), None)
