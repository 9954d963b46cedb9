"""The shipped configs between two sites, with the real programs: TUN, nftables, sockets, routes.

LAN host A --- gateway A === the internet === gateway B --- LAN host B
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator

import pytest

from tests.support.agent_process import Agent, Directory, tunnel
from tests.support.capture import Capture
from tests.support.netns import Pinging, Sites, wait_for

LAN_A, LAN_B = "10.1.0.5", "10.2.0.5"


@pytest.fixture
def directory() -> Iterator[Directory]:
    with Directory() as made:
        yield made


def test_without_an_agent_packets_cross_in_clear_and_the_capture_sees_them(two_sites: Sites) -> None:
    with Capture(two_sites.internet) as capture:
        assert two_sites.lan_a.ping(LAN_B).returncode == 0
    assert len(capture.crossed().clear) == 2


def test_site_to_site(two_sites: Sites, directory: Directory) -> None:
    with Capture(two_sites.internet) as capture, tunnel(two_sites, directory) as (one, other):
        # The first packet of a flow waits for the SA; it is not lost.
        assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
        assert two_sites.lan_b.ping(LAN_A, count=3).returncode == 0
        assert two_sites.lan_a.ping(LAN_B, "-s", "4000", count=3).returncode == 0
        for agent in (one, other):
            status = agent.status()
            assert agent.entry_states() == ["up"]
            assert [peer["state"] for peer in status["peers"]] == ["up"]
            (child,) = status["children"]
            assert child["mode"] == "tunnel"
            assert "AES" in child["suite"].upper()
            assert child["packets_in"] >= 7
            assert child["packets_out"] >= 7
        assert stat.S_IMODE(one.control.stat().st_mode) == 0o600
    crossed = capture.crossed()
    assert crossed.clear == ()
    assert crossed.other == 0
    assert crossed.ike >= 4
    assert crossed.esp >= 14


def test_either_side_starts(two_sites: Sites, directory: Directory) -> None:
    with tunnel(two_sites, directory) as (one, other):
        assert two_sites.lan_b.ping(LAN_A, wait=8).returncode == 0
        assert one.entry_states() == other.entry_states() == ["up"]


@pytest.mark.parametrize("outer", ["IPv6", "IPv4"])
def test_dual_stack(two_sites: Sites, directory: Directory, outer: str) -> None:
    a = directory.config("dual-stack-a.toml", *([("fd00:9::2", "10.9.0.2")] if outer == "IPv4" else []))
    b = directory.config("dual-stack-b.toml", *([("fd00:9::1", "10.9.0.1")] if outer == "IPv4" else []))
    with (
        Capture(two_sites.internet) as capture,
        Agent(two_sites.gateway_a, a) as one,
        Agent(two_sites.gateway_b, b) as other,
    ):
        assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
        assert two_sites.lan_a.ping("fd00:2::5", wait=8).returncode == 0
        assert two_sites.lan_b.ping("fd00:1::5", count=3).returncode == 0
        assert two_sites.lan_b.ping(LAN_A, count=3).returncode == 0
        assert two_sites.lan_b.ping("fd00:1::5", "-s", "4000", count=3).returncode == 0
        assert one.entry_states() == other.entry_states() == ["up", "up"]
        assert {child["local"].split(":")[0][:2] for child in one.children()} == {"10", "fd"}
        assert all(("fd00:9" in child["path"]) == (outer == "IPv6") for child in one.children())
    crossed = capture.crossed()
    assert crossed.clear == ()
    assert crossed.esp >= 16


def test_branch_behind_a_nat(nat_sites: Sites, directory: Directory) -> None:
    with (
        Capture(nat_sites.internet) as capture,
        tunnel(nat_sites, directory, ("nat-hq.toml", "nat-branch.toml")) as (hq, branch),
    ):
        # Headquarters cannot dial: what it has for the branch is dropped, and not in clear.
        assert nat_sites.lan_a.ping(LAN_B, wait=1).returncode != 0
        # The branch dials.
        assert nat_sites.lan_b.ping(LAN_A, wait=8).returncode == 0
        assert nat_sites.lan_a.ping(LAN_B, count=3).returncode == 0
        assert hq.entry_states() == branch.entry_states() == ["up"]
        assert [child["encapsulation"] for child in hq.children()] == ["udp"]
        assert [sa["nat"] for sa in branch.status()["peers"][0]["ike_sas"]] == ["local"]
        assert [sa["nat"] for peer in hq.status()["peers"] for sa in peer["ike_sas"]] == ["remote"]
        assert [sa["remote_id"] for peer in hq.status()["peers"] for sa in peer["ike_sas"]] == ["branch.example"]
    assert capture.crossed().clear == ()


def test_thirty_percent_loss_does_not_keep_the_tunnel_down(two_sites: Sites, directory: Directory) -> None:
    with tunnel(two_sites, directory) as (one, other):
        two_sites.lossy(30)
        with Pinging(two_sites.lan_a, LAN_B, interval=0.2) as ping:
            wait_for(lambda: ping.answered, "an answer through the tunnel", 15)
        assert one.entry_states() == ["up"]
        assert other.children()


def test_rekeying_loses_nothing(two_sites: Sites, directory: Directory) -> None:
    with tunnel(two_sites, directory) as (one, other):
        assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
        seen = {child["spi_in"] for child in one.children()}
        with (
            Pinging(two_sites.lan_a, LAN_B, interval=0.02) as ping,
            Pinging(two_sites.lan_b, LAN_A, interval=0.02) as back,
        ):
            for agent in (one, other, one, other):
                before = {child["spi_in"] for child in one.children()}
                agent.run("rekey")
                wait_for(
                    lambda known=frozenset(before): {child["spi_in"] for child in one.children()} - known,
                    "a new Child SA",
                )
                seen |= {child["spi_in"] for child in one.children()}
        assert ping.lost == []
        assert back.lost == []
        assert len(seen) >= 5


def test_tcp_in_both_directions(two_sites: Sites, directory: Directory) -> None:
    with Capture(two_sites.internet) as capture, tunnel(two_sites, directory):
        assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
        capture.stop()  # what follows is too much to keep
        server = two_sites.lan_b.start("iperf3", "--server")
        wait_for(lambda: two_sites.lan_b.run("ss", "-Hltn", "sport = :5201").stdout, "iperf3 listens")
        for direction in ((), ("--reverse",)):
            done = two_sites.lan_a.run("iperf3", "--client", LAN_B, "--time", "2", "--json", *direction)
            assert json.loads(done.stdout)["end"]["sum_received"]["bytes"] > 1_000_000
        server.terminate()
        server.wait(5)


def test_strict_reverse_path_filter(two_sites: Sites, directory: Directory) -> None:
    for gateway in (two_sites.gateway_a, two_sites.gateway_b):
        gateway.sysctl(
            net__ipv4__conf__all__rp_filter=1,
            net__ipv4__conf__default__rp_filter=1,
            net__ipv4__conf__lan__rp_filter=1,
            net__ipv4__conf__wan__rp_filter=1,
        )
    with tunnel(two_sites, directory):
        assert two_sites.lan_a.ping(LAN_B, wait=8, count=3).returncode == 0
        assert two_sites.lan_b.ping(LAN_A, count=3).returncode == 0
