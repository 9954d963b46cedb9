"""Well-known servers from the files of the programs that know them, and interfaces by kind."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.host import servers
from tunnel.host.links import Links, parse
from tunnel.host.servers import default_gateways, dhclient_leases, keyed_lease, resolv_conf, smb_conf


def texts(addresses: object) -> list[str]:
    assert isinstance(addresses, (list, tuple))
    return [str(address) for address in addresses]


@pytest.mark.parametrize("odd", [{"via": "10.0.0.1"}, {"via": 5}, {"nexthops": 7}, {"nexthops": ["x", None]}])
def test_a_default_route_of_another_shape_names_no_gateway(odd: dict[str, object]) -> None:
    assert default_gateways([{"dst": "default", **odd}]) == []


def test_resolv_conf() -> None:
    text = (
        "# nameserver 192.0.2.9\nsearch example\nnameserver 192.0.2.1 # first\nnameserver\tfe80::1%eth0\n"
        "nameserver 127.0.0.53\nnameserver nonsense\nnameserver\noptions edns0\n"
    )
    assert texts(resolv_conf(text)) == ["192.0.2.1", "fe80::1"]


def test_default_gateways() -> None:
    routes = [
        {"dst": "10.0.0.0/8", "gateway": "10.0.0.9"},
        {"dst": "default", "gateway": "192.0.2.2", "dev": "eth1", "metric": 200},
        {"dst": "default", "gateway": "192.0.2.1", "dev": "eth0", "metric": 100},
        {"dst": "default", "dev": "ppp0", "metric": 50},
        {"dst": "default", "metric": 300, "nexthops": [{"gateway": "192.0.2.3"}, {"via": {"host": "fe80::3"}}]},
        "nonsense",
    ]
    assert texts(default_gateways(routes)) == ["192.0.2.1", "192.0.2.2", "192.0.2.3", "fe80::3"]


def test_leases_of_networkd_and_network_manager() -> None:
    assert texts(keyed_lease("# private\nADDRESS=192.0.2.7\nSERVER_ADDRESS=192.0.2.1\nNTP=192.0.2.3\n")) == [
        "192.0.2.1"
    ]
    assert texts(keyed_lease("[dhcp]\ndhcp4.dhcp_server_identifier='192.0.2.2'\n")) == ["192.0.2.2"]
    assert keyed_lease("SERVER_ADDRESS=\nSERVER_ADDRESS=x\n=\n") == []


def test_the_last_lease_of_each_interface_counts() -> None:
    def lease(interface: str, server: str) -> str:
        return (
            f'lease {{\n  interface "{interface}";\n  option dhcp-lease-time 600;\n'
            f"  option dhcp-server-identifier {server};\n  renew 1 2026/11/23 10:00:00;\n}}\n"
        )

    text = lease("eth0", "192.0.2.1") + lease("eth1", "192.0.2.2") + lease("eth0", "192.0.2.3")
    assert texts(dhclient_leases(text)) == ["192.0.2.3", "192.0.2.2"]
    assert dhclient_leases("lease {\n}\noption dhcp-server-identifier x;") == []


def test_samba() -> None:
    text = "[global]\n  WINS  Server = 192.0.2.1, eth1:192.0.2.2 # not this\n; wins server = 192.0.2.9\n"
    assert texts(smb_conf(text)) == ["192.0.2.1", "192.0.2.2"]


def test_files_are_found_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    routes = {"-4": [{"dst": "default", "gateway": "192.0.2.254"}], "-6": []}
    monkeypatch.setattr(servers, "run_json", lambda arguments: routes[arguments[2]])
    assert servers.current(tmp_path) == servers.Servers(gateway=(ip_address("192.0.2.254"),))
    put("etc/resolv.conf", "nameserver 127.0.0.53\n")
    put("run/systemd/resolve/resolv.conf", "nameserver 192.0.2.53\n")
    put("run/systemd/netif/leases/2", "SERVER_ADDRESS=192.0.2.67\n")
    put("var/lib/dhcp/dhclient.eth1.leases", "lease {\n option dhcp-server-identifier 192.0.2.68;\n}\n")
    put("etc/samba/smb.conf", "wins server = 192.0.2.42\n")
    found = servers.current(tmp_path)
    assert texts(found.dns) == ["192.0.2.53"]
    assert texts(found.gateway) == ["192.0.2.254"]
    assert texts(found.dhcp) == ["192.0.2.67", "192.0.2.68"]
    assert texts(found.wins) == ["192.0.2.42"]


def test_reading_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/resolv.conf").write_bytes(b"#" * (1 << 20) + b"\nnameserver 192.0.2.1\n")
    assert servers._dns(tmp_path) == ()
    (tmp_path / "etc/resolv.conf").unlink()
    (tmp_path / "etc/resolv.conf").mkdir()
    assert servers._dns(tmp_path) == ()


@given(st.text())
def test_parsers_raise_nothing(text: str) -> None:
    for parser in (resolv_conf, keyed_lease, dhclient_leases, smb_conf):
        parser(text + f"\nlease {{ {text}\nSERVER_ADDRESS={text}\nnameserver {text}\nwins server={text}")


def test_interfaces_by_kind() -> None:
    said = [
        {"ifname": "lo", "link_type": "loopback", "flags": ["LOOPBACK", "UP"]},
        {"ifname": "wlan0", "link_type": "ether", "flags": ["BROADCAST"]},
        {"ifname": "br-lan.7", "link_type": "ether", "flags": []},
        {"ifname": "ppp0", "link_type": "ppp", "flags": ["POINTOPOINT"]},
        {"ifname": "wg0", "link_type": "none", "flags": ["POINTOPOINT", "NOARP"]},
        {"ifname": "tap0", "link_type": "ether", "flags": ["POINTOPOINT"]},
        {"ifname": "mg0", "link_type": "none", "flags": ["POINTOPOINT"]},
        {"ifname": 'x" accept', "link_type": "ether", "flags": []},
        {"ifname": "eth*", "link_type": "ether", "flags": []},
        "nonsense", {},
    ]  # fmt: skip
    assert parse(said, "mg0") == Links(("br-lan.7", "wlan0"), ("ppp0", "tap0", "wg0"))
