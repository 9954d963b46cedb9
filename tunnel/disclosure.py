"""Keys as Wireshark's tables want them: called when an operator asks for a capture, and never otherwise."""

from __future__ import annotations

from ike.events import IkeSaKeys
from policy.proposals import Encr, Integ, ProtocolId, Suite
from policy.secret import Secret
from tunnel.dataplane.contract import SaParams

#: The tables by the names that Wireshark reads them under.
IKE_TABLE, ESP_TABLE = "ikev2_decryption_table", "esp_sa"

_GCM = {Encr.AES_GCM_8: 8, Encr.AES_GCM_12: 12, Encr.AES_GCM_16: 16}
_IKE_INTEGRITY = {
    Integ.NONE: "NONE [RFC4306]",
    Integ.HMAC_MD5_96: "HMAC_MD5_96 [RFC2403]",
    Integ.HMAC_SHA1_96: "HMAC_SHA1_96 [RFC2404]",
    Integ.HMAC_SHA2_256_128: "HMAC_SHA2_256_128 [RFC4868]",
    Integ.HMAC_SHA2_384_192: "HMAC_SHA2_384_192 [RFC4868]",
    Integ.HMAC_SHA2_512_256: "HMAC_SHA2_512_256 [RFC4868]",
}
_ESP_INTEGRITY = {
    Integ.NONE: "NULL",
    Integ.HMAC_MD5_96: "HMAC-MD5-96 [RFC2403]",
    Integ.HMAC_SHA1_96: "HMAC-SHA-1-96 [RFC2404]",
    Integ.AES_XCBC_96: "ANY 96 bit authentication [no checking]",
    Integ.HMAC_SHA2_256_128: "HMAC-SHA-256-128 [RFC4868]",
    Integ.HMAC_SHA2_384_192: "HMAC-SHA-384-192 [RFC4868]",
    Integ.HMAC_SHA2_512_256: "HMAC-SHA-512-256 [RFC4868]",
}


def ike_row(sa: IkeSaKeys) -> str | None:
    """Return the row of an IKE SA; None for an algorithm that Wireshark does not know."""
    encryption, integrity = _ike_encryption(sa.suite), _IKE_INTEGRITY.get(sa.suite.integ)
    if encryption is None or integrity is None:
        return None
    return ",".join(
        (
            sa.spi_i.hex(), sa.spi_r.hex(),
            _hex(sa.sk_ei, sa.salt_ei), _hex(sa.sk_er, sa.salt_er), f'"{encryption}"',
            _hex(sa.sk_ai), _hex(sa.sk_ar), f'"{integrity}"',
        )
    )  # fmt: skip


def esp_row(sa: SaParams) -> str | None:
    """Return the row of one direction of an ESP SA; None for AH and for what Wireshark does not know."""
    encryption, integrity = _esp_encryption(sa.suite), _ESP_INTEGRITY.get(sa.suite.integ)
    if sa.protocol is not ProtocolId.ESP or encryption is None or integrity is None:
        return None
    local, remote = sa.path.local.address, sa.path.remote.address
    source, destination = (remote, local) if sa.inbound else (local, remote)
    cells = (
        f"IPv{sa.path.version}", str(source), str(destination), f"0x{sa.spi:08x}",
        encryption, _number(sa.encryption_key, sa.salt), integrity, _number(sa.integrity_key),
    )  # fmt: skip
    return ",".join(f'"{cell}"' for cell in cells)


def _ike_encryption(suite: Suite) -> str | None:
    if suite.encr in _GCM:
        return f"AES-GCM-{suite.key_bits} with {_GCM[suite.encr]} octet ICV [RFC5282]"
    match suite.encr:
        case Encr.AES_CBC:
            return f"AES-CBC-{suite.key_bits} [RFC3602]"
        case Encr.TRIPLE_DES:
            return "3DES [RFC2451]"
        case _:
            return None


def _esp_encryption(suite: Suite) -> str | None:
    if suite.encr in _GCM:
        return f"AES-GCM with {_GCM[suite.encr]} octet ICV [RFC4106]"
    match suite.encr:
        case Encr.AES_CBC:
            return "AES-CBC [RFC3602]"
        case Encr.TRIPLE_DES:
            return "TripleDES-CBC [RFC2451]"
        case Encr.NULL:
            return "NULL"
        case _:
            return None


def _hex(*secrets: Secret) -> str:
    return "".join(secret.reveal().hex() for secret in secrets)


def _number(*secrets: Secret) -> str:
    digits = _hex(*secrets)
    return f"0x{digits}" if digits else ""
