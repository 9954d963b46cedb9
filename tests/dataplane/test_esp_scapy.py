"""ESP against scapy, an independent implementation, for every algorithm, both ways, every mix of families."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP, SecurityAssociation

from policy.path import Path
from policy.proposals import Encr, Integ, Suite
from tests.support.packets import (
    CBC_SHA256,
    CBC_SHA384,
    CBC_SHA512,
    CHACHA,
    GCM,
    GMAC,
    NULL_SHA256,
    NULL_SHA512,
    Pair,
    datagrams,
    drain,
    keys,
    mirrored,
    packet_of,
    path,
    tun,
    udp4,
    udp6,
    written,
)
from tunnel.dataplane.contract import WireDatagrams

_CIPHERS: dict[Encr | None, str] = {
    Encr.AES_GCM_16: "AES-GCM",
    Encr.CHACHA20_POLY1305: "CHACHA20-POLY1305",
    Encr.AES_CBC: "AES-CBC",
    Encr.NULL: "NULL",
    Encr.NULL_AUTH_AES_GMAC: "AES-NULL-GMAC",
}
_MACS = {
    Integ.NONE: None,
    Integ.HMAC_SHA2_256_128: "SHA2-256-128",
    Integ.HMAC_SHA2_384_192: "SHA2-384-192",
    Integ.HMAC_SHA2_512_256: "SHA2-512-256",
}
_PATHS = {
    "4": path(port=0),
    "6": path("2001:db8::1", "2001:db8::2", port=0),
}


def _esn(suite: Suite) -> Suite:
    return Suite(suite.protocol, suite.encr, suite.key_bits, suite.integ, esn=True)


SUITES = [
    s
    for base in (GCM, CHACHA, CBC_SHA256, CBC_SHA384, CBC_SHA512, NULL_SHA256, NULL_SHA512, GMAC)
    for s in (base, _esn(base))
]


def _scapy(suite: Suite, spi: int, along: Path) -> SecurityAssociation:
    encryption, salt, integrity = keys(suite)
    header = IP if along.version == 4 else IPv6
    return SecurityAssociation(
        ESP,
        spi=spi,
        crypt_algo=_CIPHERS[suite.encr],
        crypt_key=encryption + salt,
        auth_algo=_MACS[suite.integ],
        auth_key=integrity or None,
        tunnel_header=header(src=str(along.local.address), dst=str(along.remote.address)),
        esn_en=suite.esn,
        esn=0,
    )


@pytest.mark.parametrize("outer", _PATHS)
@pytest.mark.parametrize("inner", ["4", "6"])
@pytest.mark.parametrize("suite", SUITES, ids=str)
def test_scapy_opens_what_we_seal(suite: Suite, inner: str, outer: str) -> None:
    along = _PATHS[outer]
    pair = Pair(suite, along)
    header = IP if outer == "4" else IPv6
    for size in (0, 1, 2, 3, 15, 16, 700):
        packet = udp4(bytes(size)) if inner == "4" else udp6(bytes(size))
        sealed = datagrams(pair.send(tun(packet)))
        assert len(sealed) == 1
        security = _scapy(suite, 0x1004 if inner == "4" else 0x1006, along)
        outer_packet = header(src=str(along.local.address), dst=str(along.remote.address)) / ESP(sealed[0])
        if outer == "4":
            outer_packet.proto = 50
        else:
            outer_packet.nh = 50
        opened = security.decrypt(header(bytes(outer_packet)))
        assert bytes(opened) == packet


@pytest.mark.parametrize("outer", _PATHS)
@pytest.mark.parametrize("inner", ["4", "6"])
@pytest.mark.parametrize("suite", SUITES, ids=str)
def test_we_open_what_scapy_seals(suite: Suite, inner: str, outer: str) -> None:
    along = _PATHS[outer]
    pair = Pair(suite, along)
    security = _scapy(suite, 0x1004 if inner == "4" else 0x1006, along)
    for number, size in enumerate((0, 1, 2, 3, 15, 16, 700), start=1):
        packet = udp4(bytes(size)) if inner == "4" else udp6(bytes(size))
        sealed = security.encrypt((IP if inner == "4" else IPv6)(packet), seq_num=number, esn=0)
        data = bytes(sealed.getlayer(ESP))
        pair.right.inbound([WireDatagrams(mirrored(along), data)], 1)
        frames = written(drain(pair.right))
        assert [packet_of(frame) for frame in frames] == [packet]
