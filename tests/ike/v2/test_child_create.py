"""CREATE_CHILD_SA for further Child SAs: refusals, TEMPORARY_FAILURE, PFS (RFC 7296 sections 1.3.1, 2.25)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ike.events import FailureKind
from ike.v2.settings import IkeSettings
from policy.clock import SECOND
from policy.proposals import Group
from policy.spd import Snapshot
from tests.support.ike_pair import ESP_GCM128, Pair, entry, method, selector, site_a, site_b


def two(snapshot: Snapshot, peer: str, *, mirrored: bool, **second: object) -> Snapshot:
    sides = [("10.1.0.0/24", "10.2.0.0/24"), ("10.3.0.0/24", "10.4.0.0/24")]
    if mirrored:
        sides = [(remote, local) for local, remote in sides]
    first, other = sides
    entries = (
        entry("lan", first[0], first[1], peer=peer),
        entry("two", other[0], other[1], peer=peer, **second),
    )
    return replace(
        snapshot,
        spd=replace(snapshot.spd, entries=entries),
        pad=replace(snapshot.pad, peers=(replace(snapshot.pad.peers[0], entries=("lan", "two")),)),
    )


def connected(*, a: dict[str, object] | None = None, b: dict[str, object] | None = None) -> Pair:
    pair = Pair(two(site_a(), "gw-b", mirrored=False, **a or {}), two(site_b(), "gw-a", mirrored=True, **b or {}))
    pair.connect()
    return pair


@pytest.mark.parametrize(
    ("ours", "theirs", "group"),
    [
        (None, None, Group.NONE),
        (Group.X25519, Group.X25519, Group.X25519),
        (Group.X25519, None, Group.X25519),  # who has no wish of its own follows
        (Group.X25519, Group.ECP_256, None),
        (None, Group.X25519, None),
    ],
)
def test_pfs(ours: Group | None, theirs: Group | None, group: Group | None) -> None:
    pair = connected(a={"pfs": ours}, b={"pfs": theirs})
    pair.acquire(pair.a, "two")
    pair.run()
    if group is None:
        assert len(pair.a.live) == len(pair.b.live) == 1
        [failure] = pair.a.failures
        assert failure.kind is FailureKind.REFUSED
        assert "PFS" in failure.reason
        assert "key exchange" in str(pair.b.named("negotiation_failed")[0].fields["reason"])
    else:
        assert pair.agree()
        assert pair.a.live[1].suite.group is group


def test_no_common_method() -> None:
    pair = connected(b={"methods": (method(ESP_GCM128),)})
    pair.acquire(pair.a, "two")
    pair.run()
    assert "NO_PROPOSAL_CHOSEN" in pair.a.failures[0].reason
    assert pair.a.states() == ["established"]
    assert pair.agree()


def test_put_off_while_the_ike_sa_is_rekeyed() -> None:
    """
    A                                             B
    SA, Ni, TSi, TSr                 -->  <--     SA(IKE), Ni, KEi
                                     X
    N(TEMPORARY_FAILURE)             -->  <--     N(TEMPORARY_FAILURE)
    ... a second or two later, each in turn
    """
    pair = connected()
    pair.b.endpoint.rekey_ike("gw-a", pair.now)
    pair.drain(pair.b)
    pair.acquire(pair.a, "two")
    pair.run()
    assert len(pair.a.live) == 1
    pair.wait(20 * SECOND)
    assert len(pair.a.live) == 2
    assert pair.agree()
    assert pair.a.failures == []


def test_too_many_children() -> None:
    pair = Pair(
        two(site_a(), "gw-b", mirrored=False),
        two(site_b(), "gw-a", mirrored=True),
        settings_b=IkeSettings(children_limit=1),
    )
    pair.connect()
    pair.acquire(pair.a, "two")
    pair.run()
    assert "NO_ADDITIONAL_SAS" in pair.a.failures[0].reason
    assert pair.agree()


def test_an_answer_that_widens_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    from ike.v2 import traffic

    pair = connected()
    original = traffic.grant

    def widening(*args: object, **kwargs: object) -> object:
        granted = original(*args, **kwargs)  # type: ignore[arg-type]
        assert granted is not None
        return replace(granted, local=(selector("0.0.0.0/0"),))

    monkeypatch.setattr("ike.v2.negotiation.grant", widening)
    pair.acquire(pair.a, "two")
    pair.run()
    assert len(pair.a.live) == len(pair.b.live) == 1
    assert pair.agree()
    assert "not part of what we asked for" in pair.a.failures[0].reason
    # The same for a rekey: the old Child SA stays.
    pair.a.endpoint.rekey_child(pair.a.live[0].child, pair.now)
    pair.drain(pair.a)
    pair.run()
    assert pair.a.sending == [pair.a.live[0].spi_out]
    assert pair.a.live[0].replaces is None


def test_peer_dies_while_asked() -> None:
    pair = connected()
    pair.filter = lambda datagram: False
    pair.acquire(pair.a, "two")
    pair.wait(31 * SECOND)
    assert pair.a.live == []
    assert [failure.kind for failure in pair.a.failures] == [FailureKind.REFUSED]


def test_policy_loses_the_entry_while_the_task_waits() -> None:
    pair = connected()
    pair.a.endpoint.rekey_ike("gw-b", pair.now)
    pair.drain(pair.a)
    pair.acquire(pair.a, "two")  # waits behind the rekey
    pair.load(pair.a, replace(site_a(), generation=9))
    pair.run()
    assert [failure.kind for failure in pair.a.failures] == [FailureKind.LOCAL]
    assert pair.agree()


def test_policy_loses_the_entry_while_dialling() -> None:
    """Another entry waits for the same IKE SA: the dial serves it."""
    pair = Pair(two(site_a(), "gw-b", mirrored=False), two(site_b(), "gw-a", mirrored=True))
    pair.acquire(pair.a, "two")
    pair.acquire(pair.a, "lan")
    pair.load(pair.a, replace(site_a(), generation=9))
    pair.run()
    assert [sa.entry for sa in pair.a.live] == ["lan"]
    assert [failure.entry for failure in pair.a.failures] == ["two"]
    alone = Pair(two(site_a(), "gw-b", mirrored=False))
    alone.acquire(alone.a, "two")
    alone.load(alone.a, replace(site_a(), generation=9))
    alone.run()
    assert alone.a.live == []
    assert alone.a.states() == []
