"""The gateway between two planes that only write down what they are told."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from ike.events import (
    AcquireFailed,
    ChildActivated,
    ChildInstalled,
    ChildRemoved,
    Event,
    FailureKind,
    Level,
    PathChanged,
    SendIke,
)
from ike.status import IkeSaStatus
from policy.clock import SECOND, Entropy, Nanos
from policy.compile import compile_policy
from policy.path import Endpoint, Path
from policy.selectors import Flow
from policy.spd import Snapshot
from tests.support.fakes import IKE_PATH, LOCAL, PATH, FakeControl, FakeDataPlane, child_sa
from tests.support.sim.clock import Entropy as Stream
from tests.support.sim.policies import BLOCK, PERMIT, filter_of, policy, rule
from tunnel import pump
from tunnel.control import IkeControl, LastHeard
from tunnel.dataplane.contract import (
    Acquire,
    Activated,
    DataPlane,
    Expire,
    IkeDatagram,
    InternalError,
    Mapping,
    Transmit,
    TunFrame,
    UnknownSpi,
    WireDatagrams,
    WriteTun,
)
from tunnel.gateway import Gateway
from tunnel.outputs import Explain, Initiate, Output, Rekey, Shutdown, Status, Terminate, TunMtu

NOW = 50 * SECOND
MOVED = Path(PATH.local, Endpoint(PATH.remote.address, 31000))
FLOW = Flow(4, 17, int(ip_address("10.1.0.5")), int(ip_address("10.2.0.9")), 40000, 53)
POLICY = policy(
    rule("LAN to LAN", filter_of("10.1.0.0/24", "10.2.0.0/24"), endpoint="192.0.2.2"),
    rule("Block telnet", filter_of("10.1.0.0/24", "any", 6, 23), then=BLOCK),
    rule("Permit web", filter_of("10.1.0.0/24", "10.3.0.0/24", 6, 80), then=PERMIT),
)


def snapshot(generation: int = 1) -> Snapshot:
    return compile_policy(POLICY, generation=generation, local_addresses=[LOCAL, ip_address("10.1.0.1")])


class Bench:
    """A gateway, its two planes and what came out."""

    def __init__(self) -> None:
        self.data = FakeDataPlane()
        plane: DataPlane = self.data
        self.gateway = Gateway(entropy=Stream(1, "bench"), dataplane=plane, control=self._control)
        self.outputs: list[Output] = []
        self.deadline: Nanos | None = None

    def _control(self, *, entropy: Entropy, last_heard: LastHeard) -> IkeControl:
        self.ike = FakeControl(entropy, last_heard)
        return self.ike

    def drain(self) -> list[Output]:
        """Return what came out since the last time."""
        self.outputs = []
        self.deadline = pump.drain(self.gateway, self.outputs.append)
        return self.outputs

    def calls(self) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
        """Return and forget the calls to the data plane and to IKE."""
        found = self.data.calls, self.ike.calls
        self.data.calls, self.ike.calls = [], []
        return found

    def tell(self, *outputs: object) -> list[Output]:
        """Let IKE say *outputs* at a timeout."""
        self.ike.answers["handle_timeout"] = list(outputs)  # type: ignore[arg-type]
        self.gateway.handle_timeout(NOW)
        return self.drain()


@pytest.fixture
def bench() -> Bench:
    """A gateway with the policy in force."""
    made = Bench()
    made.gateway.load(snapshot(), NOW)
    made.drain()
    made.calls()
    return made


@pytest.fixture
def entry(bench: Bench) -> str:
    """The id of the entry that protects."""
    return next(e.id for e in bench.gateway.snapshot.spd.entries if e.rule == "LAN to LAN")


def test_a_policy_reaches_the_packets_before_it_reaches_ike(bench: Bench) -> None:
    order: list[str] = []
    bench.data.load = lambda *_: order.append("data plane")  # type: ignore[method-assign]
    bench.ike.load = lambda *_: order.append("ike")  # type: ignore[method-assign]
    bench.gateway.load(snapshot(2), NOW)
    events = [output for output in bench.drain() if isinstance(output, Event)]
    assert order == ["data plane", "ike"]
    assert [event.name for event in events] == ["policy_loaded"]
    assert events[0].message == 'policy "Test" is in force: nothing changed'
    assert events[0].fields["generation"] == 2


def test_a_packet_without_sa_starts_a_negotiation(bench: Bench, entry: str) -> None:
    bench.data.answers = [Acquire(entry, FLOW)]
    bench.gateway.handle_tun([TunFrame(bytes(30))], NOW)
    bench.drain()
    assert bench.calls() == ([("outbound", 1)], [("acquire", entry, FLOW)])
    assert _entry_state(bench, entry) == ("negotiating", None)


def test_inbound_before_outbound_before_release(bench: Bench, entry: str) -> None:
    # RFC 7296 section 2.8: be ready to receive before the other end may send.
    bench.tell(ChildInstalled(child_sa(entry)))
    calls, _ = bench.calls()
    assert calls[1:] == [("add_sa", 0x1001, "in"), ("add_sa", 0x2001, "out"), ("release", entry)]
    inbound, outbound = bench.data.last_params
    assert (inbound.soft_bytes, outbound.soft_bytes, outbound.hard_bytes) == (None, 1000, 2000)
    assert _entry_state(bench, entry) == ("up", None)


def test_what_the_gateway_remembers_of_an_sa_holds_no_keys(bench: Bench, entry: str) -> None:
    bench.tell(ChildInstalled(child_sa(entry)))
    (installed,) = bench.gateway.children
    assert all(len(secret) == 0 for secret in (*installed.sa.keys_in, *installed.sa.keys_out))
    assert len(bench.data.last_params[0].encryption_key) == 16


@pytest.mark.parametrize(("spi", "undone"), [(0x1001, []), (0x2001, [("delete_sa", 0x1001, "in")])])
def test_a_child_that_the_data_plane_refuses_is_torn_down(
    bench: Bench, entry: str, spi: int, undone: list[tuple[object, ...]]
) -> None:
    bench.data.refuse_spis = (spi,)
    outputs = bench.tell(ChildInstalled(child_sa(entry)))
    calls, ike = bench.calls()
    assert [call for call in calls if call[0] == "delete_sa"] == undone
    assert calls[-1] == ("refuse", entry, 30 * SECOND)
    assert ike == [("handle_timeout",), ("terminate_child", 1)]
    assert [o.name for o in outputs if isinstance(o, Event)] == ["child_refused", "peer_state"]
    assert _entry_state(bench, entry) == ("failed", "the data plane refused it: no such algorithm")
    # IKE tells that it is gone: there is nothing left to remove.
    bench.tell(ChildRemoved(1, 0x1001, 0x2001, "refused"))
    assert [call[0] for call in bench.calls()[0]] == ["handle_timeout"]


def test_a_removed_child_stops_sending_at_once_and_receives_for_a_while(bench: Bench, entry: str) -> None:
    bench.tell(ChildInstalled(child_sa(entry)))
    bench.calls()
    bench.tell(ChildRemoved(1, 0x1001, 0x2001, "rekeyed", drain=5 * SECOND))
    assert bench.calls()[0][1:] == [("delete_sa", 0x2001, "out")]
    assert bench.gateway.deadline() == NOW + 5 * SECOND
    bench.gateway.handle_timeout(NOW + 5 * SECOND)
    bench.drain()
    assert bench.calls()[0] == [("delete_sa", 0x1001, "in"), ("handle_timeout",)]
    assert bench.gateway.deadline() is None
    assert _entry_state(bench, entry) == ("down", "rekeyed")


def test_a_child_removed_without_drain_is_gone_at_once(bench: Bench, entry: str) -> None:
    bench.tell(ChildInstalled(child_sa(entry)))
    bench.calls()
    bench.tell(ChildRemoved(1, 0x1001, 0x2001, "policy changed"))
    assert bench.calls()[0][1:] == [("delete_sa", 0x2001, "out"), ("delete_sa", 0x1001, "in")]


def test_a_failed_negotiation_refuses_the_packets_that_waited(bench: Bench, entry: str) -> None:
    failure = AcquireFailed(entry, FailureKind.NO_ANSWER, "192.0.2.2 does not answer", 4 * SECOND)
    bench.tell(failure)
    assert bench.calls()[0][-1] == ("refuse", entry, 4 * SECOND)
    assert _entry_state(bench, entry) == ("failed", "192.0.2.2 does not answer")


def test_paths_and_activation_reach_the_data_plane(bench: Bench, entry: str) -> None:
    bench.tell(ChildInstalled(child_sa(entry)))
    bench.tell(ChildInstalled(child_sa(entry, child=2, spi_in=0x1002, spi_out=0x2002, dormant=True, replaces=1)))
    assert bench.data.last_params[-1].dormant
    assert not bench.data.last_params[-2].dormant  # the inbound half always receives
    bench.calls()
    bench.tell(PathChanged((1, 2), MOVED), ChildActivated(2))
    remote = str(MOVED.remote)
    assert bench.calls()[0][1:] == [("update_path", 1, remote), ("update_path", 2, remote), ("activate", 2)]
    assert [(pair.sa.path, pair.sa.dormant) for pair in bench.gateway.children] == [(MOVED, False)] * 2


def test_ike_on_port_500_and_the_rest_to_the_data_plane(bench: Bench) -> None:
    raw = Path(Endpoint(LOCAL, 0), Endpoint(PATH.remote.address, 0))
    datagrams = [
        WireDatagrams(PATH, b"\x00\x00\x10\x01esp"),
        WireDatagrams(raw, b"\x00\x00\x00\x00esp"),
        WireDatagrams(IKE_PATH, b"onetwoend", 3),
        WireDatagrams(PATH, b"\x00\x00\x10\x01more"),
    ]
    bench.gateway.handle_wire(datagrams, NOW)
    bench.drain()
    data, ike = bench.calls()
    assert data == [("inbound", 2), ("inbound", 1)]
    assert ike == [("receive", 500, b"one"), ("receive", 500, b"two"), ("receive", 500, b"end")]


def test_ike_on_port_4500_is_heard_before_the_esp_behind_it(bench: Bench, entry: str) -> None:
    # One read: the response that completes a Child SA, then the peer's first packet on it.
    bench.data.answers = [IkeDatagram(PATH, b"response")]
    bench.ike.answers["receive"] = [ChildInstalled(child_sa(entry))]
    bench.gateway.handle_wire(
        [WireDatagrams(PATH, bytes(4) + b"response"), WireDatagrams(PATH, b"\x00\x00\x10\x01esp")], NOW
    )
    bench.drain()
    assert [call[0] for call in bench.calls()[0]] == ["inbound", "add_sa", "add_sa", "release", "inbound"]


def test_punts_reach_ike(bench: Bench) -> None:
    bench.data.answers = [
        Expire(1, 0x2001, False, True, "sequence"),
        Mapping(1, 0x1001, MOVED),
        UnknownSpi(PATH, 0x999),
        Activated(1),
        IkeDatagram(PATH, b"message"),
        InternalError("inbound", "IndexError at f:1"),
    ]
    bench.gateway.handle_wire([WireDatagrams(PATH, b"\x00\x00\x10\x01esp")], NOW)
    outputs = bench.drain()
    assert bench.calls()[1] == [
        ("expire", 1, True),
        ("mapping", 1, str(MOVED.remote)),
        ("unknown_spi", 0x999),
        ("receive", 4500, b"message"),
    ]
    assert [(o.name, o.level) for o in outputs if isinstance(o, Event)] == [("internal_error", Level.ERROR)]


def test_what_goes_out_keeps_its_order(bench: Bench) -> None:
    sealed = Transmit(PATH, (b"one", b"two"), 3)
    bench.data.answers = [sealed, WriteTun(((bytes(10), b"packet"),)), IkeDatagram(PATH, b"message")]
    bench.ike.answers["receive"] = [SendIke(IKE_PATH, b"answer")]
    bench.gateway.handle_wire([WireDatagrams(PATH, b"\x00\x00\x10\x01esp")], NOW)
    assert bench.drain() == [sealed, WriteTun(((bytes(10), b"packet"),)), Transmit(IKE_PATH, (b"answer",))]


def test_the_mtu_of_the_tun_is_told_when_it_changes(bench: Bench) -> None:
    bench.data.mtu = 1350
    bench.gateway.path_mtu(PATH.remote, 1420, NOW)
    assert bench.drain() == [TunMtu(1350)]
    bench.gateway.path_mtu(PATH.remote, 1420, NOW)
    assert bench.drain() == []


def test_the_source_address_reaches_ike(bench: Bench) -> None:
    bench.gateway.source(PATH.remote.address, LOCAL, NOW)
    assert bench.drain() == []
    assert bench.calls()[1] == [("source", PATH.remote.address, LOCAL)]


def test_the_deadline_is_the_earliest(bench: Bench) -> None:
    bench.data.wanted, bench.ike.wanted = NOW + 2, NOW + 1
    bench.gateway.handle_timeout(NOW)
    bench.drain()
    assert bench.deadline == NOW + 1


def test_the_law_is_enforced(bench: Bench) -> None:
    bench.gateway.load(snapshot(2), NOW)
    with pytest.raises(RuntimeError, match="poll until None"):
        bench.gateway.handle_timeout(NOW)
    bench.drain()
    bench.gateway.handle_timeout(NOW)


def test_last_heard_follows_a_child_until_it_is_drained(bench: Bench, entry: str) -> None:
    bench.data.heard = {0x1001: NOW - 3}
    assert bench.ike.last_heard(1) == 0
    bench.tell(ChildInstalled(child_sa(entry)))
    assert bench.ike.last_heard(1) == NOW - 3
    bench.tell(ChildRemoved(1, 0x1001, 0x2001, "rekeyed", drain=SECOND))
    assert bench.ike.last_heard(1) == NOW - 3
    bench.gateway.handle_timeout(NOW + SECOND)
    bench.drain()
    assert bench.ike.last_heard(1) == 0


def test_a_sink_that_fails_loses_only_what_it_failed_on(bench: Bench) -> None:
    bench.data.answers = [Transmit(PATH, (b"one",)), Transmit(PATH, (b"two",))]
    bench.gateway.handle_tun([TunFrame(bytes(30))], NOW)

    def broken(_: Output) -> None:
        raise OSError("network is unreachable")

    with pytest.raises(OSError, match="unreachable"):
        pump.drain(bench.gateway, broken)
    assert bench.drain() == [Transmit(PATH, (b"two",))]


# Commands


def test_initiate_says_what_it_started(bench: Bench, entry: str) -> None:
    answer = bench.gateway.command(Initiate("LAN to LAN"), NOW)
    bench.drain()
    assert answer == {"started": [entry], "up": [], "failed": []}
    assert bench.calls()[1] == [("acquire", entry, None)]
    bench.tell(ChildInstalled(child_sa(entry)))
    assert bench.gateway.command(Initiate("LAN to LAN"), NOW) == {"started": [], "up": [entry], "failed": []}


def test_initiate_says_what_failed_at_once(bench: Bench, entry: str) -> None:
    reason = "192.0.2.2 may only be answered"
    bench.ike.answers["acquire"] = [AcquireFailed(entry, FailureKind.LOCAL, reason, SECOND)]
    answer = bench.gateway.command(Initiate("LAN to LAN"), NOW)
    assert answer == {"started": [], "up": [], "failed": [{"entry": entry, "reason": reason}]}


@pytest.mark.parametrize("command", [Initiate("LAN too LAN"), Rekey("LAN too LAN"), Terminate("LAN too LAN")])
def test_an_unknown_rule_is_answered_with_the_nearest(bench: Bench, command: Initiate | Rekey | Terminate) -> None:
    answer = bench.gateway.command(command, NOW)
    assert answer == {"error": 'there is no rule "LAN too LAN": did you mean "LAN to LAN"?'}


def test_a_rule_that_negotiates_nothing_says_so(bench: Bench) -> None:
    answer = bench.gateway.command(Initiate("Block telnet"), NOW)
    assert answer == {"error": 'rule "Block telnet" negotiates nothing: its filter action permits or blocks'}
    made = Bench()
    assert made.gateway.command(Initiate("x"), NOW) == {"error": 'there is no rule "x": no policy is assigned'}


def test_rekey_children_and_ike_sas(bench: Bench, entry: str) -> None:
    peer = _up(bench, entry)
    assert bench.gateway.command(Rekey(), NOW) == {"rekeying": [1]}
    assert bench.gateway.command(Rekey("LAN to LAN", ike=True), NOW) == {"rekeying": [peer]}
    assert bench.gateway.command(Rekey(peer, ike=True), NOW) == {"rekeying": [peer]}
    assert bench.gateway.command(Rekey(ike=True), NOW) == {"rekeying": [peer]}
    answer = bench.gateway.command(Rekey("192.0.2.3", ike=True), NOW)
    assert "there is no peer or rule" in str(answer["error"])
    assert bench.calls()[1] == [("rekey_child", 1)] + [("rekey_ike", peer)] * 3


def test_terminate_takes_the_ike_sa_when_no_child_is_left(bench: Bench, entry: str) -> None:
    peer = _up(bench, entry)
    answer = bench.gateway.command(Terminate("LAN to LAN"), NOW)
    assert answer == {"terminated": [1], "peers": [peer]}
    assert bench.calls()[1] == [("terminate_peer", peer)]


def test_terminate_leaves_an_ike_sa_that_others_need(bench: Bench, entry: str) -> None:
    peer = _up(bench, entry)
    other = replace(child_sa("another entry", child=2, peer=peer, spi_in=0x1002, spi_out=0x2002))
    bench.tell(ChildInstalled(other))
    bench.calls()
    answer = bench.gateway.command(Terminate("LAN to LAN"), NOW)
    assert answer == {"terminated": [1], "peers": []}
    assert bench.calls()[1] == [("terminate_child", 1)]


def test_shutdown(bench: Bench, entry: str) -> None:
    peer = _up(bench, entry)
    assert bench.gateway.command(Shutdown(), NOW) == {"closing": [peer]}
    assert bench.calls()[1] == [("shutdown",)]


def test_the_status_object(bench: Bench, entry: str) -> None:
    peer = _up(bench, entry)
    bench.data.heard = {0x1001: NOW}
    status: Any = bench.gateway.command(Status(), NOW + 2 * SECOND)
    assert status["policy"] == "Test"
    assert status["drops"] == {"replayed": 2}
    assert (status["held"], status["tun_mtu"], status["generation"]) == (4, 1400, 1)
    (child,) = status["children"]
    assert child["suite"] == "ESP AES-GCM-16-128"
    assert (child["spi_in"], child["spi_out"], child["encapsulation"]) == ("00001001", "00002001", "udp")
    assert (child["local"], child["remote"]) == ("10.1.0.0/24", "10.2.0.0/24")
    assert (child["packets_in"], child["bytes_in"], child["packets_out"]) == (3, 300, 0)
    assert (child["rule"], child["age_s"], child["rekey_in_s"]) == ("LAN to LAN", 2.0, None)
    (shown,) = status["peers"]
    assert (shown["peer"], shown["address"], shown["state"], shown["reason"]) == (peer, "192.0.2.2", "up", None)
    assert shown["ike_sas"][0]["nat"] == "local"
    rules = {r["rule"]: r["entries"] for r in status["rules"]}
    assert [e["state"] for e in rules["LAN to LAN"]] == ["up"]
    assert {e["state"] for e in rules["Block telnet"]} == {"n/a"}


def test_a_peer_that_failed_is_down_with_its_reason(bench: Bench) -> None:
    (peer,) = bench.gateway.snapshot.pad.peers
    bench.ike.failed = {peer.name: "authentication failed"}
    status: Any = bench.gateway.command(Status(), NOW)
    (shown,) = status["peers"]
    assert (shown["state"], shown["reason"]) == ("down", "authentication failed")


def test_explain_tells_rule_sa_and_state(bench: Bench, entry: str) -> None:
    answer = bench.gateway.command(Explain(FLOW), NOW)
    assert (answer["verdict"], answer["entry"], answer["sa"]) == ("protect", entry, None)
    assert answer["state"] == "down; the next packet starts a negotiation"
    _up(bench, entry)
    answer = bench.gateway.command(Explain(FLOW), NOW)
    assert answer["state"] == "up: Child SA 1 carries it, SPI 00002001, 0 s old"
    assert answer["sa"]["child"] == 1  # type: ignore[index]
    answer = bench.gateway.command(Explain(replace(FLOW, protocol=6, destination=1, destination_port=23)), NOW)
    assert (answer["verdict"], answer["state"]) == ("discard", "dropped")
    answer = bench.gateway.command(Explain(replace(FLOW, destination=1)), NOW)
    assert (answer["verdict"], answer["state"]) == ("no policy", "passes in clear")


def test_explain_tells_when_the_peer_narrowed_the_selectors(bench: Bench, entry: str) -> None:
    narrow = child_sa(entry)
    pair = narrow.selectors[0]
    host = replace(pair.remote, addresses=replace(pair.remote.addresses, end=pair.remote.addresses.start))
    bench.tell(ChildInstalled(replace(narrow, selectors=(replace(pair, remote=host),))))
    answer = bench.gateway.command(Explain(FLOW), NOW)
    assert answer["state"] == "no SA covers it: the peer narrowed the selectors of those that are up"


def test_entries_that_vanish_are_forgotten(bench: Bench, entry: str) -> None:
    bench.tell(AcquireFailed(entry, FailureKind.REFUSED, "no", SECOND))
    bench.gateway.load(Snapshot(generation=2), NOW)
    bench.drain()
    bench.gateway.load(snapshot(3), NOW)
    bench.drain()
    assert _entry_state(bench, entry) == ("down", None)


def _up(bench: Bench, entry: str) -> str:
    """Install a Child SA of *entry* under an established IKE SA; return the peer's name."""
    peer = bench.gateway.snapshot.pad.peers[0].name
    bench.ike.sas = [
        IkeSaStatus(
            peer=peer,
            spi_i=bytes(8),
            spi_r=bytes(8),
            state="established",
            role="initiator",
            path=PATH,
            suite="AES-GCM-16-128",
            nat_local=True,
            nat_remote=False,
            remote_id="192.0.2.2",
            established=NOW,
            rekey_at=NOW + 3600 * SECOND,
            children=(1,),
        )
    ]
    bench.tell(ChildInstalled(child_sa(entry, peer=peer)))
    bench.calls()
    return peer


def _entry_state(bench: Bench, entry: str) -> tuple[str, str | None]:
    state, reason = bench.gateway.children.states(bench.gateway.snapshot)[entry]
    return state.value, reason
