"""strongSwan on a Linux kernel with XFRM as the other host: transport mode, AH, tunnels between hosts, by IKEv2.

client 10.9.0.1 (Mirrorgate)  ---  10.9.0.2 (strongSwan in a guest kernel)  ---  outsider 10.9.0.3
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.ipsec import AH, ESP

from tests.support.agent_process import Agent, Directory
from tests.support.capture import Capture
from tests.support.guest_net import GUEST, GUEST6
from tests.support.host_net import CLIENT_CODE, Hosts, ask
from tests.support.netns import Namespace, Pinging, wait_for
from tests.support.strongswan_guest import Child, StrongSwanGuest, connection, guest_host
from tests.support.uml import UmlGuest

pytestmark = pytest.mark.usefixtures("strongswan_there")

HERE, HERE6 = "10.9.0.1", "fd00:9::1"
HTTP, SSH = 80, 22
NOISE = "not arp and not icmp6 and not udp port 500 and not udp port 4500"


@pytest.fixture(scope="module")
def peers() -> Iterator[tuple[Hosts, StrongSwanGuest]]:
    missing = UmlGuest.missing()
    if missing:
        pytest.skip(missing)
    with guest_host("client", "outsider") as found:
        found[0].serve("client", HTTP, SSH)
        yield found


@pytest.fixture
def directory() -> Iterator[Directory]:
    with Directory() as made:
        yield made


def ours(directory: Directory, filters: str, methods: str, more: str = "", rule: str = "") -> Path:
    """Write our config: one rule over *filters* (inline tables) with *methods*."""
    return directory.config(
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
methods = [{methods}]
encapsulation = "none"
{more}
""",
    )


def web(there: str = GUEST) -> str:
    return f'{{ source = "me", destination = "{there}", protocol = "tcp", destination_port = 80 }}'


#: name: (our method, the child of strongSwan's that fits)
METHODS = {
    "ah-sha256": ('"ah:sha256"', {"ah": "sha256"}),
    "ah-sha512": ('"ah:sha512"', {"ah": "sha512"}),
    "esp-gcm": ('"esp:aes256gcm16"', {"esp": "aes256gcm16"}),
    "esp-cbc": ('"esp:aes128-sha256"', {"esp": "aes128-sha256"}),
    "esp-chacha": ('"esp:chacha20poly1305"', {"esp": "chacha20poly1305"}),
    "esp-null": ('"esp:null-sha256"', {"esp": "null-sha256"}),
}


@pytest.mark.parametrize("starter", ["mirrorgate", "strongswan"])
@pytest.mark.parametrize("name", METHODS)
def test_tcp_80_alone(peers: tuple[Hosts, StrongSwanGuest], directory: Directory, name: str, starter: str) -> None:
    built, guest = peers
    method, words = METHODS[name]
    guest.load(
        connection(directory.secret("hosts.psk"), Child("web", f"{GUEST}[tcp/80]", f"{HERE}[tcp]", **words))
    )
    with Agent(built["client"], ours(directory, web(), method)) as agent:
        if starter == "strongswan":
            guest.initiate("web")
        with Capture(built.link, "to-client", NOISE) as capture:
            assert ask(built["client"], GUEST, HTTP, octets=200_000), agent.log() + guest.log()
            assert ask(built["client"], GUEST, SSH)
        (child,) = agent.children()
        assert child["mode"] == "transport"
        assert child["packets_in"] > 10
        assert guest.dropped() == {}
    layer = AH if "ah" in words else ESP
    seen = [packet for packet in capture.packets() if packet.haslayer(IP)]
    assert sum(packet.haslayer(layer) for packet in seen) > 20
    ports = {port for p in seen if p.haslayer(TCP) and not p.haslayer(AH) for port in (p[TCP].sport, p[TCP].dport)}
    assert SSH in ports
    assert HTTP not in ports


@pytest.mark.parametrize("name", ["ah-sha256", "esp-gcm"])
def test_ipv6_and_every_protocol(peers: tuple[Hosts, StrongSwanGuest], directory: Directory, name: str) -> None:
    built, guest = peers
    method, words = METHODS[name]
    guest.load(
        connection(directory.secret("hosts.psk"), Child("all", GUEST6, HERE6, **words), remote=HERE6, local=GUEST6)
    )
    filters = f'{{ source = "{HERE6}", destination = "{GUEST6}" }}'
    with Agent(built["client"], ours(directory, filters, method)) as agent:
        assert built["client"].ping(GUEST6, count=3).returncode == 0, agent.log() + guest.log()
        assert ask(built["client"], GUEST6, HTTP, octets=200_000)
        assert ask(built["client"], GUEST6, HTTP, octets=4000, kind="udp")
        assert "0% packet loss" in guest.guest.run(f"ping -c 3 -i 0.2 {HERE6}")


@pytest.mark.parametrize("name", ["ah-sha256", "esp-gcm", "esp-cbc"])
def test_a_tunnel_between_the_hosts(peers: tuple[Hosts, StrongSwanGuest], directory: Directory, name: str) -> None:
    built, guest = peers
    method, words = METHODS[name]
    child = Child("tunnel", GUEST, HERE, mode="tunnel", **words)
    guest.load(connection(directory.secret("hosts.psk"), child))
    filters = f'{{ source = "{HERE}", destination = "{GUEST}" }}'
    config = ours(directory, filters, method, rule=f'tunnel_endpoint = "{GUEST}"')
    with Agent(built["client"], config) as agent:
        assert built["client"].ping(GUEST, count=3).returncode == 0, agent.log() + guest.log()
        assert ask(built["client"], GUEST, HTTP, octets=200_000)
        (child_sa,) = agent.children()
        assert child_sa["mode"] == "tunnel"
        assert guest.dropped() == {}


def test_icmp_and_ssh_have_sas_of_their_own(peers: tuple[Hosts, StrongSwanGuest], directory: Directory) -> None:
    built, guest = peers
    guest.load(
        connection(
            directory.secret("hosts.psk"),
            Child("ping", f"{GUEST}[icmp]", f"{HERE}[icmp]", esp="aes256gcm16"),
            Child("ssh", f"{GUEST}[tcp/22]", f"{HERE}[tcp]", esp="aes256gcm16"),
        )
    )
    filters = (
        f'{{ source = "me", destination = "{GUEST}", protocol = "icmp" }}, '
        f'{{ source = "me", destination = "{GUEST}", protocol = "tcp", destination_port = 22 }}'
    )
    with Agent(built["client"], ours(directory, filters, '"esp:aes256gcm16"')) as agent:
        assert built["client"].ping(GUEST).returncode == 0, agent.log() + guest.log()
        assert ask(built["client"], GUEST, SSH)
        wait_for(lambda: len(agent.children()) == 2, "two Child SAs")
        assert guest.child_sas() == 2
        assert len({peer["peer"] for peer in agent.status()["peers"]}) == 1


def test_the_guests_trap_starts_it(peers: tuple[Hosts, StrongSwanGuest], directory: Directory) -> None:
    built, guest = peers
    child = Child("web", f"{GUEST}[tcp]", f"{HERE}[tcp/80]", ah="sha256", extra="start_action = trap")
    guest.load(connection(directory.secret("hosts.psk"), child))
    filters = '{ source = "any", destination = "me", protocol = "tcp", destination_port = 80 }'
    with Agent(built["client"], ours(directory, filters, '"ah:sha256"')) as agent:
        command = f"{sys.executable} -c '{CLIENT_CODE}' tcp {HERE} 80 5000 10"
        assert guest.guest.run(command, timeout=40).strip().endswith("5000"), agent.log() + guest.log()
        assert ask(built["outsider"], HERE, SSH)
        assert not ask(built["outsider"], HERE, HTTP, wait=2), "an outsider without IPsec is refused"
        (child_sa,) = agent.children()
        assert child_sa["suite"].startswith("AH")


@pytest.mark.parametrize("by", ["mirrorgate", "strongswan"])
def test_a_rekey_loses_nothing(peers: tuple[Hosts, StrongSwanGuest], directory: Directory, by: str) -> None:
    built, guest = peers
    guest.load(connection(directory.secret("hosts.psk"), Child("all", GUEST, HERE, esp="aes256gcm16")))
    filters = f'{{ source = "me", destination = "{GUEST}" }}'
    with Agent(built["client"], ours(directory, filters, '"esp:aes256gcm16"')) as agent:
        assert built["client"].ping(GUEST).returncode == 0, agent.log() + guest.log()
        before = agent.children()[0]["child"]
        with Pinging(built["client"], GUEST, interval=0.02) as ping:
            wait_for(lambda: len(ping.answered) > 10, "answers")
            if by == "mirrorgate":
                agent.run("rekey")
            else:
                guest.swanctl("--rekey --child all")
            wait_for(lambda: [c["child"] for c in agent.children()] not in ([before], []), "a new Child SA")
            said = len(ping.answered)
            wait_for(lambda: len(ping.answered) > said + 50, "answers on the new one")
        assert ping.lost == []


def test_forged_and_replayed_packets_are_dropped_and_counted(
    peers: tuple[Hosts, StrongSwanGuest], directory: Directory
) -> None:
    built, guest = peers
    guest.load(
        connection(directory.secret("hosts.psk"), Child("web", f"{GUEST}[tcp/80]", f"{HERE}[tcp]", ah="sha256"))
    )
    with Agent(built["client"], ours(directory, web(), '"ah:sha256"')) as agent:
        with Capture(built.link, "to-client", "ip proto 51") as capture:
            assert ask(built["client"], GUEST, HTTP, octets=5000), agent.log() + guest.log()
        packets = [packet[IP] for packet in capture.packets()]
        to_us = next(bytes(packet) for packet in reversed(packets) if packet.dst == HERE)
        to_guest = next(bytes(packet) for packet in reversed(packets) if packet.dst == GUEST)
        for packet in (to_us, to_guest):
            forged = bytearray(packet)
            forged[28:32] = (int.from_bytes(forged[28:32], "big") + 500).to_bytes(
                4, "big"
            )  # a number not seen yet
            _send_raw(built["outsider"], bytes(forged))
            _send_raw(built["outsider"], packet)
        wait_for(lambda: agent.status()["drops"].get("replayed"), "the replay is counted", 5)
        assert agent.status()["drops"] == {"integrity": 1, "replayed": 1}
        wait_for(lambda: "XfrmInStateSeqError" in guest.dropped(), "the kernel counts the replay", 5)
        assert guest.dropped()["XfrmInStateProtoError"] == 1
        assert ask(built["client"], GUEST, HTTP, octets=5000)


def _send_raw(namespace: Namespace, packet: bytes) -> None:
    """Send an IP packet as it is, from another host: who knows who sent it?"""
    code = (
        "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 255); "
        "p = bytes.fromhex(sys.argv[1]); s.sendto(p, (socket.inet_ntoa(p[16:20]), 0))"
    )
    namespace.run(sys.executable, "-c", code, packet.hex())
