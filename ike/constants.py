"""IKEv2 numbers, as IANA's "Internet Key Exchange Version 2 (IKEv2) Parameters" registry has them.

Numbers that are not here survive as plain integers: an unknown number is never an error by itself
(RFC 7296 section 2.5). Transform numbers belong to policy and are only re-exported.
"""

from __future__ import annotations

from enum import IntEnum

from policy.pad import IdType
from policy.proposals import (
    AEAD,
    VARIABLE_KEY,
    Encr,
    Esn,
    Group,
    Integ,
    Prf,
    ProtocolId,
    Transform,
    TransformType,
)

__all__ = [
    "AEAD",
    "ERROR_NOTIFY_LIMIT",
    "VARIABLE_KEY",
    "AuthMethod",
    "CertEncoding",
    "ConfigType",
    "Encr",
    "Esn",
    "ExchangeType",
    "Group",
    "HashAlgorithm",
    "IdType",
    "Integ",
    "NotifyType",
    "PayloadType",
    "Prf",
    "ProtocolId",
    "Transform",
    "TransformType",
    "TsType",
    "name_of",
]

#: Notify types below this report errors, the others status (RFC 7296 section 3.10.1).
ERROR_NOTIFY_LIMIT = 16384


class ExchangeType(IntEnum):
    """Exchange types (RFC 7296 section 3.1)."""

    IKE_SA_INIT = 34  # RFC 7296 section 1.2
    IKE_AUTH = 35  # RFC 7296 section 1.2
    CREATE_CHILD_SA = 36  # RFC 7296 section 1.3
    INFORMATIONAL = 37  # RFC 7296 section 1.4
    IKE_SESSION_RESUME = 38  # RFC 5723
    GSA_AUTH = 39  # RFC 9838
    GSA_REGISTRATION = 40  # RFC 9838
    GSA_REKEY = 41  # RFC 9838
    IKE_INTERMEDIATE = 43  # RFC 9242
    IKE_FOLLOWUP_KE = 44  # RFC 9370


class PayloadType(IntEnum):
    """Payload types (RFC 7296 section 3.2)."""

    NONE = 0  # RFC 7296 section 3.2: no next payload
    SA = 33  # RFC 7296 section 3.3
    KE = 34  # RFC 7296 section 3.4
    IDi = 35  # RFC 7296 section 3.5
    IDr = 36  # RFC 7296 section 3.5
    CERT = 37  # RFC 7296 section 3.6
    CERTREQ = 38  # RFC 7296 section 3.7
    AUTH = 39  # RFC 7296 section 3.8
    NONCE = 40  # RFC 7296 section 3.9
    NOTIFY = 41  # RFC 7296 section 3.10
    DELETE = 42  # RFC 7296 section 3.11
    VENDOR = 43  # RFC 7296 section 3.12
    TSi = 44  # RFC 7296 section 3.13
    TSr = 45  # RFC 7296 section 3.13
    SK = 46  # RFC 7296 section 3.14
    CP = 47  # RFC 7296 section 3.15
    EAP = 48  # RFC 7296 section 3.16
    GSPM = 49  # RFC 6467
    IDg = 50  # RFC 9838
    GSA = 51  # RFC 9838
    KD = 52  # RFC 9838
    SKF = 53  # RFC 7383 section 2.5
    PS = 54  # RFC 8019


class NotifyType(IntEnum):
    """Notify message types (RFC 7296 section 3.10.1)."""

    # Errors.
    UNSUPPORTED_CRITICAL_PAYLOAD = 1  # RFC 7296 section 2.5
    INVALID_IKE_SPI = 4  # RFC 7296 section 2.21
    INVALID_MAJOR_VERSION = 5  # RFC 7296 section 2.5
    INVALID_SYNTAX = 7  # RFC 7296 section 2.21.3
    INVALID_MESSAGE_ID = 9  # RFC 7296 section 2.3
    INVALID_SPI = 11  # RFC 7296 section 1.5
    NO_PROPOSAL_CHOSEN = 14  # RFC 7296 section 2.7
    INVALID_KE_PAYLOAD = 17  # RFC 7296 section 1.2
    AUTHENTICATION_FAILED = 24  # RFC 7296 section 2.21.2
    SINGLE_PAIR_REQUIRED = 34  # RFC 7296 section 2.9
    NO_ADDITIONAL_SAS = 35  # RFC 7296 section 1.3
    INTERNAL_ADDRESS_FAILURE = 36  # RFC 7296 section 3.15.4
    FAILED_CP_REQUIRED = 37  # RFC 7296 section 2.19
    TS_UNACCEPTABLE = 38  # RFC 7296 section 2.9
    INVALID_SELECTORS = 39  # RFC 7296 section 3.10.1
    UNACCEPTABLE_ADDRESSES = 40  # RFC 4555
    UNEXPECTED_NAT_DETECTED = 41  # RFC 4555
    USE_ASSIGNED_HOA = 42  # RFC 5026
    TEMPORARY_FAILURE = 43  # RFC 7296 section 2.25
    CHILD_SA_NOT_FOUND = 44  # RFC 7296 section 2.25
    INVALID_GROUP_ID = 45  # RFC 9838
    AUTHORIZATION_FAILED = 46  # RFC 9838
    STATE_NOT_FOUND = 47  # RFC 9370
    TS_MAX_QUEUE = 48  # RFC 9611
    # Status.
    INITIAL_CONTACT = 16384  # RFC 7296 section 2.4
    SET_WINDOW_SIZE = 16385  # RFC 7296 section 2.3
    ADDITIONAL_TS_POSSIBLE = 16386  # RFC 7296 section 2.9
    IPCOMP_SUPPORTED = 16387  # RFC 7296 section 2.22
    NAT_DETECTION_SOURCE_IP = 16388  # RFC 7296 section 2.23
    NAT_DETECTION_DESTINATION_IP = 16389  # RFC 7296 section 2.23
    COOKIE = 16390  # RFC 7296 section 2.6
    USE_TRANSPORT_MODE = 16391  # RFC 7296 section 1.3.1
    HTTP_CERT_LOOKUP_SUPPORTED = 16392  # RFC 7296 section 3.6
    REKEY_SA = 16393  # RFC 7296 section 1.3.3
    ESP_TFC_PADDING_NOT_SUPPORTED = 16394  # RFC 7296 section 1.3.1
    NON_FIRST_FRAGMENTS_ALSO = 16395  # RFC 7296 section 1.3.1
    MOBIKE_SUPPORTED = 16396  # RFC 4555
    ADDITIONAL_IP4_ADDRESS = 16397  # RFC 4555
    ADDITIONAL_IP6_ADDRESS = 16398  # RFC 4555
    NO_ADDITIONAL_ADDRESSES = 16399  # RFC 4555
    UPDATE_SA_ADDRESSES = 16400  # RFC 4555
    COOKIE2 = 16401  # RFC 4555
    NO_NATS_ALLOWED = 16402  # RFC 4555
    AUTH_LIFETIME = 16403  # RFC 4478
    MULTIPLE_AUTH_SUPPORTED = 16404  # RFC 4739
    ANOTHER_AUTH_FOLLOWS = 16405  # RFC 4739
    REDIRECT_SUPPORTED = 16406  # RFC 5685
    REDIRECT = 16407  # RFC 5685
    REDIRECTED_FROM = 16408  # RFC 5685
    TICKET_LT_OPAQUE = 16409  # RFC 5723
    TICKET_REQUEST = 16410  # RFC 5723
    TICKET_ACK = 16411  # RFC 5723
    TICKET_NACK = 16412  # RFC 5723
    TICKET_OPAQUE = 16413  # RFC 5723
    LINK_ID = 16414  # RFC 5739
    USE_WESP_MODE = 16415  # RFC 5840
    ROHC_SUPPORTED = 16416  # RFC 5857
    EAP_ONLY_AUTHENTICATION = 16417  # RFC 5998
    CHILDLESS_IKEV2_SUPPORTED = 16418  # RFC 6023
    QUICK_CRASH_DETECTION = 16419  # RFC 6290
    IKEV2_MESSAGE_ID_SYNC_SUPPORTED = 16420  # RFC 6311
    IPSEC_REPLAY_COUNTER_SYNC_SUPPORTED = 16421  # RFC 6311
    IKEV2_MESSAGE_ID_SYNC = 16422  # RFC 6311
    IPSEC_REPLAY_COUNTER_SYNC = 16423  # RFC 6311
    SECURE_PASSWORD_METHODS = 16424  # RFC 6467
    PSK_PERSIST = 16425  # RFC 6631
    PSK_CONFIRM = 16426  # RFC 6631
    ERX_SUPPORTED = 16427  # RFC 6867
    IFOM_CAPABILITY = 16428  # 3GPP TS 24.303
    SENDER_REQUEST_ID = 16429  # RFC 9838
    IKEV2_FRAGMENTATION_SUPPORTED = 16430  # RFC 7383
    SIGNATURE_HASH_ALGORITHMS = 16431  # RFC 7427
    CLONE_IKE_SA_SUPPORTED = 16432  # RFC 7791
    CLONE_IKE_SA = 16433  # RFC 7791
    PUZZLE = 16434  # RFC 8019
    USE_PPK = 16435  # RFC 8784
    PPK_IDENTITY = 16436  # RFC 8784
    NO_PPK_AUTH = 16437  # RFC 8784
    INTERMEDIATE_EXCHANGE_SUPPORTED = 16438  # RFC 9242
    IP4_ALLOWED = 16439  # RFC 8983
    IP6_ALLOWED = 16440  # RFC 8983
    ADDITIONAL_KEY_EXCHANGE = 16441  # RFC 9370
    USE_AGGFRAG = 16442  # RFC 9347
    SUPPORTED_AUTH_METHODS = 16443  # RFC 9593
    SA_RESOURCE_INFO = 16444  # RFC 9611
    # Private use, 40960 and up: between peers with our vendor ID alone.
    MIRRORGATE_BUNDLE = 51410  # RFC 7296 section 3.10.1, private use: ike.v2.bundle


class AuthMethod(IntEnum):
    """Authentication methods (RFC 7296 section 3.8)."""

    RSA_SIGNATURE = 1  # RFC 7296
    SHARED_KEY = 2  # RFC 7296 section 2.15
    DSS_SIGNATURE = 3  # RFC 7296
    ECDSA_SHA256_P256 = 9  # RFC 4754
    ECDSA_SHA384_P384 = 10  # RFC 4754
    ECDSA_SHA512_P521 = 11  # RFC 4754
    GENERIC_SECURE_PASSWORD = 12  # RFC 6467
    NULL = 13  # RFC 7619
    DIGITAL_SIGNATURE = 14  # RFC 7427


class TsType(IntEnum):
    """Traffic selector types (RFC 7296 section 3.13.1)."""

    IPV4_ADDR_RANGE = 7  # RFC 7296
    IPV6_ADDR_RANGE = 8  # RFC 7296
    FC_ADDR_RANGE = 9  # RFC 4595
    SECLABEL = 10  # RFC 9478


class CertEncoding(IntEnum):
    """Certificate encodings (RFC 7296 section 3.6)."""

    PKCS7_WRAPPED = 1  # RFC 7296, unspecified
    PGP = 2  # RFC 7296, unspecified
    DNS_SIGNED_KEY = 3  # RFC 7296, unspecified
    X509_SIGNATURE = 4  # RFC 7296
    KERBEROS_TOKEN = 6  # RFC 7296, unspecified
    CRL = 7  # RFC 7296
    ARL = 8  # RFC 7296, unspecified
    SPKI = 9  # RFC 7296, unspecified
    X509_ATTRIBUTE = 10  # RFC 7296, unspecified
    HASH_AND_URL_X509 = 12  # RFC 7296
    HASH_AND_URL_BUNDLE = 13  # RFC 7296
    OCSP_CONTENT = 14  # RFC 4806
    RAW_PUBLIC_KEY = 15  # RFC 7670


class ConfigType(IntEnum):
    """Configuration payload types (RFC 7296 section 3.15)."""

    CFG_REQUEST = 1  # RFC 7296
    CFG_REPLY = 2  # RFC 7296
    CFG_SET = 3  # RFC 7296
    CFG_ACK = 4  # RFC 7296


class HashAlgorithm(IntEnum):
    """Hash algorithms of SIGNATURE_HASH_ALGORITHMS (RFC 7427 section 7)."""

    SHA1 = 1  # RFC 7427
    SHA2_256 = 2  # RFC 7427
    SHA2_384 = 3  # RFC 7427
    SHA2_512 = 4  # RFC 7427
    IDENTITY = 5  # RFC 8420


def name_of(enumeration: type[IntEnum], number: int) -> str:
    """Return the registered name of *number*, or the number as text when it is not registered here."""
    try:
        return enumeration(number).name
    except ValueError:
        return str(number)
