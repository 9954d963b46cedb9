"""Prometheus metrics, read by Prometheus' own parser."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from policy.clock import SECOND
from policy.compile import compile_policy
from tests.support.fakes import LOCAL, FakeControl, FakeDataPlane, child_sa
from tests.support.sim.clock import Entropy
from tests.support.sim.policies import PERMIT, filter_of, policy, rule
from tunnel import pump
from tunnel.agent import metrics
from tunnel.dataplane.contract import DropReason, SaStats
from tunnel.gateway import Gateway
from tunnel.host.system import HostError
from tunnel.outputs import Status
from tunnel.traffic import Traffic

NAME = 'LAN "A"\\B\nC'
POLICY = policy(
    rule(NAME, filter_of("10.1.0.0/24", "10.2.0.0/24"), endpoint="192.0.2.2"),
    rule("Hosts", filter_of("me", "10.7.0.0/24")),
    rule("Permit web", filter_of("10.1.0.0/24", "10.3.0.0/24", 6, 80), then=PERMIT),
)


def fresh() -> dict[str, Any]:
    """Return the status of an agent that has done nothing yet."""
    gateway = Gateway(
        entropy=Entropy(1, "metrics"), dataplane=FakeDataPlane(),
        control=lambda *, entropy, last_heard: FakeControl(entropy, last_heard),
    )  # fmt: skip
    gateway.load(compile_policy(POLICY, generation=1, local_addresses=[LOCAL]), SECOND)
    pump.drain(gateway, lambda _output: None)
    answer: dict[str, Any] = gateway.command(Status(), SECOND)
    guard = {"clear_in": 1, "clear_out": 0, "blocked": 0}
    return {"version": "1", **answer, "uptime_s": 5, "guard": guard, "errors": {"send": 2}}


def samples(status: dict[str, Any]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = {}
    for family in parse(metrics.render(status)):
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge"), family.name
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
            at = (sample.name, tuple(sorted(sample.labels.items())))
            assert at not in found, f"{at} stands there twice"
            found[at] = sample.value
    return found


def of(status: dict[str, Any], name: str, **labels: str) -> float:
    return samples(status)[f"mirrorgate_{name}", tuple(sorted(labels.items()))]


def test_a_tunnel_that_is_down_is_there_with_zero() -> None:
    status = fresh()
    assert (of(status, "entries_configured"), of(status, "entries_up")) == (2, 0)
    assert of(status, "tunnel_up", rule=NAME) == 0
    assert of(status, "received_bytes_total", rule=NAME) == of(status, "sent_packets_total", rule=NAME) == 0
    assert of(status, "rule_entries", rule=NAME, state="down") == 1
    assert of(status, "rule_hosts", rule="Hosts", state="up") == 0
    for rule_ in ("Permit web", "Hosts"):  # the hosts of a rule that secures each by itself come and go
        with pytest.raises(KeyError):
            of(status, "tunnel_up", rule=rule_)
    next(r for r in status["rules"] if r["rule"] == NAME)["entries"][0]["state"] = "up"
    assert of(status, "tunnel_up", rule=NAME) == of(status, "entries_up") == 1


def test_every_reason_to_drop_has_a_series_from_the_start() -> None:
    status = fresh()
    assert of(status, "drops_total", reason="replayed") == 2
    assert all(of(status, "drops_total", reason=reason.value) >= 0 for reason in DropReason)
    assert of(status, "guard_drops_total", counter="clear_in") == 1
    assert of(status, "host_errors_total", where="send") == 2


def test_what_happens_in_ike_is_counted_by_names_of_ours() -> None:
    status = fresh()
    status["ike"] = {
        "half_open": 3,
        "counters": {"ike_established": 4, "child_rekeyed": 6, "child_rekey_failed": 1, "half-open limit": 7},
    }
    status["peers"].append({"peer": "", "state": "negotiating", "ike_sas": [{}] * 3})
    assert (of(status, "ike_sas_established_total"), of(status, "ike_half_open")) == (4, 3)
    assert of(status, "rekeys_total", sa="child", result="done") == 6
    assert of(status, "rekeys_total", sa="child", result="failed") == 1
    assert of(status, "rekeys_total", sa="ike", result="failed") == 0
    assert of(status, "ike_messages_total", what="half-open_limit") == 7
    assert of(status, "peers_configured") == 1, "a stranger is no peer"


def test_what_a_rule_carried_outlives_its_sas() -> None:
    traffic, now = Traffic(), {(1, True): 10, (1, False): 20}

    def query(child: int, _spi: int, inbound: bool) -> SaStats | None:
        count = now.get((child, inbound))
        return None if count is None else SaStats(count, 100 * count, 0, 0, {})

    traffic.begin(child_sa("LAN", child=1), "LAN")
    assert traffic.totals(query)["LAN"].to_dict() == {
        "packets_in": 10, "bytes_in": 1000, "packets_out": 20, "bytes_out": 2000,
    }  # fmt: skip
    traffic.begin(child_sa("LAN", child=2), "LAN")
    now[2, False] = 5
    traffic.end(1, query(1, 0, False), inbound=False)
    del now[1, False]
    now[1, True] = 12  # what is in flight still comes in on the old one
    assert traffic.totals(query)["LAN"].to_dict() == {
        "packets_in": 12, "bytes_in": 1200, "packets_out": 25, "bytes_out": 2500,
    }  # fmt: skip
    traffic.end(1, query(1, 0, True), inbound=True)
    traffic.end(1, query(1, 0, True), inbound=True)
    assert traffic.totals(query)["LAN"].packets_in == 12
    traffic.end(2, query(2, 0, False), inbound=False)
    traffic.end(2, query(2, 0, True), inbound=True)
    traffic.keep(["Other"])
    assert traffic.totals(query) == {}


async def test_the_loop_that_comes_late() -> None:
    lag = metrics.Lag(every_s=0.01)
    task = asyncio.ensure_future(lag.follow())
    await asyncio.sleep(0.02)
    assert lag.worst() < 0.1
    time.sleep(0.15)  # noqa: ASYNC251
    await asyncio.sleep(0.02)
    assert lag.worst() > 0.1
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_metrics_over_http() -> None:
    async def status() -> dict[str, Any]:
        return fresh()

    server = await metrics.serve("127.0.0.1:0", status)
    port = server.sockets[0].getsockname()[1]

    async def get(request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        return answer

    found = await get(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"mirrorgate_entries_up 0\n" in found
    assert (await get(b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404")
    assert await get(b"x" * 9000) == b""
    with pytest.raises(HostError, match=f"metrics cannot be served on 127.0.0.1:{port}"):
        await metrics.serve(f"127.0.0.1:{port}", status)
    server.close()


async def test_many_scrapes_cost_one_page() -> None:
    made = 0

    async def status() -> dict[str, Any]:
        nonlocal made
        made += 1
        return fresh()

    server = await metrics.serve("127.0.0.1:0", status)

    async def get() -> bytes:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        said = await reader.read()
        writer.close()
        return said

    pages = await asyncio.gather(*(get() for _ in range(20)))
    assert len(set(pages)) == made == 1
    server.close()
