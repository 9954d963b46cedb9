"""What holds for every test: markers by folder, and no silent skips where the real tunnels can be tested.

With MIRRORGATE_REQUIRE_ROOT_TESTS=1 a skip of an e2e or interop test is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import netns, strongswan

_REAL = ("e2e", "interop")
_REQUIRED = os.environ.get("MIRRORGATE_REQUIRE_ROOT_TESTS") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder; skip those of real tunnels, with the reason, where they cannot run."""
    here = Path(__file__).parent
    lacking = netns.missing()
    for item in items:
        folder = item.path.relative_to(here).parts[0] if item.path.is_relative_to(here) else ""
        if folder in _REAL:
            item.add_marker(getattr(pytest.mark, folder))
            if lacking:
                item.add_marker(pytest.mark.skip(reason=lacking))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a skipped test of real tunnels where all of them must run."""
    report = yield
    if _REQUIRED and report.skipped and not hasattr(report, "wasxfail") and _is_real(item):
        report.outcome = "failed"
        report.longrepr = f"skipped, though MIRRORGATE_REQUIRE_ROOT_TESTS=1: {_reason(report.longrepr)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a skipped file of such tests likewise."""
    report = yield
    if _REQUIRED and report.skipped and collector.path.parent.name in _REAL:
        report.outcome = "failed"
        report.longrepr = f"skipped, though MIRRORGATE_REQUIRE_ROOT_TESTS=1: {_reason(report.longrepr)}"
    return report


def pytest_sessionstart() -> None:
    """Remove what runs that were killed left behind."""
    if os.geteuid() == 0:
        netns.sweep()


@pytest.fixture
def two_sites() -> Iterator[netns.Sites]:
    """LAN host, gateway, the internet, gateway, LAN host."""
    with netns.sites() as built:
        yield built


@pytest.fixture
def nat_sites() -> Iterator[netns.Sites]:
    """The same with gateway B behind a NAT."""
    with netns.sites(nat=True) as built:
        yield built


@pytest.fixture
def strongswan_there() -> None:
    """Skip where strongSwan is not installed."""
    lacking = strongswan.missing()
    if lacking:
        pytest.skip(lacking)


def _is_real(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in _REAL)


def _reason(longrepr: Any) -> str:
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)
