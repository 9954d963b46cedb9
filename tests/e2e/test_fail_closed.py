"""What a policy protects never leaves in clear: while agents are killed, restarted, reloaded, stopped.

MIRRORGATE_KILLS makes it more kills than the twenty of an ordinary run.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent_process import Agent, Directory, tunnel
from tests.support.capture import Capture
from tests.support.netns import Namespace, Pinging, Sites, wait_for

LAN_A, LAN_B = "10.1.0.5", "10.2.0.5"
_FLUSHES = 30
_KILLS = int(os.environ.get("MIRRORGATE_KILLS", "20"))

#: A guard of somebody else's on the same gateway, which must be left alone.
_FOREIGN = """\
table inet somebody {
  set friends { type ipv4_addr; elements = { 192.0.2.1, 192.0.2.7 } }
  chain input {
    type filter hook input priority 10; policy accept;
    ip saddr @friends counter packets 0 bytes 0 drop
  }
}
"""


@pytest.fixture
def directory() -> Iterator[Directory]:
    with Directory() as made:
        yield made


def state_of(gateway: Namespace) -> dict[str, str]:
    """Return all that an agent may change on a gateway."""
    return {
        "nft": gateway.run("nft", "list", "ruleset").stdout,
        "rules": gateway.ip("rule") + gateway.ip("-6", "rule"),
        "routes": gateway.ip("route", "show", "table", "all") + gateway.ip("-6", "route", "show", "table", "all"),
        "links": gateway.ip("-o", "-d", "link"),
        "addresses": gateway.ip("-o", "addr"),
        "settings": gateway.run("sysctl", "-a", "--pattern", r"^net\.ipv[46]\.(conf\.|ip_forward)").stdout,
    }


@pytest.mark.timeout(140 + 7 * _KILLS)
def test_kills_under_traffic_leak_nothing(two_sites: Sites, directory: Directory) -> None:
    with (
        Capture(two_sites.internet) as capture,
        tunnel(two_sites, directory) as (one, other),
        Pinging(two_sites.lan_a, LAN_B) as ping,
        Pinging(two_sites.lan_b, LAN_A) as back,
    ):
        wait_for(lambda: ping.answered and back.answered, "the tunnel is up")
        for number in range(_KILLS):
            victims: tuple[Agent, ...] = ((one,), (other,), (one, other))[number % 3]
            for agent in victims:
                agent.kill()
            time.sleep(0.3)  # six packets each way run against the guard of a gateway without an agent
            there, here = len(ping.answered), len(back.answered)
            for agent in victims:
                agent.start(wait=False)
            wait_for(
                lambda a=there, b=here: len(ping.answered) > a and len(back.answered) > b,
                f"traffic after kill {number + 1}\n{one.log()[-3000:]}\n---\n{other.log()[-3000:]}",
                5,
            )
    crossed = capture.crossed()
    assert crossed.clear == ()
    assert crossed.esp > 100
    assert ping.lost
    assert back.lost


def test_a_killed_agent_leaves_the_guard(two_sites: Sites, directory: Directory) -> None:
    with tunnel(two_sites, directory) as (one, other):
        assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
        one.kill()
        other.kill()
        with Capture(two_sites.internet) as capture:
            assert two_sites.lan_a.ping(LAN_B, count=3, wait=1).returncode != 0
            assert two_sites.gateway_a.ping(LAN_B, "-I", "10.1.0.1", wait=1).returncode != 0
        assert "mirrorgate" in two_sites.gateway_a.run("nft", "list", "ruleset").stdout
        assert capture.crossed().clear == ()
        one.start()
        other.start()
        assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
        assert one.stop() == 0
        assert other.stop() == 0


#: What others do to the ruleset, most of them meaning no harm: a distribution's service, a tool that saves.
_RELOADS = {
    "distribution": f"flush ruleset\n{_FOREIGN}",
    "delete": "delete table inet mirrorgate\n",
    "flush chain": "flush chain inet mirrorgate postrouting\n",
    "a rule before ours": "insert rule inet mirrorgate postrouting accept\n",
    "dormant": "add table inet mirrorgate { flags dormant; }\n",
}


def test_others_load_their_nftables_rules(two_sites: Sites, directory: Directory) -> None:
    gateway = two_sites.gateway_a

    def table() -> str:
        return gateway.run("nft", "list", "chain", "inet", "mirrorgate", "postrouting").stdout

    with (
        Capture(two_sites.internet) as capture,
        tunnel(two_sites, directory) as (one, _),
        Pinging(two_sites.lan_a, LAN_B, interval=0.002) as ping,
    ):
        wait_for(lambda: ping.answered, "the tunnel is up")
        sound = table()
        for number, (name, reload) in enumerate(_RELOADS.items(), 1):
            gateway.run("nft", "-f", "-", stdin=reload)
            wait_for(lambda n=number: one.log().count("guard_lost") == n, f"{name}: it is told", 2)
            assert table() == sound, name
            seen = len(ping.answered)
            wait_for(lambda a=seen: len(ping.answered) > a + 100, f"{name}: traffic goes on")
            time.sleep(1)  # told at most once a second
        assert "192.0.2.7" in gateway.run("nft", "list", "ruleset").stdout, "theirs stands too"
    # While the table is away, routing rules lead whole networks into the TUN all the same.
    assert capture.crossed().clear == ()


def held(gateway: Namespace) -> bool:
    return "mirrorgate_guard" in gateway.run("nft", "list", "tables").stdout


def by_protocol(directory: Directory) -> list[Path]:
    """Return configs whose filters name a protocol: nothing but the table knows what goes into the TUN."""
    return [
        directory.config(name, (f'destination = "{far}"', f'destination = "{far}"\nprotocol = "icmp"'))
        for name, far in (("site-a.toml", "10.2.0.0/24"), ("site-b.toml", "10.1.0.0/24"))
    ]


def test_flushes_let_nothing_out(two_sites: Sites, directory: Directory) -> None:
    mine, theirs = by_protocol(directory)
    gateway = two_sites.gateway_a
    with (
        Capture(two_sites.internet) as capture,
        Agent(gateway, mine) as one,
        Agent(two_sites.gateway_b, theirs),
        Pinging(two_sites.lan_a, LAN_B, interval=0.002) as ping,
    ):
        wait_for(lambda: ping.answered, "the tunnel is up")
        text = mine.read_text()
        for number in range(_FLUSHES):
            gateway.run("nft", "flush", "ruleset")
            if number % 5 == 4:  # and a reload with one filter more, under flushes
                more = 'protocol = "icmp"\n\n[[filter_list.filter]]\nsource = "10.1.0.0/24"\n'
                more += f'destination = "10.2.0.0/24"\nprotocol = "udp"\ndestination_port = {number}'
                mine.write_text(text.replace('protocol = "icmp"', more, 1))
                one.signal(signal.SIGHUP)
            time.sleep(0.03)
        assert held(gateway)
        seen = len(ping.answered)
        wait_for(lambda: len(ping.answered) > seen + 100, f"traffic goes on\n{one.log()}")
        assert "guard_unheld" not in one.log()
        assert "reload_refused" not in one.log()
        assert one.status()["generation"] > 1
        capture.stop()  # an orderly stop is the end of the policy
        assert one.stop() == 0
        assert "mirrorgate" not in gateway.run("nft", "list", "ruleset").stdout
    assert capture.crossed().clear == ()


def test_flushes_let_nothing_in(two_sites: Sites, directory: Directory) -> None:
    mine, _ = by_protocol(directory)
    gateway = two_sites.gateway_a
    with (
        Agent(gateway, mine),
        Capture(two_sites.lan_a, "any", f"icmp and src {LAN_B}") as arrived,
        Pinging(two_sites.lan_b, LAN_A, interval=0.002) as clear,  # from a site without a policy
    ):
        for _ in range(_FLUSHES):
            gateway.run("nft", "flush", "ruleset")
            time.sleep(0.03)
    assert clear.sent > 100
    assert len(arrived.packets()) == 0


def test_the_held_guard_goes_with_the_agent_and_comes_back(two_sites: Sites, directory: Directory) -> None:
    mine, theirs = by_protocol(directory)
    gateway = two_sites.gateway_a
    with (
        Agent(gateway, mine) as one,
        Agent(two_sites.gateway_b, theirs),
        Pinging(two_sites.lan_a, LAN_B, interval=0.01) as ping,
        Capture(two_sites.internet) as capture,
    ):
        wait_for(lambda: ping.answered, "the tunnel is up")
        assert gateway.run("nft", "delete", "table", "inet", "mirrorgate_guard", check=False).returncode != 0
        one.kill()
        wait_for(lambda: not held(gateway), "the held guard is gone")
        tables = gateway.run("nft", "list", "tables").stdout.splitlines()
        assert "table inet mirrorgate" in tables, "the one without owner stays"
        time.sleep(0.2)
        one.start()
        assert held(gateway)
        os.kill(holder(one.pid), signal.SIGKILL)
        one.wait_log("guard_unheld")
        assert held(gateway)
        seen = len(ping.answered)
        wait_for(lambda: len(ping.answered) > seen + 10, "traffic goes on")
    assert capture.crossed().clear == ()


def holder(agent: int) -> int:
    """Return the process that holds the guard of an agent: the only one that it keeps."""
    tasks = Path(f"/proc/{agent}/task").iterdir()
    (found,) = [int(word) for task in tasks for word in (task / "children").read_text().split()]
    return found


def test_a_crash_leaks_nothing(two_sites: Sites, directory: Directory) -> None:
    with (
        Capture(two_sites.internet) as capture,
        tunnel(two_sites, directory) as (one, _),
        Pinging(two_sites.lan_a, LAN_B, interval=0.02) as ping,
        Pinging(two_sites.lan_b, LAN_A, interval=0.02) as back,
    ):
        wait_for(lambda: ping.answered and back.answered, "the tunnel is up")
        for fault in (signal.SIGABRT, signal.SIGSEGV):  # as when memory runs out, and as a bug in native code
            one.signal(fault)
            assert one.ended() == -fault
            time.sleep(0.3)
            there, here = len(ping.answered), len(back.answered)
            one.start()
            wait_for(
                lambda a=there, b=here: len(ping.answered) > a and len(back.answered) > b,
                "traffic after the crash",
            )
    assert capture.crossed().clear == ()


#: Moments of a start, in seconds: more of them where more kills are asked for.
_MOMENTS = (0.35,) if _KILLS <= 20 else tuple(0.05 * n for n in range(2, 18))


@pytest.mark.parametrize("after", _MOMENTS, ids="{:.2f}".format)
def test_killed_while_it_starts_reloads_and_stops(two_sites: Sites, directory: Directory, after: float) -> None:
    with (
        tunnel(two_sites, directory) as (one, _),
        Pinging(two_sites.lan_a, LAN_B, interval=0.01) as ping,
        Pinging(two_sites.lan_b, LAN_A, interval=0.01) as back,
        Capture(two_sites.internet) as capture,
    ):
        wait_for(lambda: ping.answered and back.answered, "the tunnel is up")
        one.kill()
        one.start(wait=False)
        time.sleep(after)  # imports, policy, guard, TUN, routes, sockets: wherever it is by then
        one.kill()
        one.start()
        one.signal(signal.SIGHUP)
        time.sleep(after / 20)
        one.kill()
        one.start()
        wait_for(one.children, "the tunnel is up again")
    assert capture.crossed().clear == ()


@pytest.mark.parametrize("after", [0.02] if _KILLS <= 20 else [0.005, 0.01, 0.02, 0.05, 0.1], ids=str)
def test_killed_while_it_stops(two_sites: Sites, directory: Directory, after: float) -> None:
    with (
        tunnel(two_sites, directory) as (one, _),
        Pinging(two_sites.lan_b, LAN_A, interval=0.01) as back,
        # A stop is the end of gateway A's policy, however far it came; gateway B's stands.
        Capture(two_sites.internet, "to-b") as capture,
    ):
        wait_for(lambda: back.answered, "the tunnel is up")
        one.signal(signal.SIGTERM)
        time.sleep(after)
        one.kill()
        one.start()
        seen = len(back.answered)
        wait_for(lambda: len(back.answered) > seen, "the tunnel is up again", 15)
        assert one.stop() == 0
        assert "mirrorgate" not in two_sites.gateway_a.run("nft", "list", "ruleset").stdout
    assert capture.crossed().clear == ()


def test_a_stopped_process_leaks_nothing(two_sites: Sites, directory: Directory) -> None:
    with (
        Capture(two_sites.internet) as capture,
        tunnel(two_sites, directory) as (one, _),
        Pinging(two_sites.lan_a, LAN_B, interval=0.02) as ping,
        Pinging(two_sites.lan_b, LAN_A, interval=0.02) as back,
    ):
        wait_for(lambda: ping.answered and back.answered, "the tunnel is up")
        one.signal(signal.SIGSTOP)
        time.sleep(1)
        two_sites.gateway_a.ip("rule", "del", "pref", "19816")  # what a network manager may do meanwhile
        two_sites.gateway_a.ip("route", "flush", "table", "19815")
        time.sleep(0.3)
        one.signal(signal.SIGCONT)
        there, here = len(ping.answered), len(back.answered)
        wait_for(lambda: len(ping.answered) > there + 5 and len(back.answered) > here + 5, "traffic goes on", 15)
    assert capture.crossed().clear == ()


def test_an_icmp_error_does_not_make_the_agent_deaf(two_sites: Sites, directory: Directory) -> None:
    # A gateway without its agent answers with ICMP "port unreachable". The error raises EPOLLERR on the
    # other agent's socket; an event loop that stops watching a socket on EPOLLERR would never hear the peer again.
    with tunnel(two_sites, directory) as (_, other):
        assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
        other.kill()
        assert two_sites.lan_a.ping(LAN_B, count=3, wait=1).returncode != 0
        other.start()
        with Pinging(two_sites.lan_b, LAN_A, interval=0.2) as back:
            wait_for(lambda: back.answered, "gateway A hears gateway B again", 5)


def test_an_orderly_stop_undoes_everything(two_sites: Sites, directory: Directory) -> None:
    gateway = two_sites.gateway_a
    gateway.run("nft", "-f", "-", stdin=_FOREIGN)
    before = state_of(gateway)
    with tunnel(two_sites, directory) as (one, _):
        assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
        during = state_of(gateway)
        assert "somebody" in during["nft"]
        assert "192.0.2.7" in during["nft"]
        assert during["rules"] != before["rules"]
        assert during["links"] != before["links"]
        assert one.stop() == 0
        wait_for(lambda: "mg0" not in gateway.ip("link"), "the TUN is gone")
        assert state_of(gateway) == before
        # And again, after a kill: the next run takes over what the dead one left, and removes it.
        one.start()
        one.kill()
        assert state_of(gateway) != before
        one.start()
        assert one.stop() == 0
        assert state_of(gateway) == before
    assert not one.control.exists()


def test_the_peer_is_told_of_an_orderly_stop(two_sites: Sites, directory: Directory) -> None:
    with tunnel(two_sites, directory) as (one, other):
        assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
        assert one.stop() == 0
        wait_for(lambda: other.children() == [], "gateway B has no Child SA")


def test_unassign_and_assign(two_sites: Sites, directory: Directory) -> None:
    with tunnel(two_sites, directory) as (one, other):
        assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
        one.run("unassign")
        assert one.status()["policy"] is None
        # Gateway A may send in clear now; gateway B's policy does not let that in.
        assert two_sites.lan_a.ping(LAN_B, wait=1).returncode != 0
        other.run("unassign")
        assert two_sites.lan_a.ping(LAN_B).returncode == 0
        one.run("assign", "Site A to site B")
        other.run("assign", "Site B to site A")
        with Capture(two_sites.internet) as capture:
            assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
        assert capture.crossed().clear == ()
        done = one.run("assign", "Site A to site C", check=False)
        assert done.returncode == 1
        assert "Site A to site B" in done.stdout + done.stderr


def test_reload_by_command_and_by_signal(two_sites: Sites, directory: Directory) -> None:
    with tunnel(two_sites, directory) as (one, _):
        with Capture(two_sites.internet) as capture, Pinging(two_sites.lan_a, LAN_B) as ping:
            wait_for(lambda: ping.answered, "the tunnel is up")
            (child,) = one.children()
            generation = one.status()["generation"]
            # What did not change is not touched.
            one.run("reload")
            wait_for(lambda: one.status()["generation"] > generation, "a new generation")
            assert [found["spi_in"] for found in one.children()] == [child["spi_in"]]
            # A mistake changes nothing.
            good = one.config.read_text()
            one.config.write_text(good.replace('action = "negotiate"', 'action = "negociate"'))
            done = one.run("reload", check=False)
            assert done.returncode != 0
            assert "negociate" in done.stdout + done.stderr
            assert [found["spi_in"] for found in one.children()] == [child["spi_in"]]
            # By signal, with something new: now the host answers only through another filter list.
            one.config.write_text(good.replace('name = "LAN to LAN"', 'name = "Another name"'))
            one.signal(signal.SIGHUP)
            wait_for(lambda: [rule["rule"] for rule in one.status()["rules"]] == ["Another name"], "the new rule")
            seen = len(ping.answered)
            wait_for(lambda: len(ping.answered) > seen + 5, "traffic after the reload")
        assert capture.crossed().clear == ()
