"""The host's side of a policy in a real kernel, without agent and peer: what comes out of the TUN and the sockets.

Nobody seals or opens here: a program in gateway A's place reads the TUN and tells what came.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.packet import Raw

from tests.support.capture import Capture
from tests.support.netns import Namespace, Sites, sites, wait_for
from tests.support.policies import changed, policy_text
from tests.support.tun_host import TunHost

LAN_A, LAN_B, GATEWAY_A, GATEWAY_B = "10.1.0.5", "10.2.0.5", "10.1.0.1", "10.9.0.2"
LAN_A6, LAN_B6, GATEWAY_A6 = "fd00:1::5", "fd00:2::5", "fd00:1::1"
OWN = ("10.1.0.1", "10.9.0.1", "fd00:1::1", "fd00:9::1")
LANS = 'source = "10.1.0.0/24", destination = "10.2.0.0/24"'
LANS6 = 'source = "fd00:1::/64", destination = "fd00:2::/64"'
PEER = f"{GATEWAY_B}#gw-b.example"
BOTH = policy_text(("Both", PEER, f"{LANS}\n{LANS6}"))
#: Everything between the two gateways themselves.
HOSTS = policy_text(("Hosts", PEER, f'source = "me", destination = "{GATEWAY_B}"'))
#: More than the MTU, so that there are later fragments.
LONG = 3000


@pytest.fixture(scope="module")
def net() -> Iterator[Sites]:
    with sites() as built:
        yield built


@pytest.fixture(autouse=True)
def clean(net: Sites) -> Iterator[None]:
    """Leave gateway A as it was, whatever the test did."""
    yield
    gateway = net.gateway_a
    gateway.run("nft", "delete", "table", "inet", "mirrorgate", check=False)
    gateway.ip("link", "del", "mg0", check=False)
    for family in ("-4", "-6"):
        for preference in range(19810, 19820):
            while gateway.run("ip", family, "rule", "del", "pref", str(preference), check=False).returncode == 0:
                pass
        for table in ("19815", "19816"):
            gateway.run("ip", family, "route", "flush", "table", table, check=False)


def counter(gateway: Namespace, name: str) -> int:
    """Return how many packets the guard's named counter saw."""
    said = json.loads(gateway.run("nft", "-j", "list", "counters", "table", "inet", "mirrorgate").stdout)
    found = {item["counter"]["name"]: item["counter"]["packets"] for item in said["nftables"] if "counter" in item}
    return int(found[name])


def udp(host: Namespace, target: str, port: int, size: int) -> None:
    """Send one UDP datagram from *host*, in fragments if it is long."""
    family = "AF_INET6" if ":" in target else "AF_INET"
    send = f"import socket as s; s.socket(s.{family}, s.SOCK_DGRAM).sendto(bytes({size}), ({target!r}, {port}))"
    host.run("python3", "-c", send)


def octets(packets: list[bytes]) -> int:
    """Return the octets behind the IPv4 headers of *packets*."""
    return sum(len(packet) - 20 for packet in packets)


def test_only_covered_transit_enters_the_tun(net: Sites) -> None:
    with TunHost(net.gateway_a, BOTH, *OWN) as host, Capture(net.internet) as capture:
        net.lan_a.ping(LAN_B, wait=0.3)
        net.lan_a.ping(LAN_B6, wait=0.3)
        host.expect(LAN_A, LAN_B)
        host.expect(LAN_A6, LAN_B6)
        assert net.lan_a.ping("10.9.0.254").returncode == 0  # no filter says otherwise
        assert {destination for _, destination in host.seen} == {LAN_B, LAN_B6}
    assert not [line for line in capture.crossed().clear if LAN_B in line or LAN_B6 in line]


def test_own_packets_to_a_network_come_from_inside_the_selector(net: Sites) -> None:
    with TunHost(net.gateway_a, BOTH, *OWN) as host:
        net.gateway_a.ping(LAN_B, wait=0.3)
        net.gateway_a.ping(LAN_B6, wait=0.3)
        host.expect(GATEWAY_A, LAN_B)
        host.expect(GATEWAY_A6, LAN_B6)


def test_own_packets_keep_the_natural_source_when_the_policy_protects_it(net: Sites) -> None:
    # "me" is all addresses of the host: the one of the LAN is protected too, and would be the wrong one to take.
    with TunHost(net.gateway_a, HOSTS, *OWN) as host:
        udp(net.gateway_a, GATEWAY_B, 9, 20)
        host.expect("10.9.0.1", GATEWAY_B)
        assert (GATEWAY_A, GATEWAY_B) not in host.seen


def test_own_packets_do_not_go_on_from_another_address_when_the_tun_is_gone(net: Sites) -> None:
    gateway = net.gateway_a
    with TunHost(gateway, BOTH, *OWN) as host, Capture(net.internet) as capture:
        host.kill()
        gateway.ip("link", "del", "mg0")
        assert gateway.ping(LAN_B, wait=0.3).returncode != 0
        assert gateway.ping(LAN_B6, wait=0.3).returncode != 0
        assert net.lan_a.ping(LAN_B, wait=0.3).returncode != 0
    assert capture.crossed().clear == ()


def test_a_new_start_takes_over_the_routes_and_a_stop_removes_them(net: Sites) -> None:
    gateway = net.gateway_a

    def state() -> list[str]:
        shown = [gateway.ip(family, "rule") for family in ("-4", "-6")]
        return shown + [gateway.ip(family, "route", "show", "table", "all") for family in ("-4", "-6")]

    before = state()
    with TunHost(gateway, BOTH, *OWN) as host:
        running = state()
        host.kill()
        host.start()
        assert [sorted(text.split("\n")) for text in state()] == [sorted(text.split("\n")) for text in running]
        host.stop()
    assert state() == before


def test_inbound_clear_lets_clear_packets_in_and_none_out(net: Sites) -> None:
    text = policy_text(("Both", PEER, LANS))
    text = changed(text, ('action = "negotiate"\n', 'action = "negotiate"\ninbound_clear = true\n'))
    with TunHost(net.gateway_a, text, *OWN) as host, Capture(net.internet) as capture:
        assert net.lan_b.ping(LAN_A, wait=0.5).returncode != 0
        host.expect(LAN_A, LAN_B)  # the answer is to be protected
    clear = capture.packets()
    assert [(p["IP"].src, p["IP"].dst) for p in clear if p.haslayer("ICMP")] == [(LAN_B, LAN_A)]


def test_later_fragments_of_a_port_filter_never_leave_in_clear(net: Sites) -> None:
    text = policy_text(("Ports", PEER, f'{LANS}, protocol = "udp", destination_port = 5353'))
    with TunHost(net.gateway_a, text, *OWN) as host, Capture(net.internet) as capture:
        udp(net.lan_a, LAN_B, 5353, LONG)
        wait_for(lambda: octets(host.packets) == 8 + LONG, "a covered datagram comes out of the TUN whole")
        udp(net.lan_a, LAN_B, 9999, LONG)
        later = 8 + LONG - 1480  # all but what fits into the first fragment
        wait_for(
            lambda: octets(host.packets) == 8 + LONG + later,
            "so do the later fragments of a datagram that shows no ports there",
        )
    packets = [packet for packet in capture.packets() if packet.haslayer("IP") and packet["IP"].src == LAN_A]
    assert [packet["IP"].frag for packet in packets] == [0]  # the first one, to the port that is free


def test_block_and_permit_stand_in_spd_order(net: Sites) -> None:
    text = policy_text(
        ("Protect", PEER, LANS),
        ("Drop", "Drop", f'{LANS}, protocol = "udp", destination_port = "7000-7009"'),
        ("Pass", "Pass", f'{LANS}, protocol = "icmp"'),
    )
    with TunHost(net.gateway_a, text, *OWN) as host:
        assert net.lan_a.ping(LAN_B).returncode == 0  # in clear, as the more specific filter says
        for port in (6999, 7000, 7009, 7010):
            udp(net.lan_a, LAN_B, port, 10)
        wait_for(lambda: len(host.packets) == 2, "the ports beside the blocked ones come out of the TUN")
        assert [int.from_bytes(packet[22:24], "big") for packet in host.packets] == [6999, 7010]
        assert counter(net.gateway_a, "blocked") == 2


def test_a_range_that_is_no_network_and_two_hundred_filters(net: Sites) -> None:
    rows = [f'source = "me", destination = "10.77.{number}.0/24", protocol = "tcp"' for number in range(200)]
    rows += [
        'source = "10.1.0.4-10.1.0.6", destination = "10.2.0.5-10.2.0.9", protocol = "icmp"',
        f'{LANS6}, protocol = "udp", destination_port = 53',
    ]
    with TunHost(net.gateway_a, policy_text(("Many", PEER, "\n".join(rows))), *OWN) as host:
        net.lan_a.ping(LAN_B, wait=0.3)
        host.expect(LAN_A, LAN_B)
        udp(net.lan_a, LAN_B6, 53, 10)
        host.expect(LAN_A6, LAN_B6)
        assert net.gateway_a.ping(LAN_B, "-I", GATEWAY_A).returncode == 0  # 10.1.0.1 is beside the range


def test_own_sockets_pass_where_everything_between_the_hosts_is_protected(net: Sites) -> None:
    idle = policy_text(("None", "Pass", 'source = "me", destination = "192.0.2.1"'))
    with TunHost(net.gateway_b, idle, GATEWAY_B) as other, TunHost(net.gateway_a, HOSTS, *OWN) as host:
        host.transmit("10.9.0.1", GATEWAY_B, 500, [100], tos=0xB8)
        host.transmit("10.9.0.1", GATEWAY_B, 4500, [1000] * 5 + [700], segment=1000)
        host.transmit("10.9.0.1", GATEWAY_B, 0, [64])
        wait_for(lambda: sum(found["size"] for found in other.received) == 100 + 5700 + 64, "all arrives")
        assert {(found["local"], found["remote"]) for found in other.received} == {(GATEWAY_B, "10.9.0.1")}
        assert [found["tos"] for found in other.received if found["port"] == 500] == [0xB8]
        merged = [found for found in other.received if found["port"] == 4500]
        assert all(found["segment_size"] in (0, 1000) for found in merged)
        other.stop()


def test_a_datagram_that_exceeds_the_path_tells_its_mtu(net: Sites) -> None:
    net.gateway_a.ip("route", "add", GATEWAY_B, "dev", "wan", "mtu", "1300")
    try:
        with TunHost(net.gateway_a, BOTH, *OWN) as host:
            host.transmit("10.9.0.1", GATEWAY_B, 4500, [1400, 1400, 200], segment=1400)
            told = [GATEWAY_B, 1300]
            wait_for(lambda: told in [line.get("path_mtu") for line in host.lines], "the MTU is told", 5)
    finally:
        net.gateway_a.ip("route", "del", GATEWAY_B, "dev", "wan")


def test_forwarding_that_is_off_is_said_and_left_off(net: Sites) -> None:
    gateway = net.gateway_a
    gateway.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    try:
        with TunHost(gateway, BOTH, *OWN) as host:
            assert [hint for hint in host.hints if "net.ipv4.ip_forward=1" in hint]
            assert gateway.run("sysctl", "-n", "net.ipv4.ip_forward").stdout == "0\n"
    finally:
        # Forwarding resets the interfaces' settings as it comes and goes.
        gateway.sysctl(
            net__ipv4__ip_forward=1, net__ipv4__conf__all__rp_filter=0, net__ipv4__conf__all__send_redirects=0
        )


# Host to host


def between_hosts(filters: str, *changes: tuple[str, str]) -> str:
    """Return a policy that secures what *filters* say straight to the other host."""
    text = policy_text(("Straight", PEER, filters))
    return changed(text, (f'tunnel_endpoint = "{GATEWAY_B}"\n', ""), *changes)


_SERVE = (
    "import socket as s, sys\n"
    "l = s.create_server(('0.0.0.0', int(sys.argv[1])))\n"
    "while True:\n c, _ = l.accept(); c.sendall(b'hello'); c.close()\n"
)


def tcp(host: Namespace, target: str, port: int) -> bool:
    """Whether a TCP connection brings an answer."""
    ask = f"import socket as s; c = s.create_connection(({target!r}, {port}), 1); assert c.recv(9) == b'hello'"
    return host.run("python3", "-c", ask, check=False).returncode == 0


def segment_size(syn: bytes) -> int:
    """Return the MSS option of an IPv4 TCP SYN, which comes first."""
    options = syn[(syn[0] & 15) * 4 + 20 :]
    assert options[:2] == b"\x02\x04"
    return int.from_bytes(options[2:4], "big")


@pytest.mark.parametrize("destination", [GATEWAY_B, "any"])
def test_only_the_secured_port_enters_the_tun(net: Sites, destination: str) -> None:
    text = between_hosts(
        f'source = "me", destination = "{destination}", protocol = "tcp", destination_port = 8080'
    )
    gateway = net.gateway_a
    gateway.sysctl(net__ipv4__conf__all__rp_filter=1)
    servers = [net.gateway_b.start("python3", "-c", _SERVE, port) for port in ("8080", "2222")]
    try:
        wait_for(lambda: tcp(gateway, GATEWAY_B, 2222) and tcp(gateway, GATEWAY_B, 8080), "the servers answer")
        with TunHost(gateway, text, *OWN) as host, Capture(net.internet) as capture:
            assert tcp(gateway, GATEWAY_B, 2222)
            assert host.packets == []  # not even by way of the TUN
            assert not tcp(gateway, GATEWAY_B, 8080)
            host.expect("10.9.0.1", GATEWAY_B)
            # The socket knew the TUN's MTU when it made its offer.
            assert segment_size(host.packets[0]) == 1400 - 40
            assert {int.from_bytes(packet[22:24], "big") for packet in host.packets} == {8080}
            assert gateway.ping(GATEWAY_B).returncode == 0
            rules = gateway.ip("rule")
            host.kill()
            host.start()
            assert sorted(gateway.ip("rule").split("\n")) == sorted(rules.split("\n"))
        clear = [packet for packet in capture.packets() if packet.haslayer("TCP")]
        assert clear
        assert not [packet for packet in clear if 8080 in (packet["TCP"].sport, packet["TCP"].dport)]
    finally:
        gateway.sysctl(net__ipv4__conf__all__rp_filter=0)
        for server in servers:
            server.kill()
            server.wait()


def test_own_sockets_hear_the_other_host_under_a_strict_reverse_path_filter(net: Sites) -> None:
    text = between_hosts(f'source = "me", destination = "{GATEWAY_B}"')
    idle = policy_text(("None", "Pass", 'source = "me", destination = "192.0.2.1"'))
    gateway = net.gateway_a
    gateway.sysctl(net__ipv4__conf__all__rp_filter=1)
    try:
        with TunHost(gateway, text, *OWN) as host, TunHost(net.gateway_b, idle, GATEWAY_B) as other:
            assert "from 10.9.0.1 to 10.9.0.2 ipproto tcp lookup 19815" in gateway.ip("rule")
            for port in (500, 4500, 0):
                other.transmit(GATEWAY_B, "10.9.0.1", port, [100 + port % 7])
            packet = bytes(IP(src=GATEWAY_B, dst="10.9.0.1", proto=51, id=77, ttl=33) / Raw(bytes(40)))
            other.transmit_whole(GATEWAY_B, "10.9.0.1", packet)
            wait_for(lambda: len(host.received) == 4, "all four arrive")
            assert [found["protocol"] for found in host.received if found["port"] == 0] == [50, 51]
            whole = next(found for found in host.received if found["protocol"] == 51)
            assert IP(bytes.fromhex(whole["header"])).id == 77
            # What was opened passes to the host.
            host.inject(bytes(IP(src=GATEWAY_B, dst="10.9.0.1") / ICMP(type=8, id=1, seq=1)))
            host.expect("10.9.0.1", GATEWAY_B)
            other.stop()
    finally:
        gateway.sysctl(net__ipv4__conf__all__rp_filter=0)


def test_a_soft_pair_talks_in_clear_until_its_end(net: Sites) -> None:
    text = between_hosts(
        'source = "me", destination = "10.9.0.0/24"',
        ('action = "negotiate"\n', 'action = "negotiate"\nfallback_clear = true\n'),
    )
    gateway = net.gateway_a
    with TunHost(gateway, text, *OWN) as host:
        assert gateway.ping(GATEWAY_B, wait=0.3).returncode != 0
        host.expect("10.9.0.1", GATEWAY_B)
        host.soft("10.9.0.1", GATEWAY_B, 300)
        seen = len(host.packets)
        assert gateway.ping(GATEWAY_B).returncode == 0
        assert net.gateway_b.ping("10.9.0.1").returncode == 0
        host.guard()
        assert gateway.ping(GATEWAY_B).returncode == 0  # the new table knows it too
        assert len(host.packets) == seen
        assert gateway.ping("10.9.0.254", wait=0.3).returncode != 0  # another host
        host.soft("10.9.0.1", GATEWAY_B, 0)
        assert gateway.ping(GATEWAY_B, wait=0.3).returncode != 0
        host.soft("10.9.0.1", GATEWAY_B, 1)
        assert gateway.ping(GATEWAY_B).returncode == 0
        wait_for(lambda: gateway.ping(GATEWAY_B, wait=0.2).returncode != 0, "the pair's time is over")


def test_no_multicast_comes_out_of_the_tun(net: Sites) -> None:
    text = between_hosts('source = "me", destination = "any"')
    gateway = net.gateway_a
    send = "import socket as s; k = s.socket(s.AF_INET, s.SOCK_DGRAM); k.sendto(b'x', ('239.1.2.3', 9))"
    with TunHost(gateway, text, *OWN) as host:
        gateway.run("python3", "-c", send, check=False)
        before = counter(gateway, "clear_out")
        gateway.run("python3", "-c", send, check=False)
        udp(gateway, GATEWAY_B, 9, 10)
        host.expect("10.9.0.1", GATEWAY_B)
        assert host.multicast == []
        assert counter(gateway, "clear_out") > before


def test_a_rule_for_one_kind_of_interface_leaves_the_others_alone(net: Sites) -> None:
    text = between_hosts(f'source = "me", destination = "{GATEWAY_B}"')
    gateway = net.gateway_a
    with TunHost(gateway, text, *OWN, interfaces="lan") as host:
        assert gateway.ping(GATEWAY_B, wait=0.3).returncode != 0
        host.expect("10.9.0.1", GATEWAY_B)
        host.stop()
    with TunHost(gateway, text, *OWN, interfaces="remote-access") as host:
        assert gateway.ping(GATEWAY_B).returncode == 0
        assert host.packets == []
        assert not host.stale()
        gateway.ip("tuntap", "add", "dialup", "mode", "tun")
        try:
            assert host.stale()
            host.guard()
            assert not host.stale()
            gateway.batch(["link set dialup up", f"route add {GATEWAY_B} dev dialup"])
            gateway.ping(GATEWAY_B, wait=0.2)
            wait_for(lambda: any(ends[1] == GATEWAY_B for ends in host.seen), "what goes by dial-up is secured")
        finally:
            gateway.ip("link", "del", "dialup")
        host.stop()
