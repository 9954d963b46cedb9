"""Which packets policy routing leads into the TUN without a mark."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from policy.model import ConnectionType
from policy.selectors import ANY_PORT, OPAQUE_PORT, PortRange
from policy.spd import Disposition, Mode, SpdEntry
from tests.support.packets import entry, selector_pair, snapshot
from tunnel.host.steering import _MAX_SELECTOR_RULES, _selector_rules

ME, OTHER = "192.0.2.1/32", "192.0.2.2/32"
WEB = PortRange(80, 80)


def rules(*entries: SpdEntry, version: int = 4) -> list[str]:
    own = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
    return [str(rule) for rule in _selector_rules(replace(snapshot(*entries), local_addresses=own), version)]


def protecting(*pair: Any, per_host: bool = False, **protection: Any) -> SpdEntry:
    made = entry("e", selector_pair(*pair))
    assert made.protection is not None
    changed = replace(made.protection, mode=Mode.TRANSPORT, **protection)
    return replace(made, protection=changed, per_host=per_host)


def test_networks_as_a_whole_and_of_a_host_only_tcp() -> None:
    assert rules(protecting("10.1.0.0/24", "10.2.0.0/24")) == ["from 10.1.0.0/24 to 10.2.0.0/24"]
    # An ARP request is looked up without a protocol: it must not be thought to belong to the TUN.
    assert rules(protecting(ME, OTHER)) == ["from 192.0.2.1 to 192.0.2.2 ipproto tcp"]


def test_ports_are_told() -> None:
    assert rules(protecting(ME, "0.0.0.0/0", 6, ANY_PORT, WEB, per_host=True)) == [
        "from 192.0.2.1 ipproto tcp dport 80"
    ]
    assert rules(protecting(ME, OTHER, 17, PortRange(5000, 5009), WEB)) == [
        "from 192.0.2.1 to 192.0.2.2 ipproto udp sport 5000-5009 dport 80"
    ]
    assert rules(protecting("2001:db8::1/128", "2001:db8:2::/48", 6, WEB, ANY_PORT), version=6) == [
        "from 2001:db8::1 to 2001:db8:2::/48 ipproto tcp sport 80"
    ]
    assert rules(protecting("10.1.0.0/24", OTHER, 6, ANY_PORT, WEB)) == []  # no socket of this host
    assert rules(protecting(ME, OTHER, 6, OPAQUE_PORT, WEB)) == []
    assert rules(protecting(ME, OTHER, 47)) == []


@pytest.mark.parametrize(
    "made",
    [
        protecting(ME, "10.2.0.0/24", per_host=True),
        protecting(ME, "0.0.0.0/0", per_host=True),
        protecting(ME, OTHER, inbound_clear=True),
        protecting(ME, OTHER, 6, ANY_PORT, WEB, fallback_clear=True),
        replace(protecting(ME, OTHER), interfaces=ConnectionType.LAN),
        replace(protecting(ME, OTHER), outbound=False),
        entry("e", selector_pair(ME, OTHER), Disposition.BYPASS),
        protecting("0.0.0.0/0", OTHER),
    ],
)
def test_what_only_the_mark_can_steer(made: SpdEntry) -> None:
    assert rules(made) == []


def test_an_exception_leaves_it_to_the_mark() -> None:
    ssh = entry("ssh", selector_pair(ME, OTHER, 6, ANY_PORT, PortRange(22, 22)), Disposition.BYPASS)
    assert rules(ssh, protecting(ME, OTHER)) == []
    assert rules(ssh, protecting(ME, OTHER, 6, ANY_PORT, WEB)) == [
        "from 192.0.2.1 to 192.0.2.2 ipproto tcp dport 80"
    ]


def test_too_many_are_none() -> None:
    many = [
        protecting(ME, OTHER, 6, ANY_PORT, PortRange(port, port)) for port in range(1, _MAX_SELECTOR_RULES + 2)
    ]
    assert len(rules(*many[:-1])) == _MAX_SELECTOR_RULES
    assert rules(*many) == []
    assert rules(*many[:9], *many[:9]) == rules(*many[:9])
