"""strongSwan (charon with ESP in user space) as the other gateway, in both roles.

LAN host A --- Mirrorgate (gateway A) === the internet === strongSwan (gateway B) --- LAN host B
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import strongswan
from tests.support.agent_process import Agent, Directory
from tests.support.capture import Capture
from tests.support.netns import Pinging, Sites, wait_for
from tests.support.strongswan import StrongSwan

pytestmark = pytest.mark.usefixtures("strongswan_there")

LAN_A, LAN_B = "10.1.0.5", "10.2.0.5"

#: name: (our IKE proposal, strongSwan's, our ESP method, our PFS group, strongSwan's ESP proposal)
SUITES = {
    "aes-gcm and x25519": (
        "aes256gcm16-prfsha384-x25519", "aes256gcm16-prfsha384-x25519",
        "esp:aes256gcm16", "x25519", "aes256gcm16-x25519",
    ),
    "aes-cbc with sha-256 and modp2048": (
        "aes128-sha256-modp2048", "aes128-sha256-modp2048",
        "esp:aes128-sha256", "modp2048", "aes128-sha256-modp2048",
    ),
    "chacha20 and ecp256": (
        "chacha20poly1305-prfsha256-ecp256", "chacha20poly1305-prfsha256-ecp256",
        "esp:chacha20poly1305", "ecp256", "chacha20poly1305-ecp256",
    ),
}  # fmt: skip
DEFAULT = SUITES["aes-gcm and x25519"]
_ROLES = pytest.mark.parametrize("starter", ["mirrorgate", "strongswan"])


@pytest.fixture
def directory() -> Iterator[Directory]:
    with Directory() as made:
        yield made


def our_config(
    directory: Directory, suite: tuple[str, str, str, str, str] = DEFAULT, *changes: tuple[str, str]
) -> Path:
    """Write site-a.toml for a suite."""
    ike, _, method, pfs, _ = suite
    return directory.config(
        "site-a.toml",
        ('"aes256gcm16-prfsha384-x25519"', f'"{ike}"'),
        ('"esp:aes256gcm16", "esp:aes128-sha256"', f'"{method}"'),
        ('pfs = "x25519"', f'pfs = "{pfs}"'),
        *changes,
    )


def their_config(directory: Directory, suite: tuple[str, str, str, str, str] = DEFAULT, **changes: str) -> str:
    """Return strongSwan's half."""
    words = {
        "local": "10.9.0.2",
        "remote": "10.9.0.1",
        "local_id": "gw-b.example",
        "remote_id": "gw-a.example",
        "local_ts": "10.2.0.0/24",
        "remote_ts": "10.1.0.0/24",
        "secret": directory.secret(),
        "proposals": suite[1],
        "esp_proposals": suite[4],
    }
    return strongswan.connection(**{**words, **changes})


@contextlib.contextmanager
def peers(
    sites: Sites,
    directory: Directory,
    suite: tuple[str, str, str, str, str] = DEFAULT,
    *changes: tuple[str, str],
    fragment_size: int = 1280,
    **their_changes: str,
) -> Iterator[tuple[Agent, StrongSwan]]:
    """Run both; print strongSwan's log when the block fails."""
    agent = Agent(sites.gateway_a, our_config(directory, suite, *changes))
    conf = their_config(directory, suite, **their_changes)
    with agent as ours, StrongSwan(sites.gateway_b, conf, fragment_size=fragment_size) as theirs:
        try:
            yield ours, theirs
        except BaseException:
            print(f"--- log of strongSwan\n{theirs.log()[-8000:]}")
            raise


def bring_up(sites: Sites, theirs: StrongSwan, starter: str) -> None:
    """Let *starter* start the tunnel: Mirrorgate by the first packet of a flow, which must arrive."""
    if starter == "strongswan":
        theirs.initiate()
    assert sites.lan_a.ping(LAN_B, wait=8).returncode == 0


@_ROLES
@pytest.mark.parametrize("suite", SUITES)
def test_suite(two_sites: Sites, directory: Directory, suite: str, starter: str) -> None:
    with Capture(two_sites.internet) as capture, peers(two_sites, directory, SUITES[suite]) as (ours, theirs):
        bring_up(two_sites, theirs, starter)
        assert two_sites.lan_b.ping(LAN_A, count=3).returncode == 0
        assert two_sites.lan_a.ping(LAN_B, "-s", "3000", count=3).returncode == 0
        assert ours.entry_states() == ["up"]
        assert theirs.child_sas() == theirs.ike_sas() == 1
        (ike_sa,) = ours.status()["peers"][0]["ike_sas"]
        assert ike_sa["role"] == ("initiator" if starter == "mirrorgate" else "responder")
        # The first Child SA has its keys from IKE_AUTH; with its replacement the PFS group is agreed upon too.
        ours.run("rekey")
        wait_for(lambda: "/" in theirs.sas().partition("INSTALLED")[2].partition("\n")[0], "a PFS suite")
        assert two_sites.lan_a.ping(LAN_B).returncode == 0
    crossed = capture.crossed()
    assert crossed.clear == ()
    assert crossed.esp >= 14


@_ROLES
def test_fragmented_ike(two_sites: Sites, directory: Directory, starter: str) -> None:
    # Long names make IKE_AUTH longer than 576 octets: both sides fragment it (RFC 7383).
    ours_id, theirs_id = (f"{name}.{'very-long-name.' * 14}example" for name in ("gw-a", "gw-b"))
    with peers(
        two_sites, directory, DEFAULT,
        ("gw-a.example", ours_id), ("gw-b.example", theirs_id),
        ("proposals = [", "fragment_size = 576, proposals = ["),
        fragment_size=576, local_id=theirs_id, remote_id=ours_id,
    ) as (ours, theirs):  # fmt: skip
        bring_up(two_sites, theirs, starter)
        assert ours.entry_states() == ["up"]
        for number in (1, 2):
            assert re.search(rf"IKE_AUTH request 1 \[ EF\({number}/2\) \]", theirs.log())


@_ROLES
def test_rekeying_under_traffic_loses_nothing(two_sites: Sites, directory: Directory, starter: str) -> None:
    with peers(two_sites, directory) as (ours, theirs):
        bring_up(two_sites, theirs, starter)
        with Pinging(two_sites.lan_a, LAN_B) as ping, Pinging(two_sites.lan_b, LAN_A) as back:
            for step in ("our child", "their child", "our IKE SA", "their IKE SA", "our child", "their child"):
                ike = "IKE" in step
                before = ike_spis(ours) if ike else child_spis(ours)
                if step.startswith("their"):
                    theirs.rekey(ike=ike)
                elif ike:
                    ours.run("rekey", "--ike")
                else:
                    ours.run("rekey")
                wait_for(
                    lambda known=before, ike=ike: (ike_spis(ours) if ike else child_spis(ours)) - known,
                    f"{step} is new",
                )
        assert ping.lost == []
        assert back.lost == []
        wait_for(lambda: len(child_spis(ours)) == 1, "the old Child SAs are gone")
        wait_for(lambda: theirs.child_sas() == theirs.ike_sas() == 1, "strongSwan has one of each")


@pytest.mark.parametrize("ended", ["by mirrorgate", "by strongswan", "by strongswan with its IKE SA"])
def test_delete(two_sites: Sites, directory: Directory, ended: str) -> None:
    with Capture(two_sites.internet) as capture, peers(two_sites, directory) as (ours, theirs):
        bring_up(two_sites, theirs, "mirrorgate")
        if ended == "by mirrorgate":
            ours.run("terminate", "LAN to LAN")
        else:
            theirs.terminate(ike=ended.endswith("IKE SA"))
        wait_for(lambda: ours.children() == [] and theirs.child_sas() == 0, "no Child SA at both ends")
        if ended != "by strongswan":
            wait_for(lambda: theirs.ike_sas() == 0, "no IKE SA at strongSwan")
        # The next packet brings it back, and is not lost.
        assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
    assert capture.crossed().clear == ()


@_ROLES
def test_wrong_key(two_sites: Sites, directory: Directory, starter: str) -> None:
    with peers(two_sites, directory, secret="some other secret, not ours") as (ours, theirs):
        refused(two_sites, theirs, starter)
        if starter == "strongswan":
            ours.wait_log("AUTH of gw-b.example does not verify: the preshared key differs")
        else:
            ours.wait_log("AUTHENTICATION_FAILED): preshared key or identity differs")
        ours.wait_log("site-a.toml:")
        assert directory.secret() not in ours.log()
        assert ours.children() == []


@_ROLES
def test_wrong_identity(two_sites: Sites, directory: Directory, starter: str) -> None:
    with peers(two_sites, directory, local_id="mallory.example") as (ours, theirs):
        refused(two_sites, theirs, starter)
        if starter == "strongswan":
            ours.wait_log("the peer at 10.9.0.2 says it is mallory.example")
            ours.wait_log("gw-b.example")
        else:
            ours.wait_log("AUTHENTICATION_FAILED")
        assert ours.children() == []


@_ROLES
def test_no_common_ike_proposal(two_sites: Sites, directory: Directory, starter: str) -> None:
    with peers(two_sites, directory, proposals="aes128-sha512-modp4096") as (ours, theirs):
        refused(two_sites, theirs, starter)
        if starter == "strongswan":
            ours.wait_log("no common IKE proposal: peer offers AES-CBC-128/PRF-HMAC-SHA2-512")
        else:
            ours.wait_log("the peer refused every IKE proposal (NO_PROPOSAL_CHOSEN")
        ours.wait_log("AES-GCM-16-256")
        assert ours.children() == []


@_ROLES
def test_no_common_esp_proposal(two_sites: Sites, directory: Directory, starter: str) -> None:
    with peers(two_sites, directory, esp_proposals="aes128-sha512-x25519") as (ours, theirs):
        refused(two_sites, theirs, starter)
        if starter == "strongswan":
            ours.wait_log("no common ESP/AH proposal")
        else:
            ours.wait_log("the peer refused every ESP/AH proposal (NO_PROPOSAL_CHOSEN")
        ours.wait_log("AES-GCM-16-256")
        assert ours.children() == []


@_ROLES
def test_filters_differ(two_sites: Sites, directory: Directory, starter: str) -> None:
    with peers(two_sites, directory, local_ts="10.3.0.0/24") as (ours, theirs):
        refused(two_sites, theirs, starter)
        if starter == "strongswan":
            ours.wait_log("the peer asks for")
            ours.wait_log("10.3.0.0/24")
        else:
            ours.wait_log("(TS_UNACCEPTABLE): the filters differ")
        ours.wait_log("10.2.0.0/24")
        assert ours.children() == []


def test_strongswan_behind_a_nat(nat_sites: Sites, directory: Directory) -> None:
    conf = their_config(
        directory, local="192.168.77.2", local_id="branch.example", remote_id="hq.example",
        secret=directory.secret("branch.psk"), esp_proposals="aes256gcm16-x25519",
    )  # fmt: skip
    with (
        Capture(nat_sites.internet) as capture,
        Agent(nat_sites.gateway_a, directory.config("nat-hq.toml")) as ours,
        StrongSwan(nat_sites.gateway_b, conf) as theirs,
    ):
        theirs.initiate()
        assert nat_sites.lan_b.ping(LAN_A, count=3).returncode == 0
        assert nat_sites.lan_a.ping(LAN_B, count=3).returncode == 0
        assert [child["encapsulation"] for child in ours.children()] == ["udp"]
        theirs.rekey()
        wait_for(lambda: len(child_spis(ours)) == 1 and theirs.child_sas() == 1, "one Child SA again")
        assert nat_sites.lan_a.ping(LAN_B, count=3).returncode == 0
    assert capture.crossed().clear == ()


@_ROLES
def test_ipv6_in_ipv6(two_sites: Sites, directory: Directory, starter: str) -> None:
    config = directory.config(
        "site-a.toml", ("10.9.0.2", "fd00:9::2"), ("10.1.0.0/24", "fd00:1::/64"), ("10.2.0.0/24", "fd00:2::/64")
    )
    conf = their_config(
        directory, local="fd00:9::2", remote="fd00:9::1", local_ts="fd00:2::/64", remote_ts="fd00:1::/64"
    )
    with Agent(two_sites.gateway_a, config) as ours, StrongSwan(two_sites.gateway_b, conf) as theirs:
        if starter == "strongswan":
            theirs.initiate()
        assert two_sites.lan_a.ping("fd00:2::5", wait=8).returncode == 0, theirs.log()[-5000:]
        assert two_sites.lan_b.ping("fd00:1::5", "-s", "3000", count=3).returncode == 0
        assert ours.entry_states() == ["up"]


def test_narrower_peer(two_sites: Sites, directory: Directory) -> None:
    with peers(two_sites, directory, local_ts="10.2.0.0/28") as (ours, _):
        assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
        assert ours.children()[0]["remote"] == "10.2.0.0/28"


def test_a_peer_that_is_not_there_is_named(two_sites: Sites, directory: Directory) -> None:
    with Agent(two_sites.gateway_a, our_config(directory)) as ours:
        assert two_sites.lan_a.ping(LAN_B, wait=1).returncode != 0
        assert ours.entry_states() == ["negotiating"]
        # Then it comes up, and the next attempt reaches it without anybody's help.
        with (
            StrongSwan(two_sites.gateway_b, their_config(directory)) as theirs,
            Pinging(two_sites.lan_a, LAN_B, interval=0.2) as ping,
        ):
            wait_for(lambda: ping.answered, "an answer once the peer is there", 30)
            assert theirs.child_sas() == 1


def refused(sites: Sites, theirs: StrongSwan, starter: str) -> None:
    """Let *starter* try, without success."""
    if starter == "strongswan":
        assert "initiate failed" in theirs.initiate(check=False, timeout=6)
    else:
        assert sites.lan_a.ping(LAN_B, wait=2).returncode != 0


def child_spis(agent: Agent) -> set[str]:
    """Return the inbound SPIs of the Child SAs."""
    return {child["spi_in"] for child in agent.children()}


def ike_spis(agent: Agent) -> set[str]:
    """Return the IKE SAs that carry Child SAs."""
    return {sa["spi_i"] for peer in agent.status()["peers"] for sa in peer["ike_sas"]}
