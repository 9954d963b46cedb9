"""IKE messages to test with: one of every payload, one of every exchange, and strategies for all of them."""

from __future__ import annotations

from hypothesis import strategies as st

from ike.constants import AuthMethod, ConfigType, ExchangeType, NotifyType, PayloadType, TsType
from ike.crypto.ciphers import IkeCipher
from ike.crypto.keymat import derive_ike_keys
from ike.wire.header import Header
from ike.wire.payloads import (
    AuthPayload,
    CertPayload,
    CertReqPayload,
    ConfigPayload,
    DeletePayload,
    EapPayload,
    IdPayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    Payload,
    SaPayload,
    TsPayload,
    UnknownPayload,
    VendorIdPayload,
)
from ike.wire.proposals import OpaqueTransform, WireProposal
from policy.pad import Identity
from policy.proposals import Encr, Esn, Group, Integ, Prf, ProtocolId, Suite, Transform, TransformType
from policy.secret import Secret
from policy.selectors import ANY_PORT, OPAQUE_PORT, AddressRange, PortRange, TrafficSelector

GCM = Suite(ProtocolId.IKE, Encr.AES_GCM_16, 256, prf=Prf.HMAC_SHA2_384)
CHACHA = Suite(ProtocolId.IKE, Encr.CHACHA20_POLY1305, prf=Prf.HMAC_SHA2_256)
CBC = Suite(ProtocolId.IKE, Encr.AES_CBC, 128, Integ.HMAC_SHA2_256_128, Prf.HMAC_SHA2_256)

SPI_I, SPI_R = bytes.fromhex("c0c1c2c3c4c5c6c7"), bytes.fromhex("d0d1d2d3d4d5d6d7")


def header(
    exchange: int = ExchangeType.IKE_SA_INIT,
    *,
    response: bool = False,
    initiator: bool | None = None,
    message_id: int | None = None,
    spi_r: bytes | None = None,
) -> Header:
    """Return a header as the original initiator's request, or as the responder's response to one."""
    first = exchange == ExchangeType.IKE_SA_INIT
    return Header(
        spi_i=SPI_I,
        spi_r=(bytes(8) if first and not response else SPI_R) if spi_r is None else spi_r,
        exchange=exchange,
        initiator=(not response) if initiator is None else initiator,
        response=response,
        message_id=(0 if first else 1) if message_id is None else message_id,
    )


def cipher(suite: Suite = GCM) -> IkeCipher:
    """Return a fresh cipher of the initiator: any two open what the other seals."""
    return derive_ike_keys(suite, b"i" * 32, b"r" * 32, SPI_I, SPI_R, Secret(b"g^ir")).ciphers(suite)[0]


def v4(first: int, last: int, protocol: int = 0, ports: PortRange = ANY_PORT) -> TrafficSelector:
    return TrafficSelector(protocol, AddressRange(4, first, last), ports)


AEAD_TRANSFORMS = (
    Transform(TransformType.ENCR, Encr.AES_GCM_16, 256),
    Transform(TransformType.PRF, Prf.HMAC_SHA2_384),
    Transform(TransformType.KE, Group.X25519),
)
CBC_TRANSFORMS = (
    Transform(TransformType.ENCR, Encr.AES_CBC, 128),
    Transform(TransformType.PRF, Prf.HMAC_SHA2_256),
    Transform(TransformType.INTEG, Integ.HMAC_SHA2_256_128),
    Transform(TransformType.KE, Group.MODP_2048),
    Transform(TransformType.KE, Group.ECP_256),
)
ESP_TRANSFORMS = (
    Transform(TransformType.ENCR, Encr.AES_GCM_16, 256),
    Transform(TransformType.ESN, Esn.NO),
)
IKE_SA = SaPayload(
    (
        WireProposal(1, ProtocolId.IKE, b"", AEAD_TRANSFORMS),
        WireProposal(2, ProtocolId.IKE, b"", CBC_TRANSFORMS),
    )
)
REKEY_SA = SaPayload((WireProposal(1, ProtocolId.IKE, b"newspi_i", AEAD_TRANSFORMS),))
ESP_SA = SaPayload((WireProposal(1, ProtocolId.ESP, b"\xc0\xff\xee\x01", ESP_TRANSFORMS),))
KE = KePayload(Group.X25519, b"\x09" * 32)
NONCE = NoncePayload(bytes(range(32)))
ID_I = IdPayload(True, Identity.parse("gw-a.example"))
ID_R = IdPayload(False, Identity.parse("10.9.0.2"))
AUTH = AuthPayload(AuthMethod.SHARED_KEY, b"\xaa" * 48)
TS_I = TsPayload(True, (v4(0x0A010000, 0x0A0100FF),))
TS_R = TsPayload(
    False,
    (
        v4(0x0A020000, 0x0A0200FF, 6, PortRange(80, 443)),
        TrafficSelector(58, AddressRange.any(6), PortRange(0x8000, 0x80FF)),
        v4(0, 0xFFFFFFFF, 17, OPAQUE_PORT),
    ),
)
NOTIFY = NotifyPayload(NotifyType.NAT_DETECTION_SOURCE_IP, data=b"\x5a" * 20)
REKEY = NotifyPayload(NotifyType.REKEY_SA, ProtocolId.ESP, b"\xc0\xff\xee\x01")
DELETE = DeletePayload(ProtocolId.ESP, (b"\x01\x02\x03\x04", b"\x05\x06\x07\x08"))
VENDOR = VendorIdPayload(b"a vendor")
CERT, CERTREQ = CertPayload(4, b"certificate"), CertReqPayload(4, b"\x11" * 20)
CONFIG = ConfigPayload(ConfigType.CFG_REQUEST, ((1, b""), (3, b"\x0a\x00\x00\x01")))

EVERY_PAYLOAD: tuple[Payload, ...] = (
    IKE_SA,
    KE,
    ID_I,
    ID_R,
    CERT,
    CERTREQ,
    AUTH,
    NONCE,
    NOTIFY,
    DELETE,
    VENDOR,
    TS_I,
    TS_R,
    CONFIG,
    EapPayload(b"\x01\x02\x00\x05\x01"),
    UnknownPayload(200, False, b"what"),
)

#: (exchange, response) -> payloads of one legal message.
EXCHANGES: dict[tuple[ExchangeType, bool], tuple[Payload, ...]] = {
    (ExchangeType.IKE_SA_INIT, False): (IKE_SA, KE, NONCE, NOTIFY, VENDOR),
    (ExchangeType.IKE_SA_INIT, True): (
        SaPayload((WireProposal(1, ProtocolId.IKE, b"", AEAD_TRANSFORMS),)),
        KE,
        NONCE,
        NOTIFY,
        CERTREQ,
    ),
    (ExchangeType.IKE_AUTH, False): (ID_I, CERT, CERTREQ, ID_R, AUTH, ESP_SA, TS_I, TS_R, CONFIG),
    (ExchangeType.IKE_AUTH, True): (ID_R, CERT, AUTH, ESP_SA, TS_I, TS_R),
    (ExchangeType.CREATE_CHILD_SA, False): (REKEY, ESP_SA, NONCE, KE, TS_I, TS_R),
    (ExchangeType.CREATE_CHILD_SA, True): (ESP_SA, NONCE, KE, TS_I, TS_R),
    (ExchangeType.INFORMATIONAL, False): (DELETE, NOTIFY),
    (ExchangeType.INFORMATIONAL, True): (),
}

_octets = st.binary(max_size=64)
_u8, _u16 = st.integers(0, 255), st.integers(0, 65535)

transforms = st.builds(Transform, _u8, _u16, st.none() | _u16)
#: An attribute that is not the Key Length, in TV or in TLV form.
opaque_transforms = st.builds(
    OpaqueTransform,
    _u8,
    _u16,
    st.one_of(
        st.builds(
            lambda kind, value: (0x8000 | kind).to_bytes(2, "big") + value.to_bytes(2, "big"),
            st.integers(0, 0x7FFF).filter(lambda kind: kind != 14),
            _u16,
        ),
        st.builds(
            lambda kind, value: kind.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value,
            st.integers(0, 0x7FFF),
            _octets,
        ),
    ),
)


@st.composite
def wire_proposals(draw: st.DrawFn, number: int) -> WireProposal:
    protocol = draw(_u8)
    sizes = {ProtocolId.IKE: (0, 8), ProtocolId.AH: (4,), ProtocolId.ESP: (4,)}
    size = draw(st.sampled_from(sizes[ProtocolId(protocol)]) if protocol in (1, 2, 3) else st.integers(0, 12))
    spi = draw(st.binary(min_size=size, max_size=size).filter(lambda octets: not octets or any(octets)))
    usual = tuple(draw(st.lists(transforms, max_size=6)))
    opaque = tuple(draw(st.lists(opaque_transforms, min_size=0 if usual else 1, max_size=3)))
    return WireProposal(number, protocol, spi, usual, opaque)


@st.composite
def sa_payloads(draw: st.DrawFn) -> SaPayload:
    first, count = draw(st.integers(1, 200)), draw(st.integers(1, 5))
    return SaPayload(tuple(draw(wire_proposals(first + index)) for index in range(count)))


@st.composite
def traffic_selectors(draw: st.DrawFn) -> TrafficSelector:
    version = draw(st.sampled_from((4, 6)))
    addresses = st.integers(0, 2**32 - 1 if version == 4 else 2**128 - 1)
    start, end = sorted((draw(addresses), draw(addresses)))
    low, high = sorted((draw(_u16), draw(_u16)))
    ports = draw(st.sampled_from((ANY_PORT, OPAQUE_PORT, PortRange(low, high))))
    return TrafficSelector(draw(_u8), AddressRange(version, start, end), ports)


_KNOWN = frozenset(kind for kind in PayloadType if not PayloadType.GSPM <= kind <= PayloadType.KD)


@st.composite
def delete_payloads(draw: st.DrawFn) -> DeletePayload:
    protocol = draw(_u8)
    if protocol == ProtocolId.IKE:
        return DeletePayload(protocol)
    size = 4 if protocol in (ProtocolId.AH, ProtocolId.ESP) else draw(st.integers(1, 16))
    return DeletePayload(protocol, tuple(draw(st.lists(st.binary(min_size=size, max_size=size), max_size=5))))


payloads: st.SearchStrategy[Payload] = st.one_of(
    sa_payloads(),
    st.builds(KePayload, _u16, st.binary(min_size=1, max_size=64)),
    st.builds(NoncePayload, st.binary(min_size=16, max_size=256)),
    st.builds(IdPayload, st.booleans(), st.builds(Identity, _u8, _octets)),
    st.builds(AuthPayload, _u8, _octets),
    st.builds(NotifyPayload, _u16, _u8, _octets, _octets),
    delete_payloads(),
    st.builds(VendorIdPayload, _octets),
    st.builds(TsPayload, st.booleans(), st.lists(traffic_selectors(), min_size=1, max_size=5).map(tuple)),
    st.builds(CertPayload, _u8, _octets),
    st.builds(CertReqPayload, _u8, _octets),
    st.builds(ConfigPayload, _u8, st.lists(st.tuples(st.integers(0, 0x7FFF), _octets), max_size=4).map(tuple)),
    st.builds(EapPayload, _octets),
    st.builds(
        UnknownPayload,
        st.integers(1, 255).filter(lambda kind: kind not in _KNOWN),
        st.just(False),
        _octets,
    ),
)

headers = st.builds(
    Header,
    spi_i=st.binary(min_size=8, max_size=8).filter(any),
    spi_r=st.binary(min_size=8, max_size=8),
    exchange=_u8,
    initiator=st.booleans(),
    response=st.booleans(),
    message_id=st.integers(0, 2**32 - 1),
    minor=st.integers(0, 15),
)

#: Kinds that TS payloads of other standards use; they are skipped.
FOREIGN_TS_TYPES = (0, 1, TsType.FC_ADDR_RANGE, TsType.SECLABEL, 255)
