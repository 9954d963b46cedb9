"""Two configs negotiate offline: what each flow gets, who is at fault, and what to change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.agent_process import Directory
from tests.support.combinations import EXPECTED, KINDS, NONE
from tests.support.sim.clock import Entropy
from tunnel.cli.main import main
from tunnel.cli.rehearse import rehearsed, text
from tunnel.representatives import MAX_FLOWS

CLIENT, SERVER = "10.9.0.1", "10.9.0.2"
AT = ["--a-address", CLIENT, "--b-address", SERVER]
DEFAULTS = {
    "respond": "respond-only.toml",
    "request": "request-security.toml",
    "require": "require-security.toml",
}
#: The shipped pairs: options, and the outcome of each kind of flow (None: it waits for the other end).
SHIPPED = {
    ("site-a.toml", "site-b.toml"): ([], {"protected"}),
    ("dual-stack-a.toml", "dual-stack-b.toml"): ([], {"protected"}),
    ("nat-hq.toml", "nat-branch.toml"): ([], {"protected", "waits"}),
    ("web-client.toml", "web-server.toml"): (AT, {"protected"}),
    ("database-port-client.toml", "database-port-server.toml"): ([], {"protected"}),
    ("ipv6-transport-a.toml", "ipv6-transport-b.toml"): ([], {"protected"}),
    ("respond-only.toml", "block-and-permit.toml"): (AT, {"clear"}),
}


@pytest.fixture
def directory() -> Any:
    with Directory() as made:
        yield made


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    def rehearse(*words: object) -> tuple[int, dict[str, Any]]:
        status = main(["rehearse", "--json", *map(str, words)])
        return status, json.loads(capsys.readouterr().out or "{}")

    return rehearse


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    return {flow["flow"]: "waits" if flow["waits"] else flow["outcome"] for flow in report["flows"]}


def reasons(report: dict[str, Any]) -> str:
    return "\n".join(reason for flow in report["flows"] for reason in flow["reasons"])


def site_b(directory: Directory, *changes: tuple[str, str]) -> tuple[Path, Path]:
    one, other = directory.config("site-a.toml"), directory.config("site-b.toml")
    changed = other.read_text()
    for old, new in changes:
        assert old in changed
        changed = changed.replace(old, new)
    other.write_text(changed)
    return one, other


@pytest.mark.parametrize("pair", SHIPPED, ids=lambda pair: pair[0])
def test_every_shipped_pair(directory: Directory, run: Any, pair: tuple[str, str]) -> None:
    options, expected = SHIPPED[pair]
    status, report = run(*(directory.config(name) for name in pair), *options)
    assert (status, report["failed"]) == (0, 0)
    assert set(outcomes(report).values()) == expected
    for flow in report["flows"]:
        if flow["outcome"] == "protected":
            assert flow["ends"]["A"]["sa"]["suite"] == flow["ends"]["B"]["sa"]["suite"]
            assert flow["reasons"] == []


@pytest.mark.parametrize("begins", [kind for kind in KINDS if kind != NONE])
def test_the_default_policies_fare_as_described(directory: Directory, run: Any, begins: str) -> None:
    for answers, config in DEFAULTS.items():
        files = directory.config(DEFAULTS[begins]), directory.config(config)
        status, report = run(*files, *AT, "--flow", f"tcp {CLIENT}:4000 {SERVER}:8080")
        assert report["flows"][0]["begins"] == "A"
        assert report["flows"][0]["outcome"] == EXPECTED[begins, answers]
        assert status == 0


@pytest.mark.parametrize(
    ("change", "sentences"),
    [
        (('secret_file = "site.psk"', 'secret_file = "other.psk"'), ["the preshared key differs"]),
        (('"esp:aes256gcm16", "esp:aes128-sha256"', '"esp:chacha20poly1305"'), ["no common ESP/AH proposal"]),
        (("prfsha384-x25519", "prfsha384-ecp256"), ["no common IKE proposal", "wanted ECP-256, got X25519"]),
        (('"gw-a.example"', '"gw-x.example"'), ["says it is gw-a.example"]),
        (('source = "10.2.0.0/24"', 'source = "10.3.0.0/24"'), ["TS_UNACCEPTABLE", "at B no filter matches it"]),
        (('action = "negotiate"', 'action = "block"'), ['B: rule "LAN to LAN" blocks it']),
        (('tunnel_endpoint = "10.9.0.1"', 'tunnel_endpoint = "10.9.0.7"'), ["no peer of this policy"]),
    ],
    ids=["psk", "esp", "ike", "identity", "selectors", "blocks", "endpoint"],
)
def test_what_does_not_fit_is_named(
    directory: Directory, run: Any, change: tuple[str, str], sentences: list[str]
) -> None:
    if change[1].startswith("secret_file"):
        directory.secret("other.psk")
    removed = [("methods =", "#"), ("lifetime = {", "#"), ('pfs = "x25519"', "#")] if "block" in change[1] else []
    files = site_b(directory, change, *removed)
    status, report = run(*files, "--a-address", CLIENT, "--b-address", SERVER)
    assert status == 1
    assert outcomes(report)["tcp 10.1.0.5:40000 -> 10.2.0.5:80"] == "blocked"
    for sentence in sentences:
        assert sentence in reasons(report)


@pytest.mark.parametrize(
    ("before", "after", "able"),
    [
        ('pfs = "x25519"', 'pfs = "ecp256"', False),
        ('pfs = "x25519"', "", True),
    ],
    ids=["another group", "none"],
)
def test_keys_that_cannot_be_renewed_are_found_before_an_hour_has_passed(
    directory: Directory, run: Any, before: str, after: str, able: bool
) -> None:
    status, report = run(*site_b(directory, (before, after)))
    assert status == (0 if able else 1)
    for flow in report["flows"]:
        assert (flow["outcome"], flow["lasting"], flow["failed"]) == ("protected", able, not able)
    assert ("B cannot rekey the Child SA, A can" if able else "A and B cannot rekey the Child SA") in reasons(
        report
    )
    assert "key exchange (wanted" in reasons(report)
    shown = text(report)
    assert ("PROTECTED ONLY UNTIL KEYS MUST BE RENEWED" in shown) is not able


def test_what_people_mix_up_is_told_by_its_name(directory: Directory, run: Any) -> None:
    swapped = [
        ('source = "10.2.0.0/24"', 'source = "10.1.0.0/24" # x'), ('destination = "10.1.0.0/24"', "SWAP"),
        ("SWAP", 'destination = "10.2.0.0/24"'),
    ]  # fmt: skip
    _, report = run(*site_b(directory, *swapped))
    assert 'seen from B, source and destination change places in rule "LAN to LAN"' in reasons(report)
    _, report = run(*site_b(directory, ("assigned =", "# assigned =")), *AT)
    assert "at B no policy is in force: set agent.assigned there" in reasons(report)
    _, report = run(*site_b(directory, ('tunnel_endpoint = "10.9.0.1"', 'tunnel_endpoint = "10.9.0.7"')), *AT)
    assert 'B: rule "LAN to LAN" has the tunnel_endpoint 10.9.0.7, and A is at 10.9.0.1' in reasons(report)
    _, report = run(*site_b(directory, ('remote_id = "gw-a.example"', 'remote_id = "gw-x.example"')))
    assert "B expects gw-x.example" in reasons(report)
    assert "make remote_id at B and local_id at A the same" in reasons(report)
    one, other = directory.config("respond-only.toml"), directory.config("database-port-server.toml")
    _, report = run(one, other, *AT, "--flow", f"tcp {CLIENT}:4000 {SERVER}:5432")
    assert "A only responds: it begins in clear, which B does not accept" in "".join(report["flows"][0]["reasons"])


def test_who_refused_is_read_before_who_was_refused(directory: Directory, run: Any) -> None:
    _, report = run(*site_b(directory, ("prfsha384-x25519", "prfsha384-ecp256")))
    first = report["flows"][0]
    assert first["begins"] == "A"
    assert first["reasons"][0].startswith("B: IKE_SA_INIT of 10.9.0.1 refused: no common IKE proposal")
    assert len(first["reasons"]) == 2, "one sentence an end"


def test_different_secrets_are_told_and_not_shown(
    directory: Directory, capsys: pytest.CaptureFixture[str]
) -> None:
    directory.secret("other.psk")
    files = site_b(directory, ('secret_file = "site.psk"', 'secret_file = "other.psk"'))
    assert main(["rehearse", *map(str, files)]) == 1
    said = capsys.readouterr().out
    assert "note: the preshared keys differ" in said
    assert directory.secret("site.psk") not in said
    assert directory.secret("other.psk") not in said


def test_modes_that_differ(directory: Directory, run: Any) -> None:
    one = directory.config(
        "ipv6-transport-a.toml", ('name = "The other host"', 'name = "T"\ntunnel_endpoint = "fd00:9::2"')
    )
    status, report = run(one, directory.config("ipv6-transport-b.toml"))
    assert status == 1
    assert "A wants tunnel mode and B transport mode" in reasons(report)


def test_narrower_selectors_are_found_by_their_edges(directory: Directory, run: Any) -> None:
    status, report = run(*site_b(directory, ('source = "10.2.0.0/24"', 'source = "10.2.0.0/25"')))
    found = outcomes(report)
    assert status == 1
    assert found["tcp 10.1.0.5:40000 -> 10.2.0.5:80"] == "protected"
    assert found["tcp 10.1.0.5:40000 -> 10.2.0.128:80"] == "blocked"
    assert "narrowed the selectors" in reasons(report)


def test_one_sided_rule_against_none(directory: Directory, run: Any) -> None:
    files = directory.config("database-port-client.toml"), directory.config("block-and-permit.toml")
    status, report = run(*files, "--a-address", CLIENT, "--flow", f"tcp {CLIENT}:4000 {SERVER}:5432")
    assert status == 1
    assert report["flows"][0]["required"] == ["A"]
    assert report["flows"][0]["outcome"] == "blocked"
    assert "at B no filter matches it" in reasons(report)


def test_addresses_that_nobody_names(directory: Directory, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(directory.config(name)) for name in ("web-client.toml", "web-server.toml")]
    assert main(["rehearse", *files]) == 2
    said = capsys.readouterr().err
    assert "--a-address" in said
    assert "web-client.toml" in said


@pytest.mark.parametrize(
    "words", [["--flow", "tcp 10.1.0.5"], ["--flow", "tcp 8.8.8.8 9.9.9.9"], ["--a-address", "10.9.0.1/24"]]
)
def test_words_that_mean_nothing(
    directory: Directory, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(["rehearse", *map(str, site_b(directory)), *words]) == 2
    assert capsys.readouterr().err.startswith("mirrorgate: ")


def test_a_bad_config_is_told_as_check_tells_it(directory: Directory, capsys: pytest.CaptureFixture[str]) -> None:
    files = site_b(directory, ("filter_action", "filter_acton"))
    assert main(["rehearse", *map(str, files)]) == 2
    assert "site-b.toml:" in capsys.readouterr().err


def test_the_same_entropy_gives_the_same_report(directory: Directory) -> None:
    files = site_b(directory)
    reports = [rehearsed(files, ((), ()), (), entropy=Entropy(3, "both")) for _ in range(2)]
    assert reports[0] == reports[1]
    assert "every flow is as required." in text(reports[0])


def test_without_a_policy_everything_passes(directory: Directory, run: Any) -> None:
    one, other = directory.config("respond-only.toml"), directory.config("block-and-permit.toml")
    one.write_text("[agent]\n")
    status, report = run(one, other, *AT, "--flow", f"tcp {CLIENT}:4000 {SERVER}:22")
    assert (status, report["ends"][0]["policy"]) == (0, None)
    assert report["flows"][0]["outcome"] == "clear"


def test_thousands_of_filters_are_rehearsed_by_a_few(directory: Directory, run: Any) -> None:
    one, other = directory.config("site-a.toml"), directory.config("site-b.toml")
    for path, near, far in ((one, 1, 2), (other, 2, 1)):
        before, _, after = path.read_text().partition("[[filter_list.filter]]")
        filters = "".join(
            f'[[filter_list.filter]]\nsource = "10.{near}.1.{n}"\ndestination = "10.{far}.1.{n}"\n'
            for n in range(1, 200)
        )
        path.write_text(before + filters + after[after.index("# Nothing that") :])
    status, report = run(one, other)
    assert status == 0
    assert len(report["flows"]) == MAX_FLOWS
    assert any("only the first" in note for note in report["notes"])
