"""Steering and guard on a real kernel: what goes into the TUN, what is stopped, and what is left behind."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.agent_process import COMMAND, ROOT, Agent, Directory, tunnel
from tests.support.capture import Capture
from tests.support.netns import Namespace, Pinging, Sites, wait_for
from tests.support.policies import KEY

LAN_A, LAN_B = "10.1.0.5", "10.2.0.5"
GATEWAY_A, GATEWAY_B = "10.1.0.1", "10.2.0.1"


@pytest.fixture
def directory() -> Iterator[Directory]:
    with Directory() as made:
        yield made


def state_of(gateway: Namespace) -> dict[str, str]:
    """Return what an agent may have left behind."""
    return {
        "nft": gateway.run("nft", "list", "ruleset").stdout,
        "rules": gateway.ip("rule") + gateway.ip("-6", "rule"),
        "routes": gateway.ip("route", "show", "table", "all") + gateway.ip("-6", "route", "show", "table", "all"),
        "links": gateway.ip("-o", "link"),
    }


def counter(gateway: Namespace, name: str) -> int:
    """Return the packets that a counter of the guard counted."""
    said = gateway.run("nft", "-j", "list", "counter", "inet", "mirrorgate", name).stdout
    found = (item["counter"] for item in json.loads(said)["nftables"] if "counter" in item)
    return int(next(found)["packets"])


_AS_NOBODY = (
    "import os, sys\n"
    "import tunnel.agent.agent, tunnel.cli.main\n"  # before: nobody may not be able to read them
    "os.setgroups([]); os.setuid(65534)\n"
    "sys.exit(tunnel.cli.main.main(sys.argv[1:]))\n"
)


def run_to_its_end(namespace: Namespace, config: Path, *before: str) -> tuple[int, str]:
    """Run an agent that cannot start, by way of *before*; return its exit status and what it said."""
    how = (COMMAND[0], "-c", _AS_NOBODY) if before == ("nobody",) else (*before, *COMMAND)
    done = namespace.run("env", f"PYTHONPATH={ROOT}", *how, "run", str(config), check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


def one_sentence(said: str, *words: str) -> None:
    """Check that an agent said one line with these words, and no traceback."""
    lines = [line for line in said.splitlines() if line.startswith("mirrorgate: ")]
    assert len(lines) == 1, said
    assert all(word in lines[0] for word in words), lines[0]
    assert "Traceback" not in said


# The guard


def test_the_guard_stands_alone(two_sites: Sites, directory: Directory) -> None:
    gateway = two_sites.gateway_a
    agent = Agent(gateway, directory.config("site-a.toml")).start()
    agent.kill()
    with Capture(two_sites.internet) as capture:
        for damage in (
            (),
            ("ip", "link", "del", "mg0"),
            ("ip", "route", "flush", "table", "19815"),
            ("ip", "rule", "flush"),
        ):
            if damage:
                gateway.run(*damage)
            if "rule" in damage:  # that took the kernel's own too
                gateway.ip("rule", "add", "from", "all", "lookup", "main", "pref", "32766")
            before = counter(gateway, "clear_out")
            assert two_sites.lan_a.ping(LAN_B, wait=0.5).returncode != 0
            assert gateway.ping(LAN_B, "-I", GATEWAY_A, wait=0.5).returncode != 0
            if "flush" in damage:  # before, the prohibit route behind the TUN's stops them
                assert counter(gateway, "clear_out") > before
        before = counter(gateway, "clear_in")
        assert two_sites.lan_b.ping(LAN_A, wait=0.5).returncode != 0
        assert counter(gateway, "clear_in") > before
        assert gateway.ping("10.9.0.254").returncode == 0  # no filter matches that
    clear = capture.crossed().clear
    assert [line for line in clear if f"{LAN_A} > {LAN_B}" in line or f"{GATEWAY_A} > {LAN_B}" in line] == []
    assert clear  # what gateway B, without an agent, sent was seen


def test_orderly_stop_after_the_tun_is_gone(two_sites: Sites, directory: Directory) -> None:
    gateway = two_sites.gateway_a
    before = state_of(gateway)
    with Agent(gateway, directory.config("site-a.toml")) as agent:
        gateway.ip("link", "del", "mg0")
        assert agent.stop() == 0
    assert state_of(gateway) == before


def test_what_is_not_ours_is_left_alone(two_sites: Sites, directory: Directory) -> None:
    gateway = two_sites.gateway_a
    gateway.run(
        "nft", "-f", "-",
        stdin="table ip other {\nchain c {\ntype filter hook output priority 0\nip daddr 192.0.2.9 drop\n}\n}\n",
    )  # fmt: skip
    gateway.batch(
        [
            "rule add from 203.0.113.0/24 lookup 77 pref 19810",
            "rule add fwmark 0x9 lookup 78 pref 20000",
            "route add 198.51.100.0/24 via 10.9.0.254 table 77",
        ]
    )
    before = state_of(gateway)
    with Agent(gateway, directory.config("site-a.toml")) as agent:
        during = state_of(gateway)
        for line in (before["nft"] + before["rules"] + before["routes"]).splitlines():
            assert line in during["nft"] + during["rules"] + during["routes"]
        agent.run("reload")
        assert agent.stop() == 0
    assert state_of(gateway) == before


# Steering


@pytest.mark.parametrize("default_route", [True, False])
def test_strict_reverse_path_filter(two_sites: Sites, directory: Directory, default_route: bool) -> None:
    for gateway in (two_sites.gateway_a, two_sites.gateway_b):
        gateway.sysctl(net__ipv4__conf__all__rp_filter=1, net__ipv4__conf__default__rp_filter=1)
        if not default_route:
            gateway.ip("route", "del", "default")
    with tunnel(two_sites, directory):
        assert two_sites.lan_a.ping(LAN_B, wait=8, count=2).returncode == 0
        assert two_sites.lan_b.ping(LAN_A, count=2).returncode == 0


def test_the_gateways_own_addresses(two_sites: Sites, directory: Directory) -> None:
    a, b = directory.config("dual-stack-a.toml"), directory.config("dual-stack-b.toml")
    one, other = two_sites.gateway_a, two_sites.gateway_b
    with Capture(two_sites.internet) as capture, Agent(one, a), Agent(other, b):
        for far, host, own in ((GATEWAY_B, LAN_B, GATEWAY_A), ("fd00:2::1", "fd00:2::5", "fd00:1::1")):
            assert one.ping(host, wait=8).returncode == 0  # a socket that is not bound
            assert one.ping(host, "-I", own).returncode == 0
            assert one.ping(far).returncode == 0
            assert other.ping(own).returncode == 0
            assert two_sites.lan_b.ping(own).returncode == 0
    assert capture.crossed().clear == ()


def test_addresses_that_come_at_run_time_have_the_policy(two_sites: Sites, directory: Directory) -> None:
    text = (ROOT / "configs" / "site-a.toml").read_text()
    config = directory.config("site-a.toml", ('source = "10.1.0.0/24"', 'source = "me"'), text=text)
    gateway = two_sites.gateway_a
    with Agent(gateway, config) as agent, Capture(two_sites.internet) as capture:
        generation = agent.status()["generation"]
        gateway.ip("addr", "add", "10.1.0.77/32", "dev", "lo")
        wait_for(lambda: agent.status()["generation"] > generation, "the new address has the policy")
        assert any(
            entry["local"].startswith("10.1.0.77") for rule in agent.status()["rules"] for entry in rule["entries"]
        )
        assert gateway.ping(LAN_B, "-I", "10.1.0.77", wait=1).returncode != 0  # nobody is there to negotiate with
        gateway.ip("addr", "del", "10.1.0.77/32", "dev", "lo")
        generation = agent.status()["generation"]
        wait_for(
            lambda: not any("10.1.0.77" in e["local"] for r in agent.status()["rules"] for e in r["entries"]),
            f"the address is gone from the policy after generation {generation}",
        )
    assert capture.crossed().clear == ()


_PERMIT_BLOCK = """
[[policy.rule]]
name = "ssh in clear"
filter_list = "ssh"
filter_action = "Permit it"

[[policy.rule]]
name = "no telnet"
filter_list = "telnet"
filter_action = "Block it"

[[filter_list]]
name = "ssh"
[[filter_list.filter]]
source = "10.1.0.0/24"
destination = "10.2.0.0/24"
protocol = "tcp"
destination_port = 22

[[filter_list]]
name = "telnet"
[[filter_list.filter]]
source = "10.1.0.0/24"
destination = "any"
protocol = "tcp"
destination_port = 23

[[filter_action]]
name = "Permit it"
action = "permit"

[[filter_action]]
name = "Block it"
action = "block"
"""
_SERVE = (
    "import socket,sys\n"
    "s=socket.create_server(('0.0.0.0',int(sys.argv[1])))\n"
    "while True:\n c,_=s.accept(); c.sendall(b'hello'); c.close()\n"
)
_ASK = (
    "import socket,sys\n"
    "s=socket.create_connection((sys.argv[1],int(sys.argv[2])),timeout=1.5)\n"
    "sys.exit(s.recv(9)!=b'hello')\n"
)


@pytest.mark.parametrize("strict", [False, True])
def test_permit_and_block(strict: bool, two_sites: Sites, directory: Directory) -> None:
    for gateway in (two_sites.gateway_a, two_sites.gateway_b) if strict else ():
        gateway.sysctl(net__ipv4__conf__all__rp_filter=1, net__ipv4__conf__default__rp_filter=1)
    python = COMMAND[0]
    servers = [two_sites.lan_b.start(python, "-c", _SERVE, port) for port in ("22", "23", "80")]
    outside = two_sites.internet.start(python, "-c", _SERVE, "23")

    def asks(host: str, port: str) -> bool:
        return two_sites.lan_a.run(python, "-c", _ASK, host, port, check=False).returncode == 0

    try:
        wait_for(lambda: all(asks(LAN_B, port) for port in ("22", "23", "80")), "the servers answer")
        assert asks("10.9.0.254", "23")
        a = directory.config("site-a.toml", text=(ROOT / "configs" / "site-a.toml").read_text() + _PERMIT_BLOCK)
        ssh = _PERMIT_BLOCK.split('[[policy.rule]]\nname = "no telnet"', maxsplit=1)[0]
        lists = _PERMIT_BLOCK[
            _PERMIT_BLOCK.index("[[filter_list]]") : _PERMIT_BLOCK.index('[[filter_list]]\nname = "telnet')
        ]
        action = '[[filter_action]]\nname = "Permit it"\naction = "permit"\n'
        b = directory.config(
            "site-b.toml", text=(ROOT / "configs" / "site-b.toml").read_text() + ssh + lists + action
        )
        with Agent(two_sites.gateway_a, a) as one, Agent(two_sites.gateway_b, b):
            with Capture(two_sites.internet) as capture:
                wait_for(lambda: asks(LAN_B, "80"), "protected traffic")
            assert capture.crossed().clear == ()
            with Capture(two_sites.internet) as capture:
                assert asks(LAN_B, "22")
            assert len(capture.crossed().clear) >= 6
            with Capture(two_sites.internet) as capture:
                assert asks(LAN_B, "23")  # the filter of the LANs is more specific
                assert not asks("10.9.0.254", "23")
            assert capture.crossed().clear == ()
            assert counter(two_sites.gateway_a, "blocked") > 0
            assert one.status()["guard"]["blocked"] > 0
    finally:
        for server in (*servers, outside):
            server.kill()
            server.wait()


_EVERYTHING = f"""
[agent]
assigned = "All"
[[policy]]
name = "All"
local_id = "gw-a.example"
[[policy.rule]]
name = "Everything"
filter_list = "all"
filter_action = "Protect"
tunnel_endpoint = "10.9.0.2"
authentication = [{{ method = "psk", secret = "{KEY}", remote_id = "gw-b.example" }}]
[[filter_list]]
name = "all"
[[filter_list.filter]]
source = "any"
destination = "any"
[[filter_action]]
name = "Protect"
action = "negotiate"
methods = ["esp:aes256gcm16"]
"""


def test_any_to_any_keeps_clear_packets_from_the_gateway_itself(two_sites: Sites, directory: Directory) -> None:
    gateway = two_sites.gateway_a
    assert two_sites.internet.ping("10.9.0.1").returncode == 0
    with Agent(gateway, directory.config("all.toml", text=_EVERYTHING)) as agent:
        # The answer would be protected too; that the question does not come in is for the counter to tell.
        assert two_sites.internet.ping("10.9.0.1", wait=0.5).returncode != 0
        assert counter(gateway, "clear_in") > 0
        agent.kill()
        before = counter(gateway, "clear_in")
        assert two_sites.internet.ping("10.9.0.1", wait=0.5).returncode != 0
        assert counter(gateway, "clear_in") > before


# A host that changes under the agent


def test_a_tun_that_was_deleted_is_made_anew(two_sites: Sites, directory: Directory) -> None:
    with Capture(two_sites.internet) as capture, tunnel(two_sites, directory) as (one, _):
        with Pinging(two_sites.lan_a, LAN_B) as ping:
            wait_for(lambda: ping.answered, "the tunnel is up")
            for _ in range(2):
                children = [child["spi_in"] for child in one.children()]
                two_sites.gateway_a.ip("link", "del", "mg0")
                seen = len(ping.answered)
                wait_for(lambda before=seen: len(ping.answered) > before + 5, f"traffic again\n{one.log()}")
                assert [child["spi_in"] for child in one.children()] == children
        assert "internal_error" not in one.log()
        assert one.log().count("tun_gone") == 2
    assert capture.crossed().clear == ()


@pytest.mark.parametrize(
    "damage",
    [
        ("link", "set", "mg0", "down"),
        ("route", "flush", "table", "19815"),
        ("rule", "del", "pref", "19815"),
        ("rule", "del", "pref", "19816"),
    ],
    ids=lambda damage: f"{damage[0]} {damage[-1]}",
)
def test_routes_and_rules_that_were_taken_away_come_back(
    two_sites: Sites, directory: Directory, damage: tuple[str, ...]
) -> None:
    with Capture(two_sites.internet) as capture, tunnel(two_sites, directory) as (one, _):
        with Pinging(two_sites.lan_a, LAN_B) as ping:
            wait_for(lambda: ping.answered, "the tunnel is up")
            two_sites.gateway_a.ip(*damage)
            one.wait_log("steering_lost")
            seen = len(ping.answered)
            wait_for(lambda: len(ping.answered) > seen + 5, f"traffic again\n{one.log()}")
        time.sleep(0.5)
        assert one.log().count("steering_lost") == 1
        assert "internal_error" not in one.log()
    assert capture.crossed().clear == ()


@pytest.mark.parametrize(
    "lure",
    [
        ("route", "add", "10.2.0.0/25", "via", "10.9.0.254"),
        ("route", "add", "10.2.0.5/32", "via", "10.9.0.254"),
        ("addr", "add", "10.2.0.77/24", "dev", "wan"),
        ("rule", "add", "to", "10.2.0.0/24", "lookup", "main", "pref", "10"),
    ],
    ids=["more specific", "host route", "the far LAN is here", "a rule before ours"],
)
def test_no_route_leads_around_the_tunnel(two_sites: Sites, directory: Directory, lure: tuple[str, ...]) -> None:
    """What a rogue DHCP server can hand out: CVE-2023-36672 and CVE-2023-35838 (TunnelCrack), CVE-2024-3661."""
    gateway = two_sites.gateway_a
    with Capture(two_sites.internet) as capture, tunnel(two_sites, directory) as (one, _):
        assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
        gateway.ip(*lure)
        try:
            two_sites.lan_a.ping(LAN_B, count=3, wait=1)
            gateway.ping(LAN_B, "-I", "10.1.0.1", count=3, wait=1)
            one.kill()
            two_sites.lan_a.ping(LAN_B, wait=1)
            gateway.ip(lure[0], "del", *lure[2:])
            one.start()
            wait_for(lambda: two_sites.lan_a.ping(LAN_B, wait=1).returncode == 0, "traffic again")
        finally:
            gateway.ip(lure[0], "del", *lure[2:], check=False)
    assert capture.crossed().clear == ()


def test_a_reload_while_the_tun_is_gone(two_sites: Sites, directory: Directory) -> None:
    with Capture(two_sites.internet) as capture, tunnel(two_sites, directory) as (one, _):
        assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
        two_sites.gateway_a.ip("link", "del", "mg0")
        one.run("reload")
        with Pinging(two_sites.lan_a, LAN_B) as ping:
            wait_for(lambda: len(ping.answered) > 3, f"traffic again\n{one.log()}")
        assert "internal_error" not in one.log()
    assert capture.crossed().clear == ()


def test_takeover_after_a_kill_has_no_gap(two_sites: Sites, directory: Directory) -> None:
    gateway = two_sites.gateway_a
    with Capture(two_sites.internet) as capture, tunnel(two_sites, directory) as (one, _):
        assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
        with Pinging(two_sites.lan_a, LAN_B, interval=0.01) as ping:
            one.kill()
            left = state_of(gateway)
            assert "mg0" in left["links"]
            assert "prohibit default" in left["routes"]
            time.sleep(0.2)
            one.start()
            seen = len(ping.answered)
            wait_for(lambda: len(ping.answered) > seen, "traffic again")
        assert ping.lost
    assert capture.crossed().clear == ()


# An agent that cannot start


def occupied(
    gateway: Namespace, directory: Directory
) -> tuple[tuple[str, ...], tuple[str, ...], Callable[[], None]]:
    """Something else has port 500."""
    program = "import socket,time; s=socket.socket(2,2); s.bind(('',500)); print(flush=True); time.sleep(60)"
    other = gateway.start(COMMAND[0], "-c", program)
    wait_for(lambda: ":500 " in gateway.run("ss", "-Hlun").stdout, "port 500 is taken")

    def stop() -> None:
        other.kill()
        other.wait()

    return (), ("UDP port 500", "in use"), stop


def nobody(
    gateway: Namespace, directory: Directory
) -> tuple[tuple[str, ...], tuple[str, ...], Callable[[], None]]:
    """No root."""
    for path in (directory.path, *directory.path.iterdir()):
        shutil.chown(path, "nobody")
    return ("nobody",), ("needs root",), lambda: None


def no_device(
    gateway: Namespace, directory: Directory
) -> tuple[tuple[str, ...], tuple[str, ...], Callable[[], None]]:
    """No /dev/net/tun."""
    hide = 'mount -t tmpfs none /dev/net && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", hide, "sh"), ("/dev/net/tun is missing",), lambda: None


def foreign_device(
    gateway: Namespace, directory: Directory
) -> tuple[tuple[str, ...], tuple[str, ...], Callable[[], None]]:
    """Something else is called mg0."""
    gateway.ip("link", "add", "mg0", "type", "veth", "peer", "mg1")
    return (), ("mg0", "agent.tun"), lambda: None


@pytest.mark.parametrize(
    "lack", [occupied, nobody, no_device, foreign_device], ids=lambda lack: str(lack.__name__)
)
def test_an_agent_that_cannot_start_says_why_and_leaves_nothing(
    two_sites: Sites,
    directory: Directory,
    lack: Callable[[Namespace, Directory], tuple[tuple[str, ...], tuple[str, ...], Callable[[], None]]],
) -> None:
    gateway = two_sites.gateway_a
    config = directory.config("site-a.toml")
    before, words, undo = lack(gateway, directory)
    try:
        was = state_of(gateway)
        status, said = run_to_its_end(gateway, config, *before)
        assert status == 1, said
        one_sentence(said, *words)
        assert state_of(gateway) == was
        assert not config.with_suffix(".sock").exists()
    finally:
        undo()


@pytest.mark.parametrize("same_socket", [True, False])
def test_a_second_agent_does_the_first_no_harm(two_sites: Sites, directory: Directory, same_socket: bool) -> None:
    gateway = two_sites.gateway_a
    with tunnel(two_sites, directory) as (one, _):
        assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
        other = directory.config("second.toml", text=_EVERYTHING)
        if same_socket:
            other.write_text(other.read_text().replace("second.sock", "site-a.sock"))
        was = state_of(gateway)
        status, said = run_to_its_end(gateway, other)
        assert status == 1
        one_sentence(said, "site-a.sock" if same_socket else "in use")
        assert state_of(gateway) == was
        assert two_sites.lan_a.ping(LAN_B).returncode == 0
        assert one.status()["policy"] == "Site A to site B"


def test_a_failed_start_after_a_crash_leaves_the_guard(two_sites: Sites, directory: Directory) -> None:
    gateway = two_sites.gateway_a
    config = directory.config("site-a.toml")
    Agent(gateway, config).start().kill()
    before, words, undo = occupied(gateway, directory)
    try:
        status, said = run_to_its_end(gateway, config, *before)
        assert status == 1
        one_sentence(said, *words)
    finally:
        undo()
    with Capture(two_sites.internet) as capture:
        assert two_sites.lan_a.ping(LAN_B, wait=0.5).returncode != 0
    assert capture.crossed().clear == ()


def test_these_tests_run_as_root() -> None:
    assert os.geteuid() == 0
