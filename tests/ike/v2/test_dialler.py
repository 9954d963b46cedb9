"""IKE_SA_INIT leaves at a pace that follows the peers: fast where they answer, slow where nobody does."""

from __future__ import annotations

import pytest

from ike.constants import ExchangeType
from ike.endpoint import IkeEndpoint
from ike.events import AcquireFailed, Event, FailureKind, SendIke
from ike.v2.dialler import Pace
from ike.v2.sa import IkeSa
from ike.v2.settings import IkeSettings
from ike.v2.tasks.ike_init import IkeInit
from ike.wire.header import parse_header
from policy.clock import MILLISECOND, SECOND, Nanos
from policy.spd import Snapshot
from tests.support.ike_pair import Randomness, entry, peer_entry, snapshot_of

_PEERS = 300
SETTINGS = IkeSettings()


def hub(peers: int = _PEERS, **protection: object) -> Snapshot:
    """Return a policy with so many peers, each behind its own address."""
    known = [peer_entry(f"p{n}", f"10.8.{n >> 8}.{n & 255}", (f"e{n}",)) for n in range(peers)]
    entries = [
        entry(f"e{n}", "10.1.0.0/24", f"10.{100 + (n >> 8)}.{n & 255}.0/24", peer=f"p{n}", **protection)
        for n in range(peers)
    ]
    return snapshot_of(tuple(known), tuple(entries), "10.9.0.1")


class Alone:
    """An endpoint whose peers do not answer."""

    def __init__(self, snapshot: Snapshot, settings: IkeSettings = SETTINGS) -> None:
        self.now: Nanos = SECOND
        self.endpoint = IkeEndpoint(entropy=Randomness("alone"), settings=settings)
        self.endpoint.load(snapshot, self.now)
        self.sent: list[tuple[Nanos, str]] = []
        self.failed: list[tuple[Nanos, AcquireFailed]] = []
        self.silent: list[str] = []
        self.most_at_once = 0

    def dial(self, peers: int = _PEERS) -> None:
        for number in range(peers):
            self.endpoint.acquire(f"e{number}", None, self.now)
        self.drain()

    def drain(self) -> None:
        before = len(self.sent)
        while (output := self.endpoint.poll()) is not None:
            if isinstance(output, SendIke):
                assert parse_header(output.data).exchange == ExchangeType.IKE_SA_INIT
                self.sent.append((self.now, str(output.path.remote.address)))
            elif isinstance(output, Event) and output.name == "no_answer":
                self.silent.append(str(output.fields["peer"]))
            elif isinstance(output, AcquireFailed):
                self.failed.append((self.now, output))
        self.most_at_once = max(self.most_at_once, len(self.sent) - before)

    def wait(self, duration: Nanos) -> None:
        end = self.now + duration
        while (due := self.endpoint.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.endpoint.handle_timeout(self.now)
            self.drain()
        self.now = end


def test_a_few_peers_are_dialled_at_once() -> None:
    alone = Alone(hub(SETTINGS.dial_burst))
    alone.dial(SETTINGS.dial_burst)
    assert len(alone.sent) == SETTINGS.dial_burst


def test_silent_peers_are_no_flood_and_each_has_its_turn() -> None:
    alone = Alone(hub())
    begun = alone.now
    alone.dial()
    alone.wait(29 * SECOND)
    for second in range(29):
        start = begun + second * SECOND
        count = sum(start <= at < start + SECOND for at, _ in alone.sent)
        assert count <= SETTINGS.dial_rate + SETTINGS.dial_burst, f"{count} in second {second}"
    # Repetitions stand in the same queue, so the last peer is asked some time after, and none is left out.
    firsts = {address: at for at, address in reversed(alone.sent)}
    assert len(firsts) == _PEERS
    assert max(firsts.values()) - begun < 2 * _PEERS * SECOND // SETTINGS.dial_rate
    assert alone.most_at_once <= SETTINGS.work_a_turn
    alone.wait(60 * SECOND)
    assert len(alone.failed) == _PEERS, "each demand ends"
    assert alone.endpoint.status(alone.now) == []


def test_who_was_asked_is_asked_again_before_all_others_were_asked() -> None:
    # The first request may be lost: it must not wait behind a thousand peers, and be given up meanwhile.
    alone = Alone(hub())
    begun = alone.now
    alone.dial()
    alone.wait(5 * SECOND)
    times = [at - begun for at, address in alone.sent if address == "10.8.0.0"]
    assert len(times) >= 2
    assert times[1] < 2 * SECOND
    assert len({address for _, address in alone.sent}) < _PEERS


def test_those_that_failed_together_do_not_come_again_together() -> None:
    alone = Alone(hub(100))
    alone.dial(100)
    alone.wait(60 * SECOND)
    waits = {failure.retry_after for _, failure in alone.failed}
    assert len(waits) > 50
    assert all(SECOND <= wait < SECOND * 5 // 4 for wait in waits)


def test_who_was_hardly_asked_is_not_said_to_speak_no_ike() -> None:
    # fallback_clear allows clear text to who does not answer: who waits for its turn was not asked.
    alone = Alone(hub(fallback_clear=True))
    begun = alone.now
    alone.dial()
    alone.wait(60 * SECOND)
    first: dict[str, Nanos] = {}
    for at, address in alone.sent:
        first.setdefault(address, at)
    assert len(alone.failed) == _PEERS
    for at, failure in alone.failed:
        address = f"10.8.{int(failure.entry[1:]) >> 8}.{int(failure.entry[1:]) & 255}"
        assert at - first[address] >= SETTINGS.fallback_after
        assert sum(to == address for _, to in alone.sent) >= 2
    assert max(first.values()) > begun + SETTINGS.fallback_after


@pytest.mark.parametrize("fallback_after", [SETTINGS.fallback_after, 5_100 * MILLISECOND, 7_777 * MILLISECOND])
@pytest.mark.parametrize("peers", [60, _PEERS, 900])
def test_clear_text_does_not_begin_while_an_answer_may_be_on_its_way(peers: int, fallback_after: Nanos) -> None:
    # A repetition that waited for its turn leaves late: silence after it counts from then on.
    alone = Alone(hub(peers, fallback_clear=True), IkeSettings(fallback_after=fallback_after))
    alone.dial(peers)
    alone.wait(120 * SECOND)
    last: dict[str, list[Nanos]] = {}
    for at, address in alone.sent:
        last.setdefault(address, []).append(at)
    assert len(alone.failed) == peers
    for at, failure in alone.failed:
        assert failure.kind is FailureKind.NO_ANSWER
        number = int(failure.entry[1:])
        asked = [sent for sent in last[f"10.8.{number >> 8}.{number & 255}"] if sent <= at]
        assert at - asked[-1] >= SETTINGS.dial.first


def test_an_attempt_is_not_given_up_while_an_answer_may_be_on_its_way() -> None:
    # fallback_clear reads the end of the attempt as silence too.
    alone = Alone(hub())
    alone.dial()
    alone.wait(90 * SECOND)
    assert len(alone.failed) == _PEERS
    for at, failure in alone.failed:
        number = int(failure.entry[1:])
        asked = max(sent for sent, to in alone.sent if to == f"10.8.{number >> 8}.{number & 255}")
        assert at - asked >= SETTINGS.dial.first


def test_who_was_asked_once_only_is_not_said_to_be_silent() -> None:
    """Clear text may follow from silence: one request, whose repetition never had its turn, is no proof of it."""
    alone = Alone(hub(100, fallback_clear=True), IkeSettings(dial_rate=2, dial_burst=2))
    alone.dial(100)
    alone.wait(120 * SECOND)
    kinds = set()
    for number in range(100):
        address, failures = f"10.8.0.{number}", [f for f in alone.failed if f[1].entry == f"e{number}"]
        if failures:
            at, failure = failures[0]
            asked = sum(to == address and when < at for when, to in alone.sent)
            assert asked >= 2 or failure.kind is FailureKind.LOCAL
            kinds.add((min(asked, 2), failure.kind))
    assert kinds == {(1, FailureKind.LOCAL), (2, FailureKind.NO_ANSWER)}


def test_a_peer_that_was_taken_out_of_the_policy_loses_its_turn() -> None:
    alone = Alone(hub())
    alone.dial()
    alone.endpoint.load(hub(50), alone.now)
    alone.drain()
    alone.wait(20 * SECOND)
    assert {address for _, address in alone.sent} <= {f"10.8.0.{n}" for n in range(50)}


def test_a_peer_that_policy_names_does_not_wait_behind_dead_hosts() -> None:
    hosts = [
        peer_entry(f"10.7.{n >> 8}.{n & 255}=any", f"10.7.{n >> 8}.{n & 255}", (f"h{n}",)) for n in range(256)
    ]
    entries = [
        entry(f"h{n}", "10.1.0.0/24", f"10.7.{n >> 8}.{n & 255}/32", peer=host.name)
        for n, host in enumerate(hosts)
    ]
    named = hub(20)
    snapshot = snapshot_of((*named.pad.peers, *hosts), (*named.spd.entries, *entries), "10.9.0.1")
    alone = Alone(snapshot)
    for number in range(256):
        alone.endpoint.acquire(f"h{number}", None, alone.now)
    alone.wait(12 * SECOND)
    begun = alone.now
    alone.dial(20)
    alone.wait(SECOND)
    after = [to for at, to in alone.sent if at >= begun]
    assert len({to for to in after if to.startswith("10.8.")}) == 20
    assert sum(to.startswith("10.7.") for to in after) >= 5, "the others go on"


def test_silence_is_told_once_of_each_peer_though_repetitions_wait_for_their_turn() -> None:
    alone = Alone(hub(150))
    alone.dial(150)
    alone.wait(25 * SECOND)
    assert sorted(alone.silent) == sorted(f"p{n}" for n in range(150))


def fails_for(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, peer: str) -> None:
    """Let a method raise what nobody expects, for one peer."""
    original = getattr(owner, name)

    def broken(self: object, *arguments: object) -> object:
        sa = next(each for each in (self, *arguments) if isinstance(each, IkeSa))
        if sa.peer_name == peer:
            raise KeyError(name)
        return original(self, *arguments)

    monkeypatch.setattr(owner, name, broken)


@pytest.mark.parametrize("peer", ["p0", "p40"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [(IkeInit, "__init__"), (IkeInit, "begin"), (IkeInit, "build"), (IkeSa, "retransmit"), (IkeSa, "close")],
)
def test_a_bug_costs_one_dial_and_its_demand_ends(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, peer: str
) -> None:
    fails_for(monkeypatch, owner, name, peer)
    alone = Alone(hub(60))
    alone.dial(60)
    alone.wait(60 * SECOND)
    assert sorted(failure.entry for _, failure in alone.failed) == sorted(f"e{n}" for n in range(60))
    [broken] = [failure for _, failure in alone.failed if failure.entry == f"e{peer[1:]}"]
    assert broken.kind is FailureKind.LOCAL
    assert alone.endpoint.status(alone.now) == []
    assert alone.endpoint.counters()["internal error"] == 1


def test_the_rate_follows_the_answers() -> None:
    pace = Pace(SETTINGS)
    assert pace.rate == SETTINGS.dial_rate
    now = SECOND
    taken = 0
    for _ in range(5000):  # each peer answers after 5 ms
        now += MILLISECOND
        if pace.take(now):
            taken += 1
            pace.answered(5 * MILLISECOND, now)
    assert pace.rate == SETTINGS.dial_rate_limit
    assert taken > 3000
    pace.answered(3 * SECOND, now)  # it had to be repeated
    assert pace.rate == SETTINGS.dial_rate_limit // 2
    pace.answered(3 * SECOND, now)
    assert pace.rate == SETTINGS.dial_rate_limit // 2, "once a second"
    now += 2 * SECOND  # nobody answers any more
    assert pace.take(now)
    assert pace.rate == SETTINGS.dial_rate
