"""The table of deadlines."""

from __future__ import annotations

from ike.timers import Due, Timer, TimerTable


def test_minimum_order_and_moving() -> None:
    table = TimerTable()
    table.set(1, Timer.LIVENESS, 50)
    table.set(2, Timer.LIVENESS, 30)
    table.set(1, Timer.REKEY_CHILD, 30, 7)
    assert table.deadline() == 30
    assert table.next_due(29) is None
    assert table.next_due(30) == Due(2, Timer.LIVENESS, 0)
    assert table.next_due(30) == Due(1, Timer.REKEY_CHILD, 7)
    table.set(1, Timer.LIVENESS, 90)
    assert table.next_due(60) is None
    assert table.at(1, Timer.LIVENESS) == 90
    assert table.at(1, Timer.RETRANSMIT) is None
    table.cancel(1, Timer.LIVENESS)
    table.cancel(1, Timer.LIVENESS)
    assert table.deadline() is None
    assert len(table) == 0


def test_forgetting_an_owner() -> None:
    table = TimerTable()
    for owner in range(3):
        for number in range(5):
            table.set(owner, Timer.EXPIRE_CHILD, number, number)
    table.forget(1)
    table.forget(1)
    assert len(table) == 10
    assert {due.owner for due in iter(lambda: table.next_due(99), None) if due is not None} == {0, 2}


def test_moving_a_timer_often_does_not_grow_the_table() -> None:
    table = TimerTable()
    for at in range(10_000):
        table.set(1, Timer.LIVENESS, at)
    assert len(table._heap) < 100
    assert table.next_due(9_998) is None
    assert table.next_due(9_999) == Due(1, Timer.LIVENESS, 0)
