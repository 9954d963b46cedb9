"""The commands as a person types them: what they answer, and what they say about mistakes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from textual.widgets import DataTable

from tests.support.agent_process import COMMAND, CONFIGS, ROOT, Agent, Directory, cli, tunnel
from tests.support.netns import Sites, wait_for
from tunnel.cli import monitor

LAN_A, LAN_B = "10.1.0.5", "10.2.0.5"

#: A mistake: what stands in site-a.toml, what somebody wrote instead, and words that the answer must have.
MISTAKES = {
    "no TOML": ("[agent]", "[agent", ("site-a.toml",)),
    "misspelt key": ("description = ", "descripton = ", ('"descripton"', '"description"')),
    "unknown filter list": (
        'filter_list = "LAN A and LAN B"',
        'filter_list = "LAN A and B"',
        ("LAN A and LAN B",),
    ),
    "bad address": ('source = "10.1.0.0/24"', 'source = "10.1.0.256/24"', ("10.1.0.256/24",)),
    "host bits": ('source = "10.1.0.0/24"', 'source = "10.1.0.7/24"', ("10.1.0.7/24", "10.1.0.0/24")),
    "bad algorithm": ('"esp:aes256gcm16"', '"esp:aes257gcm16"', ("aes257gcm16",)),
    "bad duration": ('time = "1h"', 'time = "1 hour and a bit"', ("1 hour and a bit",)),
    "unknown policy": ('assigned = "Site A', 'assigned = "Site Z', ("Site Z",)),
    "missing secret": ('"site.psk"', '"gone.psk"', ("gone.psk",)),
    "bad endpoint": ('tunnel_endpoint = "10.9.0.2"', 'tunnel_endpoint = "10.9.0.0/24"', ("10.9.0.0/24",)),
}


@pytest.fixture
def directory() -> Iterator[Directory]:
    with Directory() as made:
        yield made


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_in_a_config_is_one_line_with_its_place(directory: Directory, mistake: str) -> None:
    old, new, words = MISTAKES[mistake]
    directory.secret()
    text = (CONFIGS / "site-a.toml").read_text()
    assert old in text
    path = directory.path / "site-a.toml"
    path.write_text(text.replace(old, new, 1))
    for command in ("check", "run"):
        done = cli(command, str(path))
        assert done.returncode == 2, done.stdout + done.stderr
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "site-a.toml" in line]
        assert len(lines) == 1, done.stdout + done.stderr
        assert all(word in lines[0] for word in words), lines[0]
        assert "Traceback" not in done.stderr


def test_secret_that_others_can_read_is_refused(directory: Directory) -> None:
    path = directory.config("site-a.toml")
    (directory.path / "site.psk").chmod(0o644)
    done = cli("check", str(path))
    assert done.returncode == 2
    assert "site.psk" in done.stdout + done.stderr
    assert directory.secret() not in done.stdout + done.stderr


def test_check_takes_several_files(directory: Directory) -> None:
    good = [str(directory.config(name)) for name in ("site-a.toml", "site-b.toml")]
    assert cli("check", *good).returncode == 0
    done = cli("check", *good, str(directory.path / "gone.toml"))
    assert done.returncode == 2
    assert "gone.toml" in done.stdout + done.stderr


def test_usage() -> None:
    done = cli("frobnicate")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert cli("--help").returncode == 0
    assert cli("explain", "tcp").returncode == 2


def test_without_an_agent_a_command_says_so(tmp_path: Path) -> None:
    done = cli("status", "--control", str(tmp_path / "control.sock"))
    assert done.returncode == 1
    assert str(tmp_path / "control.sock") in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_agent_on_the_same_gateway_is_refused(two_sites: Sites, directory: Directory) -> None:
    with Agent(two_sites.gateway_a, directory.config("site-a.toml")) as one:
        second = Agent(two_sites.gateway_a, one.config)
        second.start(wait=False)
        wait_for(lambda: second._process is not None and second._process.poll() is not None, "it ends")
        assert second._process is not None
        assert second._process.returncode == 1
        assert one.status()["policy"] == "Site A to site B"


def test_commands_of_a_running_agent(two_sites: Sites, directory: Directory) -> None:
    with tunnel(two_sites, directory) as (one, other):
        assert "LAN to LAN" in one.run("status").stdout
        one.run("initiate", "LAN to LAN")
        one.wait_up()
        other.wait_up()
        assert "10.9.0.2" in one.run("status").stdout

        found = one.json("explain", "tcp", f"{LAN_A}:4000", f"{LAN_B}:80")
        assert found["verdict"] == "protect"
        assert found["rule"] == "LAN to LAN"
        assert found["sa"]["spi_out"] == one.children()[0]["spi_out"]
        assert "LAN to LAN" in one.run("explain", "tcp", f"{LAN_A}:4000", f"{LAN_B}:80").stdout
        assert one.json("explain", "udp", f"{LAN_A}:53", "192.0.2.1:53")["verdict"] != "protect"

        one.run("terminate")
        wait_for(lambda: one.children() == [] and other.children() == [], "no Child SA at both ends")
        # The policy is still there: the next packet negotiates anew.
        assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
        done = one.run("initiate", "LAN to Mars", check=False)
        assert done.returncode == 1
        assert "LAN to Mars" in done.stdout + done.stderr
        assert isinstance(json.loads(one.run("status", "--json").stdout), dict)


def test_a_peer_that_does_not_answer_is_said_to_be_silent_while_it_is_tried(
    two_sites: Sites, directory: Directory
) -> None:
    with Agent(two_sites.gateway_a, directory.config("site-a.toml")) as one:
        done = one.run("initiate", "LAN to LAN", "--timeout", "4", check=False)
        assert done.returncode == 1
        for said in (done.stderr, one.run("status").stdout):
            assert "no answer from 10.9.0.2:500 to" in said
        assert one.status()["rules"][0]["entries"][0]["state"] == "negotiating"
        one.wait_log("no_answer: no answer yet from 10.9.0.2:500")
        one.run("unassign")
        one.run("assign", "Site A to site B")
        assert one.entry_states() == ["down"], "a policy that comes back begins anew"


def test_metrics_of_a_running_agent(two_sites: Sites, directory: Directory) -> None:
    metrics = ("[agent]", '[agent]\nmetrics = "127.0.0.1:9476"')

    def scrape() -> dict[str, float]:
        time.sleep(1.1)  # a page may be a second old
        code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9476/metrics').read().decode())"
        text = two_sites.gateway_a.run(sys.executable, "-c", code).stdout
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {"/".join([s.name.removeprefix("mirrorgate_"), *s.labels.values()]): s.value for s in samples}

    with (
        Agent(two_sites.gateway_a, directory.config("site-a.toml", metrics)) as one,
        Agent(two_sites.gateway_b, directory.config("site-b.toml")),
    ):
        assert scrape()["tunnel_up/LAN to LAN"] == 0
        assert two_sites.lan_a.ping(LAN_B, count=3, wait=8).returncode == 0
        before = scrape()
        assert before["tunnel_up/LAN to LAN"] == before["ike_sas_established_total"] == 1
        assert before["sent_packets_total/LAN to LAN"] == before["received_packets_total/LAN to LAN"] == 3
        one.run("rekey")
        wait_for(lambda: scrape()["rekeys_total/child/done"] == 1, "a rekey is counted")
        one.run("terminate")
        wait_for(lambda: scrape()["tunnel_up/LAN to LAN"] == 0, "it is down")
        after = scrape()
        assert after["sent_bytes_total/LAN to LAN"] == before["sent_bytes_total/LAN to LAN"] > 0


def test_secrets_stay_out_of_the_log(two_sites: Sites, directory: Directory) -> None:
    changes = ("[agent]", '[agent]\nlog_level = "debug"')
    with (
        Agent(two_sites.gateway_a, directory.config("site-a.toml", changes)) as one,
        Agent(two_sites.gateway_b, directory.config("site-b.toml", changes)) as other,
    ):
        assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
        for agent in (one, other):
            assert agent.log()
            assert directory.secret() not in agent.log()


def test_events_are_told_as_they_happen(two_sites: Sites, directory: Directory, tmp_path: Path) -> None:
    with tunnel(two_sites, directory) as (one, _):
        told = tmp_path / "events"
        words = ("events", "--json", "--control", str(one.control))
        follower = one.namespace.start(*COMMAND, *words, log=told, environment={"PYTHONPATH": str(ROOT)})
        try:
            wait_for(lambda: _follow(one, told), "the agent tells of a new Child SA", 20, every=0.5)
        finally:
            one.stop()
            assert follower.wait(15) == 0, "it ends with the agent"
        events = [json.loads(line)["event"] for line in told.read_text().splitlines()]
        assert "child_established" in events


def _follow(agent: Agent, told: Path) -> bool:
    agent.run("terminate", check=False)
    agent.run("initiate", "LAN to LAN", check=False)
    return "child_established" in told.read_text()


def test_status_fits_on_a_screen(two_sites: Sites, directory: Directory) -> None:
    with tunnel(two_sites, directory) as (one, _):
        assert two_sites.lan_a.ping("10.2.0.5", wait=8).returncode == 0
        lines = one.run("status").stdout.splitlines()
        assert len(lines) < 24
        assert max(len(line) for line in lines if not line.startswith(("1 ", "Child SA"))) <= 100


async def test_the_monitor_watches_a_real_agent(two_sites: Sites, directory: Directory) -> None:
    with tunnel(two_sites, directory) as (one, _):
        assert two_sites.lan_a.ping(LAN_B, wait=8).returncode == 0
        screen = monitor.Monitor(monitor.Agent(one.control), every_s=0.3)
        async with screen.run_test(size=(80, 24)) as pilot:
            for _ in range(50):
                await pilot.pause(0.2)
                table = screen.query_one("#quick-rows", DataTable)
                if table.row_count:
                    break
            assert [str(cell) for cell in table.get_row_at(0)[:4]] == ["LAN to LAN", "10.2.0.0/24", "up", "direct"]
            before = {child["child"] for child in one.children()}
            await pilot.press("r")
            wait_for(lambda: {child["child"] for child in one.children()} - before, "a new Child SA")
