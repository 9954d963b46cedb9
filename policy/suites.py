"""The text forms of proposals and security methods, both ways (RFC 7296 section 3.3).

``aes256gcm16-prfsha384-x25519`` is a proposal for an IKE SA, ``esp:aes128-sha256`` and
``ah:sha256+esp:aes256-sha256`` are security methods. The words are strongSwan's. Words for algorithms that are
known but not offered in this version are told apart from words that mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from policy.model import SecurityMethod
from policy.problems import TextError, nearest, quoted
from policy.proposals import (
    AEAD,
    Encr,
    Esn,
    Group,
    Integ,
    Prf,
    Proposal,
    ProtocolId,
    Suite,
    Transform,
    TransformType,
)


def parse_ike_proposal(text: str, *, historical: bool = False) -> Proposal:
    """Return the IKE SA proposal that *text* means. Raises TextError. *historical*: words of Windows 2003 too."""
    words = _sort_words(text, text.split("-"), historical=historical)
    if Integ.AES_XCBC_96 in words.integ or any(t.id == Encr.NULL_AUTH_AES_GMAC for t in words.encr):
        raise TextError(f"in {quoted(text)}: IKE does not use GMAC and XCBC here", 'write "sha256"')
    if words.esn:
        raise TextError(
            f"in {quoted(text)}: extended sequence numbers are for ESP and AH, not for IKE", "remove it"
        )
    _check_ciphers(text, words, ike=True)
    if not words.prf:
        if not words.integ:
            raise TextError(
                f"{quoted(text)} has no pseudo-random function",
                'a combined-mode cipher needs one beside it, such as "prfsha256" or "prfsha384"',
            )
        words.prf = [_PRF_OF[integ] for integ in words.integ]
    if not words.groups:
        raise TextError(f"{quoted(text)} has no key exchange group", 'add one, such as "x25519" or "modp3072"')
    return Proposal(
        ProtocolId.IKE, tuple(words.encr), tuple(words.prf), tuple(words.integ), tuple(words.groups), (), text
    )


def parse_method(text: str, *, historical: bool = False) -> SecurityMethod:
    """Return the security method that *text* means, outermost protocol first. Raises TextError.

    *historical*: words of Windows 2003 too.
    """
    parts = tuple(_parse_protocol(text, part.strip(), historical=historical) for part in text.split("+"))
    kinds = tuple(part.protocol for part in parts)
    if kinds not in ((ProtocolId.ESP,), (ProtocolId.AH,), (ProtocolId.AH, ProtocolId.ESP)):
        raise TextError(
            f"{quoted(text)} does not combine protocols in a way that exists",
            'write "esp:...", "ah:..." or "ah:...+esp:..."',
        )
    return SecurityMethod(parts, text)


def hides(method: SecurityMethod) -> bool:
    """Whether *method* encrypts, whichever of its ciphers is chosen."""
    ciphers = [transform.id for part in method.protocols for transform in part.encr]
    return bool(ciphers) and Encr.NULL not in ciphers and Encr.NULL_AUTH_AES_GMAC not in ciphers


def parse_group(text: str) -> Group:
    """Return the key exchange group that *text* names. Raises TextError."""
    word = _canonical(text)
    if word in _GROUPS:
        return _GROUPS[word]
    raise _unknown(text, word, _GROUPS, what="key exchange group")


def proposal_text(proposal: Proposal) -> str:
    """Return the words of *proposal*, without its protocol: parsing them gives an equal proposal."""
    words = [_name(_ENCR_NAMES, (t.id, t.key_bits), "encr") for t in proposal.encr]
    words += [_name(_INTEG_NAMES, integ, "integ") for integ in proposal.integ]
    words += [_name(_PRF_NAMES, prf, "prf") for prf in proposal.prf]
    words += [_name(_GROUP_NAMES, group, "group") for group in proposal.groups]
    if proposal.esn and proposal.esn != _BOTH_ESN:
        words += ["esn" if esn == Esn.YES else "noesn" for esn in proposal.esn]
    return "-".join(words)


def method_text(method: SecurityMethod) -> str:
    """Return *method* as it is written in a config file."""
    return "+".join(f"{part.protocol.name.lower()}:{proposal_text(part)}" for part in method.protocols)


def suite_text(suite: Suite) -> str:
    """Return the words of a chosen suite: "aes256gcm16-prfsha384-x25519", "aes128-sha256"."""
    words = []
    if suite.encr is not None:
        words.append(_name(_ENCR_NAMES, (suite.encr, suite.key_bits or None), "encr"))
    if suite.integ is not Integ.NONE:
        words.append(_name(_INTEG_NAMES, suite.integ, "integ"))
    if suite.prf is not None:
        words.append(_name(_PRF_NAMES, suite.prf, "prf"))
    if suite.group is not Group.NONE:
        words.append(_name(_GROUP_NAMES, suite.group, "group"))
    return "-".join([*words, "esn"] if suite.esn else words)


def transform_text(type_: int, id_: int, key_bits: int | None = None) -> str:
    """Return the word for one transform; for a number without a word, its type and number."""
    match type_:
        case TransformType.ENCR:
            return _name(_ENCR_NAMES, (id_, key_bits), "encr")
        case TransformType.PRF:
            return _name(_PRF_NAMES, id_, "prf")
        case TransformType.INTEG:
            return _name(_INTEG_NAMES, id_, "integ")
        case TransformType.KE:
            return _name(_GROUP_NAMES, id_, "group")
        case TransformType.ESN:
            return _name({0: "noesn", 1: "esn"}, id_, "esn")
        case _:
            return f"transform-{type_}-{id_}"


def _encr(id_: Encr, bits: int | None = None) -> Transform:
    return Transform(TransformType.ENCR, id_, bits)


_ENCRS: Mapping[str, Transform] = MappingProxyType(
    {
        "aes128": _encr(Encr.AES_CBC, 128),
        "aes192": _encr(Encr.AES_CBC, 192),
        "aes256": _encr(Encr.AES_CBC, 256),
        "aes128gcm16": _encr(Encr.AES_GCM_16, 128),
        "aes192gcm16": _encr(Encr.AES_GCM_16, 192),
        "aes256gcm16": _encr(Encr.AES_GCM_16, 256),
        "chacha20poly1305": _encr(Encr.CHACHA20_POLY1305),
        "null": _encr(Encr.NULL),
        "aes128gmac": _encr(Encr.NULL_AUTH_AES_GMAC, 128),
        "aes192gmac": _encr(Encr.NULL_AUTH_AES_GMAC, 192),
        "aes256gmac": _encr(Encr.NULL_AUTH_AES_GMAC, 256),
    }
)
_INTEGS: Mapping[str, Integ] = MappingProxyType(
    {
        "sha256": Integ.HMAC_SHA2_256_128,
        "sha384": Integ.HMAC_SHA2_384_192,
        "sha512": Integ.HMAC_SHA2_512_256,
        "aesxcbc": Integ.AES_XCBC_96,
    }
)
#: The same words in AH, where GMAC is an integrity algorithm (RFC 4543 section 4).
_AH_GMACS: Mapping[str, Integ] = MappingProxyType(
    {"aes128gmac": Integ.AES_128_GMAC, "aes192gmac": Integ.AES_192_GMAC, "aes256gmac": Integ.AES_256_GMAC}
)
#: What Windows 2003 offered. These words are for presets: nobody should come upon them by writing a config.
_OLD_ENCRS: Mapping[str, Transform] = MappingProxyType({"des": _encr(Encr.DES), "3des": _encr(Encr.TRIPLE_DES)})
_OLD_INTEGS: Mapping[str, Integ] = MappingProxyType({"md5": Integ.HMAC_MD5_96, "sha1": Integ.HMAC_SHA1_96})
_OLD_PRFS: Mapping[str, Prf] = MappingProxyType({"prfmd5": Prf.HMAC_MD5, "prfsha1": Prf.HMAC_SHA1})
_OLD_GROUPS: Mapping[str, Group] = MappingProxyType({"modp768": Group.MODP_768, "modp1024": Group.MODP_1024})
_PRFS: Mapping[str, Prf] = MappingProxyType(
    {"prfsha256": Prf.HMAC_SHA2_256, "prfsha384": Prf.HMAC_SHA2_384, "prfsha512": Prf.HMAC_SHA2_512}
)
_GROUPS: Mapping[str, Group] = MappingProxyType(
    {
        "modp2048": Group.MODP_2048,
        "modp3072": Group.MODP_3072,
        "modp4096": Group.MODP_4096,
        "ecp256": Group.ECP_256,
        "ecp384": Group.ECP_384,
        "ecp521": Group.ECP_521,
        "x25519": Group.X25519,
    }
)
_ESNS: Mapping[str, Esn] = MappingProxyType({"esn": Esn.YES, "noesn": Esn.NO})
_BOTH_ESN = (Esn.YES, Esn.NO)
_PRF_OF: Mapping[Integ, Prf] = MappingProxyType(
    {
        Integ.HMAC_SHA2_256_128: Prf.HMAC_SHA2_256,
        Integ.HMAC_SHA2_384_192: Prf.HMAC_SHA2_384,
        Integ.HMAC_SHA2_512_256: Prf.HMAC_SHA2_512,
        Integ.HMAC_MD5_96: Prf.HMAC_MD5,
        Integ.HMAC_SHA1_96: Prf.HMAC_SHA1,
    }
)
#: Other spellings of the same words: strongSwan's, Libreswan's, OpenSSL's and the RFCs'.
_ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "aes": "aes128",
        "aes128cbc": "aes128",
        "aes192cbc": "aes192",
        "aes256cbc": "aes256",
        "aes128gcm": "aes128gcm16",
        "aes192gcm": "aes192gcm16",
        "aes256gcm": "aes256gcm16",
        "aes128gcm128": "aes128gcm16",
        "aes192gcm128": "aes192gcm16",
        "aes256gcm128": "aes256gcm16",
        "aesgcm128": "aes128gcm16",
        "aesgcm192": "aes192gcm16",
        "aesgcm256": "aes256gcm16",
        "chacha20": "chacha20poly1305",
        "chacha20_poly1305": "chacha20poly1305",
        "sha2": "sha256",
        "sha2_256": "sha256",
        "sha2_384": "sha384",
        "sha2_512": "sha512",
        "hmac_sha256": "sha256",
        "hmac_sha384": "sha384",
        "hmac_sha512": "sha512",
        "prfsha2": "prfsha256",
        "prfsha2_256": "prfsha256",
        "prfsha2_384": "prfsha384",
        "prfsha2_512": "prfsha512",
        "curve25519": "x25519",
        "dh14": "modp2048",
        "dh15": "modp3072",
        "dh16": "modp4096",
        "dh19": "ecp256",
        "dh20": "ecp384",
        "dh21": "ecp521",
        "dh31": "x25519",
        "secp256r1": "ecp256",
        "secp384r1": "ecp384",
        "secp521r1": "ecp521",
        "nistp256": "ecp256",
        "nistp384": "ecp384",
        "nistp521": "ecp521",
    }
)
#: Algorithms that have a name everywhere, and are not offered here: each with the word to write instead.
_UNAVAILABLE: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("des", "3des", "blowfish", "cast128"), "aes256gcm16"),
        **dict.fromkeys((f"aes{bits}{mode}" for bits in (128, 192, 256) for mode in
                         ("ctr", "gcm8", "gcm12", "gcm64", "gcm96", "ccm8", "ccm12", "ccm16", "ccm64", "ccm96",
                          "ccm128")), "aes256gcm16"),
        **dict.fromkeys((f"camellia{bits}" for bits in (128, 192, 256)), "aes256"),
        **dict.fromkeys(("aescmac",), "sha256"),
        **dict.fromkeys(("md5", "md5_128", "sha", "sha1", "sha1_160", "sha256_96", "sha2_256_96"), "sha256"),
        **dict.fromkeys(("prfmd5", "prfsha", "prfsha1", "prfaesxcbc", "prfaescmac"), "prfsha256"),
        **dict.fromkeys(("modp768", "modp1024", "modp1536", "dh1", "dh2", "dh5", "modp1024s160", "modp2048s224",
                         "modp2048s256"), "modp2048"),
        **dict.fromkeys(("modp6144", "modp8192", "dh17", "dh18"), "modp4096"),
        **dict.fromkeys(("ecp192", "ecp224", "ecp224bp", "ecp256bp"), "ecp256"),
        **dict.fromkeys(("ecp384bp", "ecp512bp"), "ecp384"),
        **dict.fromkeys(("x448", "curve448", "mlkem512", "mlkem768", "mlkem1024"), "x25519"),
    }
)  # fmt: skip
_ENCR_NAMES = {(transform.id, transform.key_bits): word for word, transform in {**_ENCRS, **_OLD_ENCRS}.items()}
_INTEG_NAMES = {int(value): word for word, value in {**_INTEGS, **_AH_GMACS, **_OLD_INTEGS}.items()}
_PRF_NAMES = {int(value): word for word, value in {**_PRFS, **_OLD_PRFS}.items()}
_GROUP_NAMES = {int(value): word for word, value in {**_GROUPS, **_OLD_GROUPS}.items()}
#: Ciphers that no integrity algorithm stands beside.
_COMBINED = AEAD | {Encr.NULL_AUTH_AES_GMAC}
_T = TypeVar("_T")
_K = TypeVar("_K")
#: More words than one proposal could need: the payload has room for 255 transforms, ours for 64.
_MAX_WORDS = 32


@dataclass(slots=True)
class _Words:
    encr: list[Transform] = field(default_factory=list)
    prf: list[Prf] = field(default_factory=list)
    integ: list[Integ] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    esn: list[Esn] = field(default_factory=list)


def _canonical(word: str) -> str:
    folded = word.strip().lower()
    return _ALIASES.get(folded, folded)


def _sort_words(text: str, words: list[str], *, historical: bool = False, ah: bool = False) -> _Words:
    if len(words) > _MAX_WORDS:
        raise TextError(f"{quoted(text)} has more than {_MAX_WORDS} words", "write several proposals")
    found = _Words()
    for written in words:
        word = _canonical(written)
        if historical and _append_old(text, word, found):
            continue
        if ah and word in _AH_GMACS:
            _append(text, written, found.integ, _AH_GMACS[word])
        elif word in _ENCRS:
            _append(text, written, found.encr, _ENCRS[word])
        elif word in _INTEGS:
            _append(text, written, found.integ, _INTEGS[word])
        elif word in _PRFS:
            _append(text, written, found.prf, _PRFS[word])
        elif word in _GROUPS:
            _append(text, written, found.groups, _GROUPS[word])
        elif word in _ESNS:
            _append(text, written, found.esn, _ESNS[word])
        else:
            known = [*_ENCRS, *_INTEGS, *_PRFS, *_GROUPS, *_ESNS]
            raise _unknown(written, word, dict.fromkeys(known), what="algorithm", text=text)
    return found


def _append_old(text: str, word: str, found: _Words) -> bool:
    """Note a word of Windows 2003; return whether it is one."""
    if word in _OLD_ENCRS:
        _append(text, word, found.encr, _OLD_ENCRS[word])
    elif word in _OLD_INTEGS:
        _append(text, word, found.integ, _OLD_INTEGS[word])
    elif word in _OLD_GROUPS:
        _append(text, word, found.groups, _OLD_GROUPS[word])
    else:
        return False
    return True


def _append(text: str, word: str, values: list[_T], value: _T) -> None:
    if value in values:
        raise TextError(f"in {quoted(text)}: {quoted(word)} is there twice", "remove one of them")
    values.append(value)


def _check_ciphers(text: str, words: _Words, *, ike: bool) -> None:
    """Refuse what RFC 7296 section 3.3.3 and RFC 4303 section 3.2 call invalid or insecure combinations."""
    if not words.encr:
        raise TextError(f"{quoted(text)} has no cipher", 'add one, such as "aes256gcm16" or "aes256"')
    aead = [transform.id in _COMBINED for transform in words.encr]
    if any(aead) and not all(aead):
        raise TextError(f"{quoted(text)} mixes combined-mode ciphers with others", "write them as two proposals")
    null = any(transform.id == Encr.NULL for transform in words.encr)
    if null and ike:
        raise TextError(f"in {quoted(text)}: IKE cannot go without encryption", 'write "aes256" for "null"')
    if aead[0] and words.integ:
        raise TextError(
            f"in {quoted(text)}: a combined-mode cipher has its own integrity, "
            f"{quoted(_INTEG_NAMES[words.integ[0]])} cannot stand beside it",
            f'remove "{_INTEG_NAMES[words.integ[0]]}"'
            + (f' or write "prf{_INTEG_NAMES[words.integ[0]]}"' if ike and not words.prf else ""),
        )
    if not aead[0] and not words.integ:
        if null:
            raise TextError(f"{quoted(text)} protects nothing: neither encryption nor integrity", 'add "-sha256"')
        raise TextError(f"{quoted(text)}: encryption without integrity is refused", 'add "-sha256"')


def _parse_protocol(text: str, part: str, *, historical: bool = False) -> Proposal:
    protocol, colon, rest = part.partition(":")
    kind = protocol.strip().lower()
    if not colon or kind not in ("esp", "ah"):
        raise TextError(
            f"{quoted(text)} does not begin with a protocol",
            f'write {quoted(f"esp:{rest or part}")} or "ah:sha256"',
        )
    words = _sort_words(text, rest.split("-"), historical=historical, ah=kind == "ah")
    if words.groups:
        name = _GROUP_NAMES[words.groups[0]]
        raise TextError(
            f"in {quoted(text)}: a method does not name the key exchange group", f'write pfs = "{name}" beside it'
        )
    if words.prf:
        raise TextError(f"in {quoted(text)}: a pseudo-random function is for IKE only", "remove it")
    esn = tuple(words.esn) or _BOTH_ESN
    if kind == "ah":
        if words.encr:
            raise TextError(f"in {quoted(text)}: AH does not encrypt", "name an integrity algorithm only")
        if not words.integ:
            raise TextError(f"{quoted(text)} has no integrity algorithm", 'write "ah:sha256"')
        return Proposal(ProtocolId.AH, (), (), tuple(words.integ), (), esn, part)
    _check_ciphers(text, words, ike=False)
    return Proposal(ProtocolId.ESP, tuple(words.encr), (), tuple(words.integ), (), esn, part)


def _unknown(written: str, word: str, known: Mapping[str, object], *, what: str, text: str = "") -> TextError:
    inside = f"in {quoted(text)}: " if text else ""
    if word in _UNAVAILABLE:
        return TextError(
            f"{inside}{quoted(written)} is not available in this version", f'write "{_UNAVAILABLE[word]}"'
        )
    if not word:
        return TextError(f"{inside}there is an empty word", 'words are joined by one "-"')
    near = nearest(word, [*known, *(alias for alias, real in _ALIASES.items() if real in known)])
    hint = f'did you mean "{_ALIASES.get(near, near)}"?' if near else f"one of: {', '.join(known)}"
    return TextError(f"{inside}unknown {what} {quoted(written)}", hint)


def _name(names: Mapping[_K, str], key: _K, what: str) -> str:
    if key in names:
        return names[key]
    number = key[0] if isinstance(key, tuple) else key
    return f"{what}-{number}"
