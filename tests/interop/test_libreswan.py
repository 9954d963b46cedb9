"""Libreswan on a Linux kernel with XFRM as the other host: transport mode, AH, and tunnels, by IKEv2.

client 10.9.0.1 (Mirrorgate)  ---  10.9.0.2 (Libreswan in a guest kernel)
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.ipsec import AH, ESP

from tests.support import libreswan_guest
from tests.support.agent_process import Agent, Directory
from tests.support.capture import Capture
from tests.support.guest_net import GUEST, GUEST6
from tests.support.host_net import CLIENT_CODE, Hosts, ask
from tests.support.libreswan_guest import LibreswanGuest, connection
from tests.support.netns import Pinging, wait_for
from tests.support.uml import UmlGuest

HERE, HERE6 = "10.9.0.1", "fd00:9::1"
LAN_A, LAN_B = "10.1.0.0/24", "10.2.0.0/24"
HTTP, SSH = 80, 22
ALL = f'{{ source = "{HERE}", destination = "{GUEST}" }}'
_STARTERS = pytest.mark.parametrize("starter", ["mirrorgate", "libreswan"])

#: name: (our method, Libreswan's words)
METHODS = {
    "ah-sha256": ("ah:sha256", {"phase2": "ah", "phase2alg": "sha2_256"}),
    "ah-sha512": ("ah:sha512", {"phase2": "ah", "phase2alg": "sha2_512"}),
    "esp-gcm": ("esp:aes256gcm16", {"esp": "aes_gcm256"}),
    "esp-cbc": ("esp:aes128-sha256", {"esp": "aes128-sha2_256"}),
    "esp-null": ("esp:null-sha256", {"esp": "null-sha2_256"}),
}


@pytest.fixture(scope="module")
def peers() -> Iterator[tuple[Hosts, LibreswanGuest]]:
    missing = UmlGuest.missing()
    if missing:
        pytest.skip(missing)
    try:
        libreswan_guest.unpack()
    except RuntimeError as error:
        pytest.skip(str(error))
    with libreswan_guest.guest_host("client") as found:
        found[0].serve("client", HTTP, SSH)
        yield found


@pytest.fixture
def directory() -> Iterator[Directory]:
    with Directory() as made:
        yield made


@contextlib.contextmanager
def between(
    peers: tuple[Hosts, LibreswanGuest],
    directory: Directory,
    filters: str,
    name: str = "esp-gcm",
    *,
    rule: str = "",
    action: str = 'encapsulation = "none"',
    **words: str,
) -> Iterator[Agent]:
    """Configure both ends with method *name*; run ours. *words* are what Libreswan's connection says besides."""
    built, guest = peers
    method, algorithms = METHODS[name]
    defaults = {
        "left": GUEST, "right": HERE, "authby": "secret", "ikev2": "insist", "type": "transport", "pfs": "no",
        "leftupdown": "%disabled", "ike": "aes_gcm256-sha2_384;dh31", "retransmit_timeout": "10s",
    }  # fmt: skip
    guest.load(directory.secret("hosts.psk"), host=connection("host", **{**defaults, **algorithms, **words}))
    config = directory.config(
        "client.toml",
        text=f"""
[agent]
assigned = "P"
[[policy]]
name = "P"
ike = {{ proposals = ["aes256gcm16-prfsha384-x25519"] }}
[[policy.rule]]
name = "R"
filter_list = "L"
filter_action = "A"
authentication = [{{ method = "psk", secret_file = "hosts.psk" }}]
{rule}
[[filter_list]]
name = "L"
filter = [{filters}]
[[filter_action]]
name = "A"
action = "negotiate"
methods = ["{method}"]
{action}
""",
    )
    with Agent(built["client"], config) as agent:
        try:
            yield agent
        except BaseException:
            print(f"--- log of Libreswan\n{guest.log()[-8000:]}\n{guest.whack('--trafficstatus', check=False)}")
            raise


@_STARTERS
@pytest.mark.parametrize("name", METHODS)
def test_tcp_80_alone(peers: tuple[Hosts, LibreswanGuest], directory: Directory, name: str, starter: str) -> None:
    built, guest = peers
    filters = f'{{ source = "me", destination = "{GUEST}", protocol = "tcp", destination_port = 80 }}'
    with between(
        peers, directory, filters, name, leftprotoport="tcp/80", rightprotoport="tcp/%any"
    ) as agent:  # fmt: skip
        if starter == "libreswan":
            guest.initiate("host")
        with Capture(built.link, "to-client", "not arp and not icmp6 and not udp") as capture:
            assert ask(built["client"], GUEST, HTTP, octets=200_000)
            assert ask(built["client"], GUEST, SSH)
        (child,) = agent.children()
        assert child["mode"] == "transport"
        (ike_sa,) = agent.status()["peers"][0]["ike_sas"]
        assert ike_sa["role"] == ("initiator" if starter == "mirrorgate" else "responder")
        assert guest.child_sas() == 1
        assert guest.dropped() == {}
    seen = [packet for packet in capture.packets() if packet.haslayer(IP)]
    assert sum(packet.haslayer(AH if name.startswith("ah") else ESP) for packet in seen) > 20
    ports = {port for p in seen if p.haslayer(TCP) and not p.haslayer(AH) for port in (p[TCP].sport, p[TCP].dport)}
    assert SSH in ports
    assert HTTP not in ports


@pytest.mark.parametrize("name", ["ah-sha256", "esp-gcm"])
def test_ipv6_and_every_protocol(peers: tuple[Hosts, LibreswanGuest], directory: Directory, name: str) -> None:
    built, guest = peers
    filters = f'{{ source = "{HERE6}", destination = "{GUEST6}" }}'
    with between(peers, directory, filters, name, left=GUEST6, right=HERE6):
        assert built["client"].ping(GUEST6, count=3).returncode == 0
        assert ask(built["client"], GUEST6, HTTP, octets=200_000)
        assert ask(built["client"], GUEST6, HTTP, octets=4000, kind="udp")
        assert " 0% packet loss" in guest.guest.run(f"ping -c 3 -i 0.2 {HERE6}")
        assert guest.dropped() == {}


@_STARTERS
@pytest.mark.parametrize("encapsulation", ["none", "udp"])
def test_a_tunnel(
    peers: tuple[Hosts, LibreswanGuest], directory: Directory, encapsulation: str, starter: str
) -> None:
    built, guest = peers
    with between(
        peers, directory, f'{{ source = "{HERE}", destination = "{GUEST}" }}', "esp-cbc",
        rule=f'tunnel_endpoint = "{GUEST}"', action=f'encapsulation = "{encapsulation}"\npfs = "x25519"',
        type="tunnel", pfs="yes", encapsulation="yes" if encapsulation == "udp" else "no",
    ) as agent:  # fmt: skip
        if starter == "libreswan":
            guest.initiate("host")
        assert built["client"].ping(GUEST, count=3, wait=8).returncode == 0
        assert ask(built["client"], GUEST, HTTP, octets=1_000_000)
        (child,) = agent.children()
        assert (child["mode"], child["encapsulation"]) == ("tunnel", encapsulation)
        agent.run("rekey")
        wait_for(lambda: [c["child"] for c in agent.children()] not in ([child["child"]], []), "a new Child SA")
        assert built["client"].ping(GUEST, count=3).returncode == 0
        assert guest.dropped() == {}


@pytest.mark.parametrize("name", ["ah-sha256", "esp-gcm"])
def test_rekeying_under_traffic_loses_nothing(
    peers: tuple[Hosts, LibreswanGuest], directory: Directory, name: str
) -> None:
    built, guest = peers
    steps = ["our child", "their child", "our IKE SA", "their IKE SA", "our child", "their child"]
    if name.startswith(
        "ah"
    ):  # Libreswan before 5.0 deletes an AH SA that it rekeyed by the SPI of an ESP SA: nobody's
        steps = [step for step in steps if step != "their child"]
    with between(peers, directory, ALL, name) as agent:
        assert built["client"].ping(GUEST).returncode == 0
        with Pinging(built["client"], GUEST) as ping:
            for step in steps:
                known = _spis(agent, step)
                if step.startswith("their"):
                    guest.whack(f"--rekey-{'ike' if 'IKE' in step else 'ipsec'} --name host --asynchronous")
                else:
                    agent.run("rekey", *(["--ike"] if "IKE" in step else []))
                wait_for(lambda step=step, known=known: _spis(agent, step) - known, f"{step} is new")
                wait_for(lambda: len(agent.children()) == 1, "the old Child SA is gone")
        assert ping.lost == []
        wait_for(lambda: guest.child_sas() == 1, "Libreswan has one Child SA")


def test_a_trap_at_libreswan_starts_it(peers: tuple[Hosts, LibreswanGuest], directory: Directory) -> None:
    filters = '{ source = "any", destination = "me", protocol = "tcp", destination_port = 80 }'
    with between(
        peers, directory, filters, "ah-sha256", leftprotoport="tcp", rightprotoport="tcp/80", auto="route"
    ) as agent:
        command = f"{sys.executable} -c '{CLIENT_CODE}' tcp {HERE} 80 5000 10"
        assert peers[1].guest.run(command, timeout=40).strip().endswith("5000")
        (child,) = agent.children()
        assert child["suite"].startswith("AH")


@pytest.mark.parametrize("by", ["mirrorgate", "libreswan"])
def test_delete(peers: tuple[Hosts, LibreswanGuest], directory: Directory, by: str) -> None:
    built, guest = peers
    with between(peers, directory, ALL) as agent:
        assert built["client"].ping(GUEST).returncode == 0
        if by == "mirrorgate":
            agent.run("terminate", "R")
        else:
            guest.whack("--terminate --name host")
        wait_for(lambda: agent.children() == [] and guest.child_sas() == 0, "no Child SA at both ends")
        assert built["client"].ping(GUEST, wait=8).returncode == 0


def _spis(agent: Agent, step: str) -> set[str]:
    if "IKE" in step:
        return {sa["spi_i"] for peer in agent.status()["peers"] for sa in peer["ike_sas"]}
    return {child["spi_in"] for child in agent.children()}
