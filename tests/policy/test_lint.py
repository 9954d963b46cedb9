"""Warnings: a policy that works, but hardly as meant."""

from __future__ import annotations

import pytest

from policy.lint import WEAK_SECRET_BITS, secret_bits
from tests.support.policies import KEY, SITE_TO_SITE, changed, policy_text, warnings_of

LANS = 'source = "10.1.0.0/24", destination = "10.2.0.0/24"'


def test_a_good_file_has_no_warning() -> None:
    assert warnings_of(SITE_TO_SITE) == []


@pytest.mark.parametrize(
    ("secret", "weak"),
    [
        ("", True),
        ("secret", True),
        ("correct horse", True),
        ("a" * 64, True),
        ("ab" * 32, True),
        ("abcdefghijklmnopqrstuvwxyz0123456789", True),
        ("Winter2026!", True),
        (KEY, False),
        ("9f86d081884c7d659a2feaa0c55ad015", False),
        ("qmzxnwbevrctyuioplkjhgfdsa"[::2] * 2, False),
    ],
)
def test_weak_keys(secret: str, weak: bool) -> None:
    assert (secret_bits(secret.encode()) < WEAK_SECRET_BITS) == weak


def test_a_weak_key_is_told_without_showing_it() -> None:
    (warning,) = warnings_of(changed(SITE_TO_SITE, (KEY, "hunter2")))
    assert warning == (
        "a.toml:17:46: the preshared key is weak: 7 octets, about 36 bits (make one with: openssl rand -base64 32)"
    )


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (
            policy_text(("A", "10.9.0.2", f"{LANS}, mirrored = false")),
            'rule "A": a filter is not mirrored, so its replies are not protected (write mirrored = true)',
        ),
        (
            policy_text(("A", "10.9.0.2", 'source = "10.1.0.0/24", destination = "any"')),
            'rule "A": the filter 10.1.0.0/24 <-> any covers the tunnel endpoint 10.9.0.2 too, so all traffic',
        ),
        (
            policy_text(("A", "any", LANS)),
            'rule "A": tunnel_endpoint = "any" and no remote_id lets in whoever knows the key (add remote_id)',
        ),
        (
            policy_text(("A", "Drop", f"{LANS}\n{LANS}")),
            'rule "A": the filter 10.1.0.0/24 <-> 10.2.0.0/24 repeats one of rule "A" (remove one of them)',
        ),
        (
            policy_text(("A", "Drop", LANS), ("B", "Drop", LANS)),
            'rule "B": the filter 10.1.0.0/24 <-> 10.2.0.0/24 repeats one of rule "A" (remove one of them)',
        ),
        (
            policy_text(("A", "Drop", LANS), ("B", "Pass", f"{LANS}, mirrored = false")),
            'repeats one of rule "A" (one is mirrored and the other is not: is it meant?)',
        ),
        (
            policy_text(("A", "Drop", LANS)).replace(
                'filter_action = "Drop"\n', 'filter_action = "Drop"\ntunnel_endpoint = "10.9.0.2"\n'
            ),
            'rule "A" does not negotiate: its tunnel_endpoint and authentication do nothing (remove them)',
        ),
        (
            policy_text(("A", "Drop", LANS), agent='metrics = "0.0.0.0:9476"'),
            "metrics are readable by every host that reaches this address (use 127.0.0.1)",
        ),
    ],
)
def test_warnings(text: str, warning: str) -> None:
    (line,) = warnings_of(text)
    assert warning in line
    assert line.startswith("a.toml:")


def test_two_halves_of_one_conversation_do_not_repeat_each_other() -> None:
    there, back = (
        f"{LANS}, mirrored = false",
        'source = "10.2.0.0/24", destination = "10.1.0.0/24", mirrored = false',
    )
    assert warnings_of(policy_text(("A", "Drop", there), ("B", "Pass", back))) == []
