"""The small values that cross the borders: identities, endpoints, secrets and lifetimes."""

from __future__ import annotations

import pickle
from ipaddress import ip_address

import pytest

from policy.clock import SECOND, seconds
from policy.lifetimes import Lifetime
from policy.model import KeyExchange
from policy.pad import Identity, IdType, Pad, PeerEntry
from policy.path import Endpoint, Path
from policy.secret import Secret


@pytest.mark.parametrize(
    ("text", "kind", "data"),
    [
        ("10.0.0.1", IdType.IPV4_ADDR, bytes([10, 0, 0, 1])),
        ("2001:db8::1", IdType.IPV6_ADDR, bytes.fromhex("20010db8" + "00" * 11 + "01")),
        ("gw-a.example", IdType.FQDN, b"gw-a.example"),
        ("user@a.example", IdType.RFC822_ADDR, b"user@a.example"),
        ("keyid:blue", IdType.KEY_ID, b"blue"),
    ],
)
def test_identities_are_what_their_text_looks_like(text: str, kind: IdType, data: bytes) -> None:
    assert Identity.parse(text) == Identity(kind, data)


@pytest.mark.parametrize(
    ("identity", "text"),
    [
        (Identity(IdType.IPV4_ADDR, bytes([10, 0, 0, 1])), "10.0.0.1"),
        (Identity(IdType.IPV4_ADDR, b"abc"), "1:616263"),
        (Identity(IdType.FQDN, b"a.example"), "a.example"),
        (Identity(IdType.FQDN, b"a\nJan 1 root logged in"), "a\\nJan 1 root logged in"),
        (Identity(IdType.FQDN, b"\xff\x1b[2J"), "\\\\xff\\x1b[2J"),
        (Identity(IdType.KEY_ID, b"\x00\x01"), "11:0001"),
        (Identity(200, b"x"), "200:78"),
    ],
)
def test_an_identity_prints_on_one_line_whatever_a_peer_sent(identity: Identity, text: str) -> None:
    assert str(identity) == text
    assert str(identity).isprintable()


def test_peers_that_may_speak_from_an_address() -> None:
    def peer(name: str, address: str | None) -> PeerEntry:
        return PeerEntry(
            name=name,
            address=ip_address(address) if address else None,
            local_id=None,
            remote_id=None,
            authentication=(),
            ike=KeyExchange(),
            entries=(),
        )

    one, two, roaming = peer("one", "10.0.0.1"), peer("two", "10.0.0.2"), peer("roaming", None)
    pad = Pad((one, two, roaming))
    assert pad.candidates(ip_address("10.0.0.2")) == (two, roaming)
    assert pad.candidates(ip_address("10.0.0.9")) == (roaming,)
    assert (pad.by_name("two"), pad.by_name("none")) == (two, None)


def test_endpoints_and_paths() -> None:
    raw = Path(Endpoint(ip_address("10.0.0.1"), 0), Endpoint(ip_address("10.0.0.2"), 0))
    udp = Path(Endpoint(ip_address("2001:db8::1"), 4500), Endpoint(ip_address("2001:db8::2"), 4500))
    assert (str(raw), raw.encapsulated, raw.version) == ("10.0.0.1-10.0.0.2", False, 4)
    assert (str(udp), udp.encapsulated, udp.version) == ("[2001:db8::1]:4500-[2001:db8::2]:4500", True, 6)


def test_a_secret_is_not_shown() -> None:
    secret = Secret(b"hunter2")
    assert f"{secret} {secret!r} {[secret]}".count("hunter2") == 0
    assert (len(secret), secret.reveal()) == (7, b"hunter2")
    assert secret == Secret(b"hunter2")
    assert secret != Secret(b"hunter3")
    assert secret != b"hunter2"
    assert hash(secret) == hash(Secret(b"other"))
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(secret)
    secret.wipe()
    assert secret.reveal() == bytes(7)


@pytest.mark.parametrize(("octets", "share"), [(b"\0" * 4, 0.80), (b"\xff" * 4, 0.95), (b"\x80\0\0\0", 0.875)])
def test_soft_lifetimes_are_spread_before_the_hard_ones(octets: bytes, share: float) -> None:
    lifetime = Lifetime(time=1000 * SECOND, bytes=10**6)
    assert lifetime.soft_time(lambda _n: octets) == pytest.approx(1000 * SECOND * share, rel=1e-6)
    assert lifetime.soft_bytes(lambda _n: octets) == pytest.approx(10**6 * share, rel=1e-5)
    unlimited = Lifetime(time=None, bytes=None)
    assert (unlimited.soft_time(lambda _n: octets), unlimited.soft_bytes(lambda _n: octets)) == (None, None)


def test_seconds_are_nanoseconds() -> None:
    assert seconds(1.5) == 1_500_000_000
