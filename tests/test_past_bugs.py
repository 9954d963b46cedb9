"""Every class of bug that other IPsec daemons had has a standing test here, named by cases of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

#: Class of bug: what its tests name, CVEs or, where it has none, a test's own name.
CLASSES = {
    "truncated or garbled header": ("CVE-2013-4564",),
    "mandatory payload missing or repeated": ("CVE-2013-6467", "CVE-2023-21758"),
    "payload of the other IKE version, unknown critical": ("CVE-2015-3991", "CVE-2015-3204"),
    "too many payloads": ("CVE-2026-12413",),
    "crafted identity": ("CVE-2013-6075", "CVE-2025-9242"),
    "proposals without key exchange, unknown transforms": ("CVE-2016-5391", "CVE-2014-9221", "CVE-2024-3652"),
    "bad public values": ("CVE-2015-3240", "CVE-2023-41913", "CVE-2026-35332"),
    "exchange that the state does not allow": ("CVE-2019-12312",),
    "state used after an error or a Delete": ("CVE-2023-30570", "CVE-2023-38710", "CVE-2024-2357"),
    "authentication bypassed by the flow of messages": ("CVE-2014-2338",),
    "inbound policy check missing": ("test_an_insider_cannot_use_the_tunnel_for_other_addresses",),
    "integer overflow of lengths": ("CVE-2021-41990",),
    "reassembly of IKE fragments": ("CVE-2013-6076", "CVE-2016-10396", "CVE-2016-1287"),
    "half-open exhaustion": ("CVE-2020-3230",),
    "traffic selectors widened": ("CVE-2023-23009",),
    "INITIAL_CONTACT and Delete abused": ("test_unauthenticated_notifies_and_deletes_change_nothing",),
    "unprotected INFORMATIONAL": ("CVE-2019-10155",),
    "encryption without integrity": ("test_encryption_without_integrity_and_null_with_null_are_refused",),
    "lengths and fragments in the data path": ("CVE-2022-34718", "CVE-2022-27666"),
    "injection by what a peer calls itself": ("CVE-2023-28771",),
    "routes around the tunnel": ("CVE-2023-36672", "CVE-2023-35838", "CVE-2024-3661"),
    "sequence numbers used twice": ("test_without_esn_the_last_number_is_the_end", "test_sequence_numbers_end"),
}


@pytest.fixture(scope="module")
def said() -> str:
    here = Path(__file__)
    return "\n".join(path.read_text() for path in sorted(TESTS.rglob("test_*.py")) if path != here)


@pytest.mark.parametrize("kind", CLASSES)
def test_it_has_its_test(said: str, kind: str) -> None:
    for name in CLASSES[kind]:
        assert re.search(rf"{re.escape(name)}", said), f"{kind}: nothing names {name}"
