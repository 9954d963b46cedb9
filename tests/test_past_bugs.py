"""Every class of bug that other IPsec daemons had has standing tests here, and these name its cases.

A case counts as named where a test function that is run says it in its docstring: not in a comment, a helper, or a
test that is always skipped.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
_CVE = re.compile(r"CVE-\d{4}-\d{4,}")


@dataclass(frozen=True)
class Class:
    """One class: the tests that stand against it, file and name, and the cases that their docstrings name."""

    tests: tuple[str, ...]
    cases: tuple[str, ...] = ()


CLASSES = {
    "1 truncated or garbled header": Class(
        (
            "ike/wire/test_header.py::test_every_version",
            "ike/wire/test_header.py::test_every_prefix_is_refused",
            "ike/wire/test_message.py::test_every_prefix_is_refused",
            "sim/test_hostile.py::test_every_prefix_of_every_datagram",
        ),
        ("CVE-2013-4564",),
    ),
    "2 mandatory payload missing or repeated": Class(
        (
            "ike/wire/test_rules.py::test_delete_each_payload",
            "ike/wire/test_rules.py::test_duplicate_each_payload",
            "ike/wire/test_rules.py::test_swap_the_identities",
            "ike/test_endpoint_hostile.py::test_wrong_payloads",
        ),
        ("CVE-2013-6467", "CVE-2023-21758"),
    ),
    "3 payload of the other IKE version, unknown critical": Class(
        (
            "ike/wire/test_rules.py::test_add_each_payload",
            "ike/wire/test_rules.py::test_other_exchanges_are_refused",
            "ike/wire/test_payloads.py::test_unknown_types",
        ),
        ("CVE-2015-3991", "CVE-2015-3204"),
    ),
    "4 too many payloads": Class(
        (
            "ike/wire/test_message.py::test_number_of_payloads",
            "ike/wire/test_proposals.py::test_number_of_proposals",
            "ike/wire/test_proposals.py::test_number_of_transforms",
            "ike/wire/test_selectors.py::test_number_of_selectors",
            "ike/wire/test_rules.py::test_number_of_certificates",
            "ike/wire/test_protected.py::test_number_of_fragments",
            "ike/wire/test_protected.py::test_reassembly_is_bounded",
        ),
        ("CVE-2026-12413",),
    ),
    "5 crafted identity": Class(
        (
            "ike/wire/test_payloads.py::test_identities_have_any_length",
            "ike/v2/test_ike_auth.py::test_identity_cannot_forge_a_log_line",
        ),
        ("CVE-2013-6075", "CVE-2013-5018", "CVE-2023-38711", "CVE-2025-9242"),
    ),
    "6 proposals without key exchange, unknown transforms": Class(
        (
            "ike/test_negotiate.py::test_an_ike_sa_needs_them_all",
            "ike/test_negotiate.py::test_unknown_transforms_and_attributes_are_passed_over",
            "ike/test_negotiate.py::test_any_offer_is_answered_or_explained",
        ),
        ("CVE-2016-5391", "CVE-2016-3071", "CVE-2014-9221", "CVE-2024-3652"),
    ),
    "7 bad public values": Class(
        (
            "ike/crypto/test_kex.py::test_modp_values_out_of_range_are_refused",
            "ike/crypto/test_kex.py::test_wrong_lengths_are_refused",
            "ike/crypto/test_kex.py::test_points_off_the_curve_are_refused",
            "ike/crypto/test_kex.py::test_x25519_points_of_small_order_are_refused",
            "ike/crypto/test_kex.py::test_x448_points_of_small_order_are_refused",
        ),
        ("CVE-2015-3240", "CVE-2023-41913", "CVE-2026-35332"),
    ),
    "8 exchange that the state does not allow": Class(
        (
            "ike/v2/test_states.py::test_every_exchange_in_every_unestablished_state",
            "ike/v2/test_states.py::test_all_256_exchanges_in_every_state",
            "ike/v2/test_states.py::test_the_table_of_states_is_the_rfcs",
        ),
        ("CVE-2019-12312", "CVE-2020-1763", "CVE-2022-23094", "CVE-2009-0790"),
    ),
    "9 state used after an error or a Delete": Class(
        (
            "ike/test_endpoint_hostile.py::test_what_was_deleted_is_not_used_again",
            "ike/v2/test_states.py::test_acts_after_delete_change_nothing",
        ),
        ("CVE-2023-30570", "CVE-2023-38712", "CVE-2023-38710", "CVE-2024-2357"),
    ),
    "10 authentication bypassed by the flow of messages": Class(
        (
            "ike/v2/test_states.py::test_every_exchange_in_every_unestablished_state",
            "ike/v2/test_states.py::test_a_child_sa_cannot_be_installed_on_an_unauthenticated_ike_sa",
            "ike/test_authentication_bypass.py::test_an_initiator_without_the_key_gets_nothing",
            "ike/test_authentication_bypass.py::test_a_responder_without_the_key_gets_nothing",
            "ike/test_authentication_bypass.py::test_ones_own_auth_come_back_is_not_the_peers",
        ),
        (
            "CVE-2014-2338", "CVE-2021-45079", "CVE-2015-8023", "CVE-2023-26463", "CVE-2020-16088",
            "CVE-2004-0155",
        ),
    ),
    "14 inbound policy check missing": Class(
        (
            "dataplane/test_inbound_policy.py::test_only_what_the_sa_is_for_comes_in",
            "dataplane/test_inbound.py::test_a_flow_allowed_on_one_sa_is_not_on_another",
            "sim/test_hostile.py::test_an_insider_cannot_use_the_tunnel_for_other_addresses",
        ),
    ),
    "16 integer overflow of lengths": Class(
        (
            "ike/wire/test_cursor.py::test_lengths_are_checked",
            "ike/wire/test_message.py::test_each_length_field_at_each_edge",
            "ike/wire/test_header.py::test_the_length_is_that_of_the_datagram",
        ),
        ("CVE-2021-41990", "CVE-2021-41991"),
    ),
    "17 reassembly of IKE fragments": Class(
        (
            "ike/wire/test_protected.py::test_any_order_and_duplicates",
            "ike/wire/test_protected.py::test_a_fragment_is_authenticated_before_it_counts",
            "ike/wire/test_protected.py::test_a_higher_total_discards_the_older_set",
            "ike/wire/test_protected.py::test_reassembly_is_bounded",
        ),
        ("CVE-2013-6076", "CVE-2016-10396", "CVE-2016-1287"),
    ),
    "18 half-open and processor exhaustion": Class(
        (
            "ike/v2/test_strangers.py::test_spoofed_requests_are_not_parsed_once_there_is_a_rush",
            "ike/v2/test_strangers.py::test_a_flood_of_strangers_with_cookies_leaves_the_peer_its_budget",
            "sim/test_hostile.py::test_a_new_peer_gets_through_a_flood",
            "e2e/test_siege.py::test_siege",
        ),
        ("CVE-2020-3230",),
    ),
    "19 traffic selectors widened": Class(
        (
            "ike/v2/test_traffic.py::test_answer_wider_than_asked_is_refused",
            "ike/v2/test_traffic.py::test_responder_that_widens_gets_a_delete",
            "ike/v2/test_traffic.py::test_what_is_granted_lies_in_policy_and_in_what_was_asked",
        ),
        ("CVE-2023-23009",),
    ),
    "20 INITIAL_CONTACT and Delete abused": Class(
        (
            "ike/v2/test_ike_auth.py::test_initial_contact_without_authentication_does_nothing",
            "ike/v2/test_ike_auth.py::test_initial_contact_of_another_identity_does_nothing",
            "ike/v2/test_states.py::test_unprotected_delete_is_not_heard",
        ),
    ),
    "21 unprotected INFORMATIONAL": Class(
        (
            "ike/wire/test_rules.py::test_only_notifies_come_in_the_clear",
            "sim/test_hostile.py::test_unauthenticated_notifies_and_deletes_change_nothing",
        ),
        ("CVE-2019-10155",),
    ),
    "22 encryption without integrity": Class(
        ("dataplane/test_inbound.py::test_encryption_without_integrity_and_null_with_null_are_refused",)
    ),
    "23 lengths and fragments in the data path": Class(
        (
            "dataplane/test_inbound_policy.py::test_each_size_that_a_datagram_can_have",
            "dataplane/test_inbound_policy.py::test_each_cut_of_an_inner_packet",
            "dataplane/test_inbound.py::test_overlapping_inner_fragments_are_passed_on_as_they_are",
        ),
        ("CVE-2022-34718", "CVE-2022-27666"),
    ),
    "25 injection by what a peer calls itself": Class(
        ("ike/test_endpoint_hostile.py::test_what_a_peer_calls_itself_stays_one_printable_line",),
        ("CVE-2023-28771",),
    ),
    "27 routes around the tunnel": Class(
        (
            "e2e/test_steering.py::test_no_route_leads_around_the_tunnel",
            "e2e/test_host_to_host.py::test_ipv6_between_two_hosts",
        ),
        ("CVE-2023-36672", "CVE-2023-35838", "CVE-2023-36673", "CVE-2023-36671", "CVE-2024-3661"),
    ),
    "28 sequence numbers used twice": Class(
        (
            "dataplane/test_inbound.py::test_without_esn_the_last_number_is_the_end",
            "dataplane/test_singles.py::test_sequence_numbers_end_where_they_end",
            "dataplane/test_replay_flood.py::test_nothing_is_accepted_twice",
        ),
    ),
}  # fmt: skip


@cache
def functions(path: Path) -> dict[str, str]:
    """Return the docstrings of a file's tests that are run, by name."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            marks = [ast.unparse(mark) for mark in node.decorator_list]
            if not any(mark.startswith(("pytest.mark.skip(", "pytest.mark.xfail")) for mark in marks):
                found[node.name] = ast.get_docstring(node) or ""
    return found


@pytest.mark.parametrize("kind", CLASSES)
def test_it_has_its_tests(kind: str) -> None:
    said = []
    for name in CLASSES[kind].tests:
        file, _, function = name.partition("::")
        known = functions(TESTS / file)
        assert function in known, f"{name} is gone, and with it the guard against {kind}"
        said.append(known[function])
    named = set(_CVE.findall("\n".join(said)))
    assert set(CLASSES[kind].cases) <= named, f"{kind}: no test names {set(CLASSES[kind].cases) - named}"


def test_no_case_is_named_that_is_not_in_the_table() -> None:
    listed = {case for one in CLASSES.values() for case in one.cases}
    named = {
        case
        for path in TESTS.rglob("test_*.py")
        for text in functions(path).values()
        for case in _CVE.findall(text)
    }
    assert named == listed
