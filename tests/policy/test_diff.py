"""A reload is a diff: what is the same is left alone."""

from __future__ import annotations

from policy.diff import Delta, diff
from policy.spd import Snapshot
from tests.support.policies import KEY, SITE_TO_SITE, changed, compiled, policy_text

OWN = ("10.1.0.1",)
ONE = 'source = "10.1.0.0/24", destination = "10.2.0.0/24"'
TWO = 'source = "10.1.0.0/24", destination = "10.3.0.0/24"'


def ids(delta: Delta) -> tuple[list[str], list[str], list[str]]:
    return (
        [entry.id for entry in delta.added],
        [entry.id for entry in delta.removed],
        [old.id for old, _ in delta.changed],
    )


def test_the_same_policy_is_no_change_wherever_it_is_written() -> None:
    delta = diff(compiled(SITE_TO_SITE, *OWN), compiled(f"\n# moved\n{SITE_TO_SITE}", *OWN, generation=2))
    assert delta == Delta()
    assert delta.same
    assert str(delta) == "nothing changed"


def test_added_and_removed() -> None:
    one = compiled(policy_text(("A", "10.9.0.2", ONE)), *OWN)
    two = compiled(policy_text(("A", "10.9.0.2", ONE), ("B", "10.9.0.3", TWO)), *OWN)
    forth, back = diff(one, two), diff(two, one)
    assert ids(forth) == (["B/B list/1"], [], [])
    assert ids(back) == ([], ["B/B list/1"], [])
    assert [peer.name for peer in forth.added_peers] == ["10.9.0.3"] == [peer.name for peer in back.removed_peers]
    assert str(forth) == "1 entry added, 1 peer added"
    assert not forth.same


def test_a_changed_filter_keeps_its_id_and_is_changed() -> None:
    delta = diff(
        compiled(policy_text(("A", "10.9.0.2", ONE)), *OWN), compiled(policy_text(("A", "10.9.0.2", TWO)), *OWN)
    )
    assert ids(delta) == ([], [], ["A/A list/1"])
    assert (delta.changed_peers, delta.same) == ((), False)


def test_another_key_changes_the_peer_only() -> None:
    delta = diff(compiled(SITE_TO_SITE, *OWN), compiled(changed(SITE_TO_SITE, (KEY, f"{KEY}x")), *OWN))
    assert ids(delta) == ([], [], [])
    assert [old.name for old, _ in delta.changed_peers] == ["10.9.0.2#gw-b.example"]


def test_other_methods_change_the_entry_only() -> None:
    delta = diff(
        compiled(SITE_TO_SITE, *OWN), compiled(changed(SITE_TO_SITE, ("aes128-sha256", "aes256-sha256")), *OWN)
    )
    assert ids(delta) == ([], [], ["LAN to LAN/LAN A and LAN B/1"])
    assert delta.changed_peers == ()


def test_an_order_that_changes() -> None:
    two = policy_text(("A", "Drop", f"{ONE}\n{TWO}"))
    swapped = policy_text(("A", "Drop", f"{ONE.replace('/24', '/25')}\n{TWO}"))
    assert not diff(compiled(two, *OWN), compiled(swapped, *OWN)).reordered
    narrower = policy_text(("A", "Drop", f"{ONE}\n{TWO.replace('10.3.0.0/24', '10.3.0.0/25')}"))
    delta = diff(compiled(two, *OWN), compiled(narrower, *OWN))
    assert delta.reordered
    assert str(delta) == "1 entry changed, order changed"


def test_no_policy_at_all() -> None:
    snapshot = compiled(SITE_TO_SITE, *OWN)
    delta = diff(Snapshot(generation=1), snapshot)
    assert (len(delta.added), len(delta.added_peers)) == (1, 1)
    assert diff(snapshot, Snapshot(generation=2)).removed == snapshot.spd.entries
