"""strongSwan on a Linux kernel with XFRM as the other gateway: raw ESP, both IP versions, rekeyed by either.

    LAN host 10.1.0.5 --- Mirrorgate 10.9.0.1 === 10.9.0.2 strongSwan in a guest kernel (its LAN: 10.2.0.5)

Raw ESP and UDP-encapsulated, outer and inner IPv4 and IPv6, both sides as initiator.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from tests.support.agent_process import Agent, Directory
from tests.support.capture import Capture
from tests.support.guest_net import GUEST, GUEST6
from tests.support.host_net import CLIENT_CODE, Hosts, ask
from tests.support.netns import Namespace, Pinging, wait_for
from tests.support.strongswan_guest import Child, StrongSwanGuest, connection, guest_host
from tests.support.uml import UmlGuest

pytestmark = pytest.mark.usefixtures("strongswan_there")

OURS = {4: "10.9.0.1", 6: "fd00:9::1"}
THEIRS = {4: GUEST, 6: GUEST6}
LAN_A, LAN_B = {4: "10.1.0.5", 6: "fd00:1::5"}, {4: "10.2.0.5", 6: "fd00:2::5"}
NETS = {4: ("10.1.0.0/24", "10.2.0.0/24"), 6: ("fd00:1::/64", "fd00:2::/64")}
HTTP = 80
_ROLES = pytest.mark.parametrize("starter", ["mirrorgate", "strongswan"])
_ENCAPSULATIONS = pytest.mark.parametrize("encapsulation", ["none", "udp"])


@dataclass(frozen=True)
class Site:
    """The two gateways and our LAN host."""

    hosts: Hosts
    lan: Namespace
    guest: StrongSwanGuest

    @property
    def gateway(self) -> Namespace:
        return self.hosts["gateway"]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    missing = UmlGuest.missing()
    if missing:
        pytest.skip(missing)
    with guest_host("gateway") as (built, guest):
        lan = built.hosts["lan"] = built.network.namespace("lan")
        gateway = built["gateway"]
        built.network.link((lan, "eth0"), (gateway, "lan"))
        gateway.sysctl(net__ipv4__ip_forward=1, net__ipv6__conf__all__forwarding=1)
        lines: dict[Namespace, list[str]] = {lan: [], gateway: []}
        for version, bits in ((4, 24), (6, 64)):
            router = LAN_A[version].removesuffix("5") + "1"
            nodad = "nodad" if version == 6 else ""
            lines[lan] += [f"addr add {LAN_A[version]}/{bits} dev eth0 {nodad}", f"route add default via {router}"]
            # A packet that left in clear would arrive: no leak is hidden by a missing route.
            lines[gateway] += [
                f"addr add {router}/{bits} dev lan {nodad}",
                f"route add {NETS[version][1]} via {THEIRS[version]}",
            ]
            guest.guest.run(
                f"ip addr add {LAN_B[version]}/{bits} dev lo {nodad};"
                f"ip route add {NETS[version][0]} via {OURS[version]} src {LAN_B[version]}"
            )
        for namespace, batch in lines.items():
            namespace.batch(batch)
        built.serve("lan", HTTP)
        yield Site(built, lan, guest)


@pytest.fixture
def directory() -> Iterator[Directory]:
    with Directory() as made:
        yield made


#: name: (our method, strongSwan's esp_proposals)
SUITES = {
    "gcm": ("esp:aes256gcm16", "aes256gcm16-x25519"),
    "cbc": ("esp:aes128-sha256", "aes128-sha256-x25519"),
}


@contextlib.contextmanager
def tunnel(
    site: Site,
    directory: Directory,
    *,
    outer: int = 4,
    inner: int = 4,
    suite: str = "gcm",
    encapsulation: str = "none",
    more: str = "",
) -> Iterator[Agent]:
    """Configure both; run ours."""
    method, esp = SUITES[suite]
    site.guest.load(
        connection(
            directory.secret("site.psk"),
            Child("lan", NETS[inner][1], NETS[inner][0], mode="tunnel", esp=esp, extra=more),
            remote=OURS[outer], local=THEIRS[outer],
            extra="encap = yes" if encapsulation == "udp" else "",
        )
    )  # fmt: skip
    config = directory.config(
        "gateway.toml",
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
tunnel_endpoint = "{THEIRS[outer]}"
authentication = [{{ method = "psk", secret_file = "site.psk" }}]
[[filter_list]]
name = "L"
filter = [{{ source = "{NETS[inner][0]}", destination = "{NETS[inner][1]}" }}]
[[filter_action]]
name = "A"
action = "negotiate"
methods = ["{method}"]
pfs = "x25519"
encapsulation = "{encapsulation}"
""",
    )
    with Agent(site.gateway, config) as agent:
        try:
            yield agent
        except BaseException:
            print(f"--- log of strongSwan\n{site.guest.log()[-8000:]}")
            print(site.guest.swanctl("--list-sas", check=False), site.guest.guest.run("ip -s xfrm state"))
            raise


def bring_up(site: Site, starter: str, inner: int = 4) -> None:
    """Let *starter* start the tunnel: Mirrorgate by the first packet of a flow, which must arrive."""
    if starter == "strongswan":
        site.guest.initiate("lan")
    done = site.lan.ping(LAN_B[inner], wait=8)
    assert done.returncode == 0, done.stdout


class GuestPinging:
    """A ping out of the guest for the length of a block; ``lost`` is known after."""

    def __init__(self, site: Site, target: str) -> None:
        self._site = site
        self._target = target
        self.lost: list[int] = []
        self.answered = 0

    def __enter__(self) -> GuestPinging:
        self._site.guest.guest.run(f"ping -n -i 0.05 {self._target} >/run/ping.log 2>&1 & echo $! >/run/ping.pid")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        said = self._site.guest.guest.run("kill -INT $(cat /run/ping.pid); sleep 0.3; cat /run/ping.log")
        transmitted = re.search(r"(\d+) packets transmitted", said)
        assert transmitted is not None, said[-500:]
        came = {int(number) for number in re.findall(r"icmp_seq=(\d+)", said)}
        self.answered = len(came)
        # The last may have been on its way at the end.
        self.lost = [number for number in range(1, int(transmitted[1])) if number not in came]


@_ROLES
@pytest.mark.parametrize(
    ("outer", "inner", "encapsulation", "suite"),
    [
        *((outer, inner, "none", "gcm") for outer in (4, 6) for inner in (4, 6)),
        (4, 4, "udp", "gcm"),
        (6, 6, "udp", "gcm"),
        (4, 4, "none", "cbc"),
        (6, 4, "udp", "cbc"),
    ],
)
def test_traffic_both_ways(
    site: Site, directory: Directory, outer: int, inner: int, encapsulation: str, suite: str, starter: str
) -> None:
    with (
        Capture(site.hosts.link, "to-gateway", "not arp and not icmp6") as capture,
        tunnel(site, directory, outer=outer, inner=inner, suite=suite, encapsulation=encapsulation) as ours,
    ):
        bring_up(site, starter, inner)
        # The first large packet over IPv6 may be spent on learning the path MTU.
        assert site.lan.ping(LAN_B[inner], "-s", "3000", count=2).returncode == 0
        assert " 0% packet loss" in site.guest.guest.run(f"ping -c 1 -s 3000 {LAN_A[inner]}")
        assert ask(site.lan, LAN_B[inner], HTTP, octets=1_000_000)
        command = f"{sys.executable} -c '{CLIENT_CODE}' tcp {LAN_A[inner]} {HTTP} 1000000 10"
        assert site.guest.guest.run(command, 60).strip().rpartition("\n")[2] == "1000000"
        (child,) = ours.children()
        assert (child["mode"], child["encapsulation"]) == ("tunnel", encapsulation)
        (ike_sa,) = ours.status()["peers"][0]["ike_sas"]
        assert ike_sa["role"] == ("initiator" if starter == "mirrorgate" else "responder")
        assert ours.status()["drops"] == {}
        assert site.guest.dropped() == {}
        assert site.guest.child_sas() == 1
    kinds = [_kind(packet) for packet in capture.packets()]
    assert kinds.count("clear") == 0
    assert kinds.count("esp-in-udp" if encapsulation == "udp" else "esp") > 200
    assert kinds.count("esp" if encapsulation == "udp" else "esp-in-udp") == 0


@_ENCAPSULATIONS
@pytest.mark.parametrize("outer", [4, 6])
def test_rekeying_under_traffic_loses_nothing(
    site: Site, directory: Directory, outer: int, encapsulation: str
) -> None:
    with tunnel(site, directory, outer=outer, encapsulation=encapsulation) as ours:
        bring_up(site, "mirrorgate")
        with Pinging(site.lan, LAN_B[4]) as ping, GuestPinging(site, LAN_A[4]) as back:
            for step in ("our child", "their child", "our IKE SA", "their IKE SA", "our child", "their child"):
                known = _spis(ours, step)
                _rekey(site, ours, step)
                wait_for(lambda step=step, known=known: _spis(ours, step) - known, f"{step} is new")
                wait_for(lambda: len(ours.children()) == 1, "the old Child SA is gone")
        assert ping.lost == []
        assert back.lost == []
        assert back.answered > 20
        wait_for(lambda: site.guest.child_sas() == 1, "strongSwan has one Child SA")
        assert site.guest.dropped() == {}


@pytest.mark.parametrize("ended", ["by mirrorgate", "by strongswan", "by strongswan with its IKE SA"])
def test_delete(site: Site, directory: Directory, ended: str) -> None:
    with (
        Capture(site.hosts.link, "to-gateway", "not arp and not icmp6") as capture,
        tunnel(site, directory) as ours,
    ):
        bring_up(site, "mirrorgate")
        if ended == "by mirrorgate":
            ours.run("terminate", "R")
        else:
            site.guest.swanctl(f"--terminate {'--ike host' if ended.endswith('IKE SA') else '--child lan'}")
        wait_for(lambda: ours.children() == [] and site.guest.child_sas() == 0, "no Child SA at both ends")
        assert "spi" not in site.guest.guest.run("ip xfrm state | grep -w spi | grep -v 0x00000000")
        # The next packet brings it back, and is not lost.
        bring_up(site, "mirrorgate")
    assert "clear" not in {_kind(packet) for packet in capture.packets()}


@_ENCAPSULATIONS
def test_the_guests_trap_starts_it(site: Site, directory: Directory, encapsulation: str) -> None:
    with tunnel(site, directory, encapsulation=encapsulation, more="start_action = trap") as ours:
        assert "bytes from" in site.guest.guest.run(f"ping -c 5 -i 0.5 {LAN_A[4]}")
        assert ours.entry_states() == ["up"]
        (ike_sa,) = ours.status()["peers"][0]["ike_sas"]
        assert ike_sa["role"] == "responder"


def _rekey(site: Site, agent: Agent, step: str) -> None:
    match step:
        case "our child":
            agent.run("rekey")
        case "our IKE SA":
            agent.run("rekey", "--ike")
        case "their child":
            site.guest.swanctl("--rekey --child lan")
        case "their IKE SA":
            site.guest.swanctl("--rekey --ike host")


def _spis(agent: Agent, step: str) -> set[str]:
    if "IKE" in step:
        return {sa["spi_i"] for peer in agent.status()["peers"] for sa in peer["ike_sas"]}
    return {child["spi_in"] for child in agent.children()}


def _kind(packet: Any) -> str:
    if not packet.haslayer(IP) and not packet.haslayer(IPv6):
        return "other"
    network = packet[IP] if packet.haslayer(IP) else packet[IPv6]
    if {network.src, network.dst} & {*LAN_A.values(), *LAN_B.values()}:
        return "clear"
    if 50 in (getattr(network, "proto", None), getattr(network, "nh", None)):
        return "esp"
    if packet.haslayer(UDP) and 4500 in (packet[UDP].sport, packet[UDP].dport):
        octets = bytes(packet[UDP].payload.original)
        return "keepalive" if octets == b"\xff" else "ike" if octets[:4] == bytes(4) else "esp-in-udp"
    return "other"
