"""The kernel tells when our nftables table suffers; others' tables and our own changes are no loss."""

from __future__ import annotations

import time
from ipaddress import ip_address

import pytest

from policy.spd import Snapshot, Spd
from tests.host.test_ruleset import hosts
from tests.host.test_sockets import in_a_namespace
from tunnel.host.guardwatch import GuardWatch, Loss
from tunnel.host.steering import Steering
from tunnel.host.system import run

_OTHERS = "table inet other {\n chain c {\n type filter hook input priority 0;\n }\n}\n"


def nft(script: str) -> None:
    """Run an nftables script as somebody else would."""
    run(["nft", "-f", "-"], stdin=script)


def guarded(filters: int) -> tuple[Steering, GuardWatch]:
    """Return a table in force and who watches it."""
    steering = Steering("mg0")
    watch = GuardWatch(lambda: steering.revisions)
    steering.guard(Snapshot(generation=1, spd=Spd(tuple(hosts(filters)))))
    return steering, watch


@pytest.mark.parametrize(
    ("damage", "loss"),
    [
        ("flush ruleset", Loss.GONE),
        (f"flush ruleset\n{_OTHERS}", Loss.GONE),
        ("delete table inet mirrorgate", Loss.GONE),
        ("delete table inet mirrorgate\ntable inet mirrorgate {\n}", Loss.CHANGED),
        ("flush table inet mirrorgate", Loss.CHANGED),
        ("flush chain inet mirrorgate postrouting", Loss.CHANGED),
        ("insert rule inet mirrorgate postrouting accept", Loss.CHANGED),
        ("add table inet mirrorgate { flags dormant; }", Loss.CHANGED),
        ("add chain inet mirrorgate door", Loss.CHANGED),
    ],
)
@in_a_namespace
def test_a_loss_is_told_once_and_mended(damage: str, loss: Loss) -> None:
    steering, watch = guarded(3)
    sound = run(["nft", "list", "ruleset"])
    assert watch.look() is None
    nft(damage)
    assert watch.look() is loss
    assert watch.look() is None
    steering.restore()
    assert watch.look() is None, "what we do ourselves is no loss"
    assert watch.stands()
    assert sound in run(["nft", "list", "ruleset"])
    watch.close()


@in_a_namespace
def test_a_loss_that_is_mended_before_anybody_looks_is_none() -> None:
    steering, watch = guarded(3)
    nft("flush ruleset")
    steering.restore()
    assert watch.look() is None
    steering.restore()
    nft("flush ruleset")
    assert watch.look() is Loss.GONE
    assert not watch.stands()
    watch.close()


@in_a_namespace
def test_what_is_no_loss() -> None:
    steering, watch = guarded(3)
    nft(_OTHERS)
    nft("table ip mirrorgate {\n chain c {\n }\n}\n")  # of another family: not ours
    nft("delete table ip mirrorgate\ndelete table inet other")
    saved = run(["nft", "list", "ruleset"])
    one, other = ip_address("10.0.0.1"), ip_address("10.0.0.2")
    steering.soft(one, other, 30)
    steering.soft(one, other, 0)
    run(["nft", "reset", "counters", "table", "inet", "mirrorgate"])
    assert watch.look() is None
    nft(f"flush ruleset\n{saved}")  # a copy of the table as it should be is as good
    assert watch.look() is None
    steering.guard(Snapshot(generation=2, spd=Spd(tuple(hosts(5)))))
    assert watch.look() is None
    nft(f"flush ruleset\n{saved}")  # and a copy of an older one is not
    assert watch.look() is Loss.CHANGED
    watch.close()


@in_a_namespace
def test_restored_with_the_soft_sas_that_are_left() -> None:
    steering, watch = guarded(3)
    pairs = [(ip_address("10.0.0.1"), ip_address(f"10.0.0.{n}")) for n in (2, 3)]
    steering.soft(*pairs[0], 300)
    steering.soft(*pairs[1], 300)
    nft("flush ruleset")
    steering.restore()
    steering.soft(*pairs[1], 0)
    nft("flush ruleset")
    steering.restore()
    listed = run(["nft", "list", "set", "inet", "mirrorgate", "soft4"])
    assert "10.0.0.1 . 10.0.0.2" in listed
    assert "10.0.0.3" not in listed
    watch.close()


@in_a_namespace
def test_more_changes_than_can_be_followed() -> None:
    steering, watch = guarded(3)
    elements = ", ".join(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(60_000))
    nft(f"table ip big {{\n set s {{\n type ipv4_addr; elements = {{ {elements} }};\n }}\n}}\n")
    assert watch.look() is Loss.UNKNOWN
    assert watch.stands()
    nft("delete table inet mirrorgate\nflush ruleset")
    watch.look()
    assert not watch.stands()
    begun = time.monotonic()
    steering.restore()
    assert watch.stands()
    assert time.monotonic() - begun < 2
    watch.close()
