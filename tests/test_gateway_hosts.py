"""The gateway's part in securing hosts one by one: soft SAs, dynamic entries, idle times, and what is shown."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from ike.events import AcquireFailed, ChildInstalled, ChildRemoved, Event, FailureKind
from ike.status import IkeSaStatus
from policy.clock import SECOND
from policy.lifetimes import Lifetime
from policy.model import KeyExchange
from policy.pad import Pad, PeerEntry
from policy.path import Endpoint, Path
from policy.selectors import AddressRange, Flow, SelectorPair, TrafficSelector
from policy.spd import Disposition, Mode, Protection, Snapshot, Spd, SpdEntry
from policy.suites import parse_method
from tests.support.fakes import FakeControl, FakeDataPlane, child_sa
from tests.support.sim.clock import Entropy as Stream
from tunnel import pump
from tunnel.children import EntryState
from tunnel.control import IkeControl
from tunnel.dataplane.contract import Acquire, SaStats, TunFrame
from tunnel.gateway import Gateway
from tunnel.outputs import Explain, Initiate, Output, SoftSa, Status, Steer
from tunnel.soft import MAX_SOFT, SOFT_LIFETIME, SoftSas

NOW = 50 * SECOND
ME, PEER = ip_address("192.0.2.1"), ip_address("198.51.100.7")
ANY = TrafficSelector(0, AddressRange.any(4))
FLOW = Flow(4, 6, int(ME), int(PEER), 40000, 80)
RULE = "All IP"
HOST = f"{RULE}@{PEER}"


def template(*, fallback: bool = True, rule: str = RULE) -> SpdEntry:
    return SpdEntry(
        id=rule, rule=rule, filter_list="All", filter_action="Request", outbound=True, inbound=True, per_host=True,
        selectors=SelectorPair(TrafficSelector(0, AddressRange.of(ME)), ANY), disposition=Disposition.PROTECT,
        protection=Protection(
            peer="any", mode=Mode.TRANSPORT, methods=(parse_method("esp:aes128gcm16"),), idle=300 * SECOND,
            lifetime=Lifetime(time=3600 * SECOND), inbound_clear=True, fallback_clear=fallback,
        ),
    )  # fmt: skip


def snapshot(*entries: SpdEntry, generation: int = 1) -> Snapshot:
    peer = PeerEntry(
        name="any", address=None, local_id=None, remote_id=None, authentication=(), ike=KeyExchange(),
        entries=tuple(entry.id for entry in entries), hosts=(AddressRange.any(4),),
    )  # fmt: skip
    return Snapshot(
        generation=generation, policy="P", spd=Spd(entries), pad=Pad((peer,)), local_addresses=(ME,),
        response=(replace(template(fallback=False), id="<Dynamic>/ipv4", rule="<Dynamic>"),),
    )  # fmt: skip


class Bench:
    def __init__(self, *entries: SpdEntry) -> None:
        self.data = FakeDataPlane()
        self.stats: dict[tuple[int, bool], int] = {}
        data: Any = self.data
        data.query_sa = self._query
        self.gateway = Gateway(entropy=Stream(1, "hosts"), dataplane=data, control=self._control)
        self.gateway.load(snapshot(*entries), NOW)
        self.drain()

    def _control(self, **given: Any) -> IkeControl:
        self.ike = FakeControl(given["entropy"], given["last_heard"])
        return self.ike

    def _query(self, spi: int, *, inbound: bool, child: int | None = None) -> SaStats:
        return SaStats(1, 1, self.stats.get((spi, inbound), 0), 1, {})

    def drain(self) -> list[Output]:
        found: list[Output] = []
        self.deadline = pump.drain(self.gateway, found.append)
        return found

    def tell(self, *outputs: Any, now: int = NOW) -> list[Output]:
        self.ike.answers["handle_timeout"] = list(outputs)
        self.gateway.handle_timeout(now)
        return self.drain()

    def said(self, name: str) -> list[tuple[object, ...]]:
        return [call for call in (*self.data.calls, *self.ike.calls) if call[0] == name]


def failed(kind: FailureKind, entry: str = HOST) -> AcquireFailed:
    return AcquireFailed(entry, kind, "nobody answered", 4 * SECOND)


def installed(entry: str = HOST, **given: Any) -> ChildInstalled:
    pair = SelectorPair(TrafficSelector(0, AddressRange.of(ME)), TrafficSelector(0, AddressRange.of(PEER)))
    dynamic = given.pop("dynamic", None)
    sa = replace(
        child_sa(entry, peer=f"{PEER}=any", **given), mode=Mode.TRANSPORT, selectors=(pair,), dynamic=dynamic
    )
    return ChildInstalled(sa)


def test_the_host_of_a_template_is_negotiated_with_and_shown() -> None:
    bench = Bench(template())
    bench.data.answers = [Acquire(HOST, FLOW)]
    bench.gateway.handle_tun([TunFrame(bytes(30))], NOW)
    (event,) = bench.drain()
    assert isinstance(event, Event)
    assert event.message == f"{PEER}=any: unknown -> negotiating"
    assert ("acquire", HOST, FLOW) in bench.ike.calls
    (rule,) = _status(bench)["rules"]
    (entry,) = rule["entries"]
    assert (entry["id"], entry["state"], entry["per_host"]) == (RULE, "negotiating", True)
    (host,) = entry["hosts"]
    assert (host["host"], host["state"]) == (str(PEER), "negotiating")
    assert _explain(bench)["state"] == "negotiating, and packets wait for the SA"
    bench.ike.sas = [_silent(unanswered=2)]
    assert _status(bench)["rules"][0]["entries"][0]["hosts"][0]["reason"] is None, (
        "one or two are lost now and then"
    )
    bench.ike.sas = [_silent(unanswered=5)]
    (host,) = _status(bench)["rules"][0]["entries"][0]["hosts"]
    for said in (host["reason"], _explain(bench)["state"], _status(bench)["peers"][-1]["reason"]):
        assert f"no answer from {PEER}:500 to 5 messages in 9 s" in said


def _silent(*, unanswered: int) -> IkeSaStatus:
    return IkeSaStatus(
        peer=f"{PEER}=any", spi_i=b"i" * 8, spi_r=bytes(8), state="initiating", role="initiator",
        path=Path(Endpoint(ME, 500), Endpoint(PEER, 500)), suite="", nat_local=False, nat_remote=False,
        remote_id="", established=None, rekey_at=None, children=(), unanswered=unanswered, silent_for=9 * SECOND,
    )  # fmt: skip


def test_nobody_answered_and_policy_allows_clear() -> None:
    bench = Bench(template())
    outputs = bench.tell(failed(FailureKind.NO_ANSWER))
    assert SoftSa(ME, PEER, SOFT_LIFETIME) in outputs
    assert bench.said("pass_clear") == [("pass_clear", HOST, NOW + SOFT_LIFETIME)]
    assert not bench.said("refuse")
    assert [o.message for o in outputs if isinstance(o, Event)] == [
        f"{PEER}=any: unknown -> in clear (nobody answered)"
    ]
    assert _explain(bench)["state"] == "in clear for 300 s more: nobody answered"
    assert bench.deadline == NOW + SOFT_LIFETIME
    # Its time is up: the host's element has expired by itself, and the next packet asks the peer again.
    later = bench.tell(now=NOW + SOFT_LIFETIME)
    assert not any(isinstance(output, SoftSa) for output in later)
    assert bench.gateway.children.state(HOST) == (EntryState.DOWN, "its time is up")
    assert len(bench.gateway.soft) == 0


@pytest.mark.parametrize("kind", [FailureKind.REFUSED, FailureKind.AUTHENTICATION, FailureKind.LOCAL])
def test_a_peer_that_answered_and_failed_gets_no_clear_traffic(kind: FailureKind) -> None:
    bench = Bench(template())
    outputs = bench.tell(failed(kind))
    assert not any(isinstance(output, SoftSa) for output in outputs)
    assert bench.said("refuse") == [("refuse", HOST, 4 * SECOND)]
    assert not bench.said("pass_clear")
    assert bench.gateway.children.state(HOST) == (EntryState.FAILED, "nobody answered")


def test_no_clear_without_the_flag() -> None:
    bench = Bench(template(fallback=False))
    outputs = bench.tell(failed(FailureKind.NO_ANSWER))
    assert not any(isinstance(output, SoftSa) for output in outputs)
    assert bench.said("refuse")


def test_an_sa_ends_the_soft_sa_at_once() -> None:
    bench = Bench(template())
    bench.tell(failed(FailureKind.NO_ANSWER))
    outputs = bench.tell(installed())
    assert [o for o in outputs if isinstance(o, SoftSa)] == [SoftSa(ME, PEER, 0)]
    assert bench.gateway.children.state(HOST) == (EntryState.UP, None)


def test_a_policy_that_falls_back_no_more_ends_soft_sas() -> None:
    bench = Bench(template())
    bench.tell(failed(FailureKind.NO_ANSWER))
    bench.gateway.load(snapshot(template(fallback=False), generation=2), NOW)
    assert SoftSa(ME, PEER, 0) in bench.drain()
    assert len(bench.gateway.soft) == 0
    bench = Bench(template())
    bench.tell(failed(FailureKind.NO_ANSWER))
    bench.gateway.load(snapshot(template(), generation=2), NOW)
    assert not any(isinstance(output, SoftSa) for output in bench.drain())


def test_soft_sas_are_bounded() -> None:
    soft = SoftSas()
    entry = template()
    for number in range(MAX_SOFT):
        begun = soft.begin(entry.for_host(ip_address(0x0A000000 + number)), NOW)
        assert begun is not None
        assert not begun[1]
    begun = soft.begin(entry.for_host(PEER), NOW)
    assert begun is not None
    assert begun[1] == [(ME, ip_address("10.0.0.0"))]
    assert len(soft) == MAX_SOFT


def test_what_the_default_response_rule_grants_is_steered_before_it_is_installed() -> None:
    bench = Bench()
    dynamic = replace(template(fallback=False).for_host(PEER), id=f"<Dynamic>/{PEER}/6/80", rule="<Dynamic>")
    outputs = bench.tell(installed(dynamic.id, dynamic=dynamic))
    (steer,) = [output for output in outputs if isinstance(output, Steer)]
    assert steer.snapshot.spd.entries == (dynamic,)
    order = [call[0] for call in bench.data.calls if call[0] in ("load", "add_sa")]
    assert order == ["load", "load", "add_sa", "add_sa"]
    assert _explain(bench)["entry"] == dynamic.id
    # A rekey changes nothing; the last SA takes the entry along.
    assert not _steers(bench.tell(installed(dynamic.id, dynamic=dynamic, child=2, spi_in=0x1002, spi_out=0x2002)))
    assert not _steers(bench.tell(ChildRemoved(1, 0x1001, 0x2001, "rekeyed")))
    (steer,) = _steers(bench.tell(ChildRemoved(2, 0x1002, 0x2002, "deleted by the peer")))
    assert steer.snapshot.spd.entries == ()


def test_dynamic_entries_stay_over_a_new_policy() -> None:
    bench = Bench()
    dynamic = replace(template(fallback=False).for_host(PEER), id="<Dynamic>/x", rule="<Dynamic>")
    bench.tell(installed(dynamic.id, dynamic=dynamic))
    bench.gateway.load(snapshot(template(), generation=2), NOW)
    bench.drain()
    assert [entry.id for entry in bench.gateway.snapshot.spd.entries] == [RULE, dynamic.id]


def test_an_sa_that_nobody_uses_ends() -> None:
    bench = Bench(template())
    bench.tell(installed())
    assert bench.deadline == NOW + 300 * SECOND
    bench.stats[0x1001, True] = NOW + 100 * SECOND
    bench.tell(now=NOW + 300 * SECOND)
    assert not bench.said("terminate_child")
    assert bench.deadline == NOW + 400 * SECOND
    # Traffic in either direction keeps it.
    bench.stats[0x2001, False] = NOW + 399 * SECOND
    bench.tell(now=NOW + 400 * SECOND)
    assert not bench.said("terminate_child")
    bench.tell(now=NOW + 699 * SECOND)
    assert bench.said("terminate_child") == [("terminate_child", 1)]


def test_initiate_wants_a_host() -> None:
    bench = Bench(template())
    answer = bench.gateway.command(Initiate(RULE), NOW)
    assert answer == {"error": f'rule "{RULE}" secures each host by itself: name one, after the rule'}
    bench.drain()
    answer = bench.gateway.command(Initiate(RULE, ip_address("2001:db8::1")), NOW)
    assert answer == {"error": f'rule "{RULE}" has no filter for 2001:db8::1'}
    bench.drain()
    assert bench.gateway.command(Initiate(RULE, PEER), NOW)["started"] == [HOST]


def _steers(outputs: list[Output]) -> list[Steer]:
    return [output for output in outputs if isinstance(output, Steer)]


def _status(bench: Bench) -> dict[str, Any]:
    answer: dict[str, Any] = bench.gateway.command(Status(), NOW)
    bench.drain()
    return answer


def _explain(bench: Bench) -> dict[str, Any]:
    answer: dict[str, Any] = bench.gateway.command(Explain(FLOW), NOW)
    bench.drain()
    return answer
