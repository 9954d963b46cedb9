"""The held guard: others cannot flush it, it is replaced in one transaction, and it goes with its process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from policy.spd import Snapshot, Spd
from tests.host.test_ruleset import hosts
from tests.host.test_sockets import in_a_namespace
from tunnel.host import heldguard
from tunnel.host.guardwatch import comment
from tunnel.host.heldguard import HeldGuard
from tunnel.host.marks import HELD_TABLE
from tunnel.host.ruleset import render_held, revision
from tunnel.host.steering import Steering, counters
from tunnel.host.system import HostError, run


def snapshot(count: int) -> Snapshot:
    return Snapshot(generation=1, spd=Spd(tuple(hosts(count))))


def script(count: int) -> str:
    return render_held(snapshot(count), "mg0")


def table() -> str:
    return run(["nft", "list", "table", "inet", HELD_TABLE])


def both() -> tuple[str, str]:
    """Return the two tables; their order in the ruleset changes."""
    return table(), run(["nft", "list", "table", "inet", "mirrorgate"])


@in_a_namespace
def test_others_cannot_flush_nor_change_it() -> None:
    held = HeldGuard()
    held.apply(script(3))
    sound = table()
    assert "clear_out" in sound
    run(["nft", "flush", "ruleset"])
    run(["nft", "-f", "-"], stdin="flush ruleset\ntable inet other {\n}\n")
    for damage in (
        f"delete table inet {HELD_TABLE}",
        f"flush table inet {HELD_TABLE}",
        f"flush chain inet {HELD_TABLE} postrouting",
        f"insert rule inet {HELD_TABLE} postrouting accept",
        f"add table inet {HELD_TABLE} {{ flags dormant; }}",
    ):
        with pytest.raises(HostError):
            run(["nft", damage])
    assert table() == sound
    held.close()
    assert comment(HELD_TABLE) is None
    assert held.lost() is None


@in_a_namespace
def test_it_is_replaced_and_a_refusal_changes_nothing() -> None:
    held = HeldGuard()
    for count in (3, 250, 3, 5):
        held.apply(script(count))
        assert revision(script(count)) in (comment(HELD_TABLE) or "")
    sound = table()
    for wrong in ("goto nowhere", "bad words"):
        bad = script(7).replace("  chain prerouting", f"  chain wrong {{\n {wrong}\n }}\n  chain prerouting")
        with pytest.raises(HostError, match=r"nft -i says: .*Error"):
            held.apply(bad.replace("revision ", "revision 0"))
        assert table() == sound
        assert held.lost() is None
    held.apply(script(4))
    assert table() != sound
    held.close()


@in_a_namespace
def test_a_process_that_ended_is_told_and_started_again() -> None:
    steering = Steering("mg0", HeldGuard())
    steering.guard(snapshot(3))
    assert steering.not_held() is None
    (child,) = [
        int(word) for task in Path("/proc/self/task").iterdir() for word in (task / "children").read_text().split()
    ]
    os.kill(child, signal.SIGKILL)
    while steering.not_held() is None:
        time.sleep(0.01)
    assert comment(HELD_TABLE) is None
    assert "ended" in str(steering.not_held())
    steering.hold()
    assert steering.not_held() is None
    assert comment(HELD_TABLE) is not None
    steering.remove()
    assert run(["nft", "list", "ruleset"]) == ""


@in_a_namespace
def test_without_it_the_table_without_owner_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = render_held(snapshot(3), "mg0")
    monkeypatch.setattr("tunnel.host.ruleset.render_held", lambda *_, **__: rendered.replace("owner", "nobody"))
    steering = Steering("mg0", HeldGuard())
    steering.guard(snapshot(3))
    assert "mirrorgate" in run(["nft", "list", "tables"])
    assert "not to be had" in str(steering.not_held())
    assert not steering.can_hold
    monkeypatch.undo()
    steering.guard(snapshot(4))
    assert comment(HELD_TABLE) is None, "not tried again"
    steering.remove()


@in_a_namespace
def test_a_table_of_others_by_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heldguard, "_PREDECESSOR_S", 0.05)
    run(["nft", "add", "table", "inet", HELD_TABLE])
    held = HeldGuard()
    with pytest.raises(HostError, match="not this agent's"):
        held.apply(script(3))
    assert held.is_useless


@in_a_namespace
def test_a_policy_that_is_refused_leaves_both_tables_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    steering = Steering("mg0", HeldGuard())
    steering.guard(snapshot(3))
    before = both()
    monkeypatch.setattr("tunnel.host.ruleset.render", lambda *_, **__: "Mirrorgate's, revision 0123456789abcdef")
    with pytest.raises(HostError):
        steering.guard(snapshot(5))
    assert both() == before
    assert steering.not_held() is None
    steering.remove()


@in_a_namespace
def test_what_either_table_dropped_counts_once() -> None:
    steering = Steering("mg0", HeldGuard())
    steering.guard(snapshot(3))
    assert counters() == dict.fromkeys(("clear_in", "clear_out", "blocked"), 0)
    steering.remove()
    assert counters() == {}
