"""Selected ports between hosts: transport mode and AH on real packets, and all else left alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import AH

from tests.support.agent_process import Agent, Directory
from tests.support.capture import Capture
from tests.support.host_net import Hosts, ask, hosts, narrow_path
from tests.support.netns import wait_for

pytestmark = pytest.mark.e2e

CLIENT, SERVER, OUTSIDER = "10.9.0.1", "10.9.0.2", "10.9.0.3"
HTTP, SSH = 80, 22
UDP_ENCAPSULATED = 'encapsulation = "udp"\n'
RAW = 'encapsulation = "none"\n'


@pytest.fixture(scope="module")
def trio() -> Iterator[Hosts]:
    """A client, a server that answers on ports 80 and 22, and an outsider without IPsec."""
    with hosts("client", "server", "outsider") as built:
        built.serve("server", HTTP, SSH, 5432)
        built.serve("client", 9000)
        yield built


@pytest.fixture
def directory() -> Iterator[Directory]:
    with Directory() as made:
        yield made


def test_the_web_server_exercise(trio: Hosts, directory: Directory) -> None:
    configs = [directory.config(name) for name in ("web-server.toml", "web-client.toml")]
    with Agent(trio["server"], configs[0]) as server, Agent(trio["client"], configs[1]) as client:
        with Capture(trio.link, "to-client", "not arp and not icmp6") as capture:
            assert ask(trio["client"], SERVER, HTTP, octets=100_000)
            assert ask(trio["client"], SERVER, SSH)
        assert not ask(trio["outsider"], SERVER, HTTP, wait=2), "an outsider without IPsec is refused"
        assert ask(trio["outsider"], SERVER, SSH), "and other ports are nobody's business"
        (child,) = client.children()
        assert (child["mode"], child["encapsulation"]) == ("transport", "none")
        assert child["suite"].startswith("AH")
        assert server.status()["guard"]["clear_in"] > 0
    clear_ports, under_ah = set(), 0
    for packet in capture.packets():
        if packet.haslayer(AH):
            under_ah += 1
            inside = TCP(bytes(packet[AH].payload))
            assert HTTP in (inside.sport, inside.dport)
        elif packet.haslayer(TCP):
            clear_ports |= {packet[TCP].sport, packet[TCP].dport} & {HTTP, SSH}
    assert under_ah > 10
    assert clear_ports == {SSH}


@pytest.mark.parametrize("encapsulation", [UDP_ENCAPSULATED, RAW, ""], ids=["udp", "raw", "auto"])
def test_one_port_between_two_hosts(trio: Hosts, directory: Directory, encapsulation: str) -> None:
    change = ('pfs = "x25519"\n', f'pfs = "x25519"\n{encapsulation}')
    server, client = (directory.config(f"database-port-{end}.toml", change) for end in ("server", "client"))
    with Agent(trio["server"], server), Agent(trio["client"], client) as agent:
        with Capture(trio.link, "to-client", "not arp and not icmp6") as capture:
            assert ask(trio["client"], SERVER, 5432, octets=2_000_000)
            assert ask(trio["client"], SERVER, SSH)
        assert not ask(trio["outsider"], SERVER, 5432, wait=2)
        (child,) = agent.children()
        assert child["mode"] == "transport"
        assert child["packets_in"] > 10
    seen = _ports_in_clear(capture)
    assert 5432 not in seen
    assert SSH in seen


def test_ipv6_between_two_hosts(trio: Hosts, directory: Directory) -> None:
    """ServerIP of TunnelCrack, CVE-2023-36673 and CVE-2023-36671: the peer's own address is protected like any.

    What IKE and ESP themselves send is told by its mark, and not by where it goes.
    """
    one, other = (directory.config(f"ipv6-transport-{end}.toml") for end in ("a", "b"))
    with Agent(trio["client"], one), Agent(trio["server"], other):
        with Capture(trio.link, "to-client", "ip6 and not icmp6") as capture:
            assert trio["client"].ping("fd00:9::2").returncode == 0
            assert ask(trio["client"], "fd00:9::2", HTTP, octets=500_000)
            assert ask(trio["server"], "fd00:9::1", 9000, octets=500_000)
        assert ask(trio["client"], SERVER, HTTP), "IPv4 is not in the filters"
    assert not _ports_in_clear(capture)


@pytest.mark.parametrize("encapsulation", [UDP_ENCAPSULATED, RAW], ids=["udp", "raw"])
@pytest.mark.parametrize("address", [SERVER, "fd00:9::2"])
def test_datagrams_larger_than_the_link(
    trio: Hosts, directory: Directory, address: str, encapsulation: str
) -> None:
    with _port_secured(
        trio, directory, address, 'protocol = "udp"\ndestination_port = 80', encapsulation
    ) as agent:
        with Capture(trio.link, "to-client", "not arp and not icmp6") as capture:
            assert ask(trio["client"], address, HTTP, octets=4000, kind="udp")
            assert ask(trio["client"], address, HTTP, octets=20000, kind="udp")
        assert agent.children()
    assert not any(packet.haslayer(UDP) and packet[UDP].dport == HTTP for packet in capture.packets())


@pytest.mark.parametrize(
    ("encapsulation", "method"),
    [(UDP_ENCAPSULATED, "esp:aes128gcm16"), (RAW, "esp:aes128gcm16"), (RAW, "ah:sha256")],
    ids=["udp", "raw", "ah"],
)
@pytest.mark.parametrize("server", ["10.9.2.1", "fd00:9:2::1"])
def test_tcp_through_a_narrow_path(directory: Directory, server: str, encapsulation: str, method: str) -> None:
    # A link between two routers takes 1300 octets and nobody was told: no black hole, no setting by hand.
    words = 'protocol = "tcp"\ndestination_port = 80'
    with narrow_path(1300) as path:
        path.serve("server", HTTP)
        path.serve("client", 9000)
        with _port_secured(path, directory, server, words, encapsulation, method):
            assert ask(path["client"], server, HTTP, octets=3_000_000, wait=10)


def test_ah_and_esp_on_one_packet(trio: Hosts, directory: Directory) -> None:
    words = 'protocol = "tcp"\ndestination_port = 80'
    with _port_secured(trio, directory, SERVER, words, "", "ah:sha256+esp:aes256-sha256") as agent:
        with Capture(trio.link, "to-client", "ip and not icmp and not udp") as capture:
            assert ask(trio["client"], SERVER, HTTP, octets=500_000)
            agent.run("rekey")
            assert ask(trio["client"], SERVER, HTTP, octets=500_000)
        wait_for(lambda: len(agent.children()) == 2, "one pair of each")
        assert sorted(child["suite"].split()[0] for child in agent.children()) == ["AH", "ESP"]
    assert capture.packets()
    assert all(packet.haslayer(AH) and packet[AH].nh == 50 for packet in capture.packets())


def test_kill_and_the_port_never_in_clear(trio: Hosts, directory: Directory) -> None:
    server, client = (directory.config(f"database-port-{end}.toml") for end in ("server", "client"))
    with (
        Agent(trio["server"], server) as one,
        Agent(trio["client"], client) as other,
        Capture(trio.link, "to-client", "tcp port 5432") as clear,
    ):
        assert ask(trio["client"], SERVER, 5432)
        for agent in (other, one, other):
            agent.kill()
            assert not ask(trio["client"], SERVER, 5432, wait=1)
            assert ask(trio["client"], SERVER, SSH), "other ports are undisturbed"
            agent.start()
            wait_for(lambda: ask(trio["client"], SERVER, 5432, wait=1), "traffic flows again", 10)
    assert clear.packets() == []


class _port_secured:
    """Two agents that protect one kind of traffic between client and server."""

    def __init__(
        self, built: Hosts, directory: Directory, server: str, words: str, encapsulation: str, method: str = ""
    ) -> None:
        self._built = built
        client = {"fd00:9::2": "fd00:9::1", "fd00:9:2::1": "fd00:9:1::1", "10.9.2.1": "10.9.1.1"}.get(
            server, CLIENT
        )
        self._configs = []
        for name in ("client", "server"):
            text = _TEXT.format(client=client, server=server, words=words, encapsulation=encapsulation,
                                method=method or "esp:aes128gcm16")  # fmt: skip
            self._configs.append(directory.config(f"port-{name}.toml", text=text))
        self._agents: list[Agent] = []

    def __enter__(self) -> Agent:
        for name, config in zip(("client", "server"), self._configs, strict=True):
            agent = Agent(self._built[name], config)
            self._agents.append(agent)
            agent.__enter__()
        return self._agents[0]

    def __exit__(self, *error: Any) -> None:
        for agent in reversed(self._agents):
            agent.__exit__(*error)


_OTHER_END = {SERVER: CLIENT, "fd00:9::2": "fd00:9::1", "10.9.2.1": "10.9.1.1", "fd00:9:2::1": "fd00:9:1::1"}
_TEXT = """
[agent]
assigned = "P"
[[policy]]
name = "P"
[[policy.rule]]
name = "R"
filter_list = "L"
filter_action = "A"
authentication = [{{ method = "psk", secret_file = "port.psk" }}]
[[filter_list]]
name = "L"
[[filter_list.filter]]
source = "{client}"
destination = "{server}"
{words}
[[filter_action]]
name = "A"
action = "negotiate"
methods = ["{method}"]
{encapsulation}
"""


def _ports_in_clear(capture: Capture) -> set[int]:
    """Return the TCP and UDP ports that could be read, IKE's and those of encapsulated ESP aside."""
    found = set()
    for packet in capture.packets():
        network = packet[IP] if packet.haslayer(IP) else packet[IPv6] if packet.haslayer(IPv6) else None
        if network is None or not (packet.haslayer(TCP) or packet.haslayer(UDP)):
            continue
        layer = packet[TCP] if packet.haslayer(TCP) else packet[UDP]
        ports = {int(layer.sport), int(layer.dport)}
        if not ports & {500, 4500}:
            found |= ports
    return found
