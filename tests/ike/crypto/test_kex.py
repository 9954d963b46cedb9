"""Key exchange: published values, agreement, and the tests that a peer's public value must pass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from ike.constants import NotifyType
from ike.crypto.kex import generate, public_length
from ike.crypto.modp import exponent_length, modp_power, prime
from ike.errors import InvalidPublicValue, LocalError
from policy.clock import Entropy
from policy.proposals import Group
from policy.secret import Secret
from tests.support.vectors import vectors

MODP = [group for group in Group if group.name.startswith("MODP")]
ECP = [Group.ECP_256, Group.ECP_384, Group.ECP_521]
EVERY = [group for group in Group if group is not Group.NONE]
FIELDS = {
    Group.ECP_256: 2**256 - 2**224 + 2**192 + 2**96 - 1,
    Group.ECP_384: 2**384 - 2**128 - 2**96 + 2**32 - 1,
    Group.ECP_521: 2**521 - 1,
}


def stream(seed: str) -> Entropy:
    """Entropy that is the same in every run."""
    state = hashlib.shake_256(seed.encode())
    position = 0

    def entropy(count: int) -> bytes:
        nonlocal position
        position += count
        return state.digest(position)[position - count :]

    return entropy


def fixed(number: int) -> Entropy:
    return lambda count: number.to_bytes(count, "big")


def octets(value: bytes) -> Callable[[int], bytes]:
    return lambda count: value[:count]


@pytest.mark.parametrize("group", EVERY)
def test_both_sides_agree_and_lengths_are_fixed(group: Group) -> None:
    ours, theirs = generate(group, stream("i")), generate(group, stream("r"))
    assert len(ours.public) == len(theirs.public) == public_length(group)
    shared = ours.shared(theirs.public)
    assert shared == theirs.shared(ours.public)
    assert ours.group is group
    size = public_length(group)
    assert len(shared) == (size // 2 if group in ECP else size)


@pytest.mark.parametrize("group", EVERY)
def test_keys_come_from_entropy_alone(group: Group) -> None:
    assert generate(group, stream("same")).public == generate(group, stream("same")).public
    assert generate(group, stream("same")).public != generate(group, stream("other")).public


def test_secrets_are_not_printed() -> None:
    key = generate(Group.X25519, stream("i"))
    assert "X25519" in repr(key)
    shared = key.shared(generate(Group.X25519, stream("r")).public)
    assert isinstance(shared, Secret)
    assert shared.reveal().hex() not in repr(shared)


def test_none_is_not_a_method() -> None:
    with pytest.raises(LocalError):
        generate(Group.NONE, stream("i"))
    assert public_length(Group.NONE) == 0


@pytest.mark.parametrize("vector", vectors("x25519")["vectors"])
def test_x25519_known_values(vector: dict[str, str]) -> None:
    key = generate(Group.X25519, octets(bytes.fromhex(vector["private"])))
    assert key.shared(bytes.fromhex(vector["peer"])).reveal().hex() == vector["shared"]


@pytest.mark.parametrize("vector", vectors("ecp")["vectors"], ids=lambda vector: str(vector["source"]))
def test_ecp_known_values(vector: dict[str, str]) -> None:
    # The private key is entropy modulo (n - 1), plus 1.
    group = Group[vector["group"]]
    for own, other in (("i", "r"), ("r", "i")):
        key = generate(group, fixed(int(vector[own], 16) - 1))
        assert key.public.hex() == vector[f"public_{own}"]
        assert key.shared(bytes.fromhex(vector[f"public_{other}"])).reveal().hex() == vector["shared"]


def pi(bits: int) -> int:
    """Return [2^bits * pi] by Machin's formula."""
    guard = 64
    one = 1 << (bits + guard)

    def arctan_of_inverse(x: int) -> int:
        term = total = one // x
        number, sign = 3, -1
        while term:
            term //= x * x
            total += sign * (term // number)
            number, sign = number + 2, -sign
        return total

    return 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239)) >> guard


@pytest.mark.parametrize("group", MODP)
def test_primes_follow_from_pi(group: Group) -> None:
    values: dict[str, int] = vectors("modp")["groups"][group.name]
    bits, k = values["bits"], values["k"]
    assert prime(group) == 2**bits - 2 ** (bits - 64) - 1 + 2**64 * (pi(bits - 130) + k)
    assert public_length(group) == bits // 8


@pytest.mark.parametrize("group", MODP)
def test_modp_is_exponentiation(group: Group) -> None:
    number = int.from_bytes(stream("x")(exponent_length(group)), "big")
    key = generate(group, fixed(number))
    p, size = prime(group), public_length(group)
    assert key.public == pow(2, number + 2, p).to_bytes(size, "big")
    peer = pow(2, 0xC0FFEE, p)
    shared = key.shared(peer.to_bytes(size, "big")).reveal()
    assert shared == pow(peer, number + 2, p).to_bytes(size, "big")


def test_leading_zeros_are_kept() -> None:
    # RFC 7296 section 3.4: as long as the prime, with zeros in front. 2^3 is the shortest public value.
    assert modp_power(Group.MODP_2048, 2, 3) == bytes(255) + b"\x08"
    key = generate(Group.MODP_2048, fixed(1))  # exponent 3
    assert key.public == bytes(255) + b"\x08"
    assert key.shared(bytes(255) + b"\x02").reveal() == bytes(255) + b"\x08"


def refused(group: Group, value: bytes) -> None:
    key = generate(group, stream("i"))
    with pytest.raises(InvalidPublicValue) as caught:
        key.shared(value)
    assert caught.value.notify is NotifyType.INVALID_SYNTAX


@pytest.mark.parametrize("group", MODP)
@pytest.mark.parametrize("offset", [("low", 0), ("low", 1), ("p", -1), ("p", 0), ("p", 1)])
def test_modp_values_out_of_range_are_refused(group: Group, offset: tuple[str, int]) -> None:
    """0, 1, p-1, p and p+1 (RFC 6989 section 2.1; CVE-2015-3240, CVE-2026-35332)."""
    base, difference = offset
    value = (0 if base == "low" else prime(group)) + difference
    refused(group, value.to_bytes(public_length(group), "big"))


@pytest.mark.parametrize("group", MODP)
def test_modp_values_at_the_ends_of_the_range_are_taken(group: Group) -> None:
    key = generate(group, stream("i"))
    for value in (2, prime(group) - 2):
        assert len(key.shared(value.to_bytes(public_length(group), "big"))) == public_length(group)


@pytest.mark.parametrize("group", EVERY)
def test_wrong_lengths_are_refused(group: Group) -> None:
    """Class of CVE-2023-41913: the length is the group's and nothing else."""
    good = generate(group, stream("r")).public
    for value in (b"", good[:-1], good + b"\x00", b"\x00" + good, good * 2):
        refused(group, value)


@pytest.mark.parametrize("group", ECP)
def test_points_off_the_curve_are_refused(group: Group) -> None:
    """RFC 6989 section 2.3: off the curve, out of the field, infinity."""
    good = generate(group, stream("r")).public
    size = len(good) // 2
    x, y = int.from_bytes(good[:size], "big"), int.from_bytes(good[size:], "big")
    field = FIELDS[group]
    assert (y * y - x**3 + 3 * x) % field == constant_b(group)
    for point in ((x, y + 1), (x + 1, y), (0, 0), (x, 0), (field, y), (x, field), (y, x)):
        refused(group, point[0].to_bytes(size, "big") + point[1].to_bytes(size, "big"))
    refused(group, b"\xff" * (2 * size))
    if group is not Group.ECP_521:
        return
    # The same residue, not reduced: there is room for it above the field only in the odd octets of P-521.
    refused(group, (x + field).to_bytes(size, "big") + y.to_bytes(size, "big"))


def constant_b(group: Group) -> int:
    """Return the curve's b from another of its points: y^2 - x^3 + 3x."""
    point = generate(group, stream("another")).public
    size = len(point) // 2
    x, y = int.from_bytes(point[:size], "big"), int.from_bytes(point[size:], "big")
    return (y * y - x**3 + 3 * x) % FIELDS[group]


@pytest.mark.parametrize("group", ECP)
def test_the_other_root_is_a_point_too(group: Group) -> None:
    ours, good = generate(group, stream("i")), generate(group, stream("r")).public
    size = len(good) // 2
    negative = FIELDS[group] - int.from_bytes(good[size:], "big")
    assert ours.shared(good) == ours.shared(good[:size] + negative.to_bytes(size, "big"))


@pytest.mark.parametrize("group", ECP)
@pytest.mark.parametrize("number", [0, 1, 2**256])
def test_ecp_private_keys_are_never_zero(group: Group, number: int) -> None:
    assert any(generate(group, fixed(number)).public)
    assert any(generate(group, octets(b"\xff" * 80)).public)


@pytest.mark.parametrize("point", vectors("x25519")["small_order"])
def test_x25519_points_of_small_order_are_refused(point: str) -> None:
    """The all-zero result (RFC 8031 section 3.2)."""
    refused(Group.X25519, bytes.fromhex(point))


@pytest.mark.parametrize("number", [0, 1])
def test_x448_points_of_small_order_are_refused(number: int) -> None:
    refused(Group.X448, number.to_bytes(56, "little"))


def test_the_deprecation_stays_inside(recwarn: Any) -> None:
    """One module owns finite-field DH, and its users see no warning."""
    generate(Group.MODP_2048, stream("i"))
    assert not list(recwarn)
