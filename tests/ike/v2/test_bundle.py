"""AH and ESP on one packet: two pairs of SAs of one exchange, or neither."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ike.constants import NotifyType
from ike.crypto.keymat import derive_bundle_keys, derive_child_keys
from ike.crypto.prf import prf_plus
from ike.errors import BadAnswer, InvalidSyntax
from ike.events import ChildSa, FailureKind
from ike.negotiate import Mismatch
from ike.v2 import bundle
from ike.v2.bundle import Method, Offer
from ike.v2.tasks import ike_init
from ike.wire.message import Message, parse_message
from ike.wire.payloads import NotifyPayload
from ike.wire.proposals import encode_proposals
from policy.clock import SECOND
from policy.lifetimes import Lifetime
from policy.model import SecurityMethod
from policy.path import Endpoint
from policy.proposals import Encr, Group, Integ, Prf, Proposal, ProtocolId, Suite
from policy.secret import Secret
from policy.spd import Mode
from tests.support.ike_pair import CBC256, ESP_GCM128, ESP_GCM256, A, Node, Pair, method, site_a, site_b

AH_SHA256 = Proposal(ProtocolId.AH, integ=(Integ.HMAC_SHA2_256_128,), text="ah:sha256")
AH_SHA512 = Proposal(ProtocolId.AH, integ=(Integ.HMAC_SHA2_512_256,), text="ah:sha512")
ESP_CBC = Proposal(ProtocolId.ESP, encr=(CBC256,), integ=(Integ.HMAC_SHA2_256_128,), text="esp:aes256-sha256")
BOTH = SecurityMethod((AH_SHA256, ESP_CBC), "ah:sha256+esp:aes256-sha256")
PLAIN = method(ESP_GCM256)


def pair(
    ours: tuple[SecurityMethod, ...] = (BOTH,),
    theirs: tuple[SecurityMethod, ...] = (BOTH,),
    **protection: object,
) -> Pair:
    return Pair(site_a(methods=ours, **protection), site_b(methods=theirs, **protection))


def connected(
    ours: tuple[SecurityMethod, ...] = (BOTH,),
    theirs: tuple[SecurityMethod, ...] = (BOTH,),
    **protection: object,
) -> Pair:
    made = pair(ours, theirs, **protection)
    made.acquire(made.a)
    made.run()
    return made


def halves(node: Node) -> tuple[ChildSa, ChildSa]:
    """The live ESP and AH of the one bundle that there is."""
    esp, ah = sorted(node.live, key=lambda sa: sa.protocol, reverse=True)
    assert (esp.protocol, ah.protocol) == (ProtocolId.ESP, ProtocolId.AH)
    assert (esp.bundle, ah.bundle) == (ah.child, esp.child)
    return esp, ah


def test_both_pairs_come_of_one_exchange() -> None:
    made = connected()
    assert made.agree()
    assert len(made.a.sent) == 2, "IKE_SA_INIT and IKE_AUTH brought both"
    for node in (made.a, made.b):
        esp, ah = halves(node)
        assert (esp.mode, ah.mode) == (Mode.TUNNEL, Mode.TRANSPORT)
        assert esp.selectors == ah.selectors
        assert len({esp.spi_in, esp.spi_out, ah.spi_in, ah.spi_out}) == 4
        assert not esp.path.encapsulated
        assert not ah.path.encapsulated
        assert "AH HMAC-SHA2-256-128 + ESP AES-CBC-256" in node.named("child_established")[0].message
    assert list(made.a.endpoint.status(made.now)[0].children) == [sa.child for sa in made.a.live]


@pytest.mark.parametrize("group", [None, Group.X25519])
@pytest.mark.parametrize("by", ["a", "b"])
@pytest.mark.parametrize("half", [0, 1])
def test_either_half_rekeys_both(by: str, half: int, group: Group | None) -> None:
    made = connected(pfs=group)
    node = getattr(made, by)
    before = {sa.child for sa in node.live}
    node.endpoint.expire(halves(node)[half].child, False, made.now)
    made.drain(node)
    made.run()
    assert made.agree()
    esp, ah = halves(node)
    assert {esp.replaces, ah.replaces} == before
    assert len(made.a.sending) == len(made.b.sending) == 2
    assert {removed.child for removed in node.removed} == before


@pytest.mark.parametrize("half", [0, 1])
def test_a_hard_end_of_either_half_ends_both_at_both_ends(half: int) -> None:
    made = connected()
    made.a.endpoint.expire(halves(made.a)[half].child, True, made.now)
    made.drain(made.a)
    made.run()
    assert made.a.live == made.b.live == []
    assert len(made.a.removed) == len(made.b.removed) == 2


def test_rekeying_the_ike_sa_keeps_both_and_deletes_both() -> None:
    made = connected()
    made.a.endpoint.rekey_ike("gw-b", made.now)
    made.drain(made.a)
    made.run()
    assert halves(made.a)
    made.b.endpoint.terminate_child(halves(made.b)[1].child, made.now)
    made.drain(made.b)
    made.run()
    assert made.a.live == made.b.live == []


def test_their_lifetime_is_one() -> None:
    made = connected(lifetime=Lifetime(time=600 * SECOND))
    made.wait(500 * SECOND)
    made.wait(100 * SECOND)
    assert made.agree()
    assert len(made.a.live) == 2
    assert {sa.child for sa in made.a.live} & {1, 2} == set()


@pytest.mark.parametrize(
    ("ours", "theirs", "chosen"),
    [
        ((BOTH, PLAIN), (PLAIN, BOTH), "esp"),  # the responder's order decides
        ((PLAIN, BOTH), (BOTH, PLAIN), "both"),
        ((BOTH, PLAIN), (PLAIN,), "esp"),
        ((PLAIN,), (BOTH, PLAIN), "esp"),
        ((BOTH,), (PLAIN,), None),
        ((BOTH,), (method(ESP_CBC),), None),  # never the half of it
        ((method(ESP_CBC),), (BOTH,), None),
        ((BOTH,), (method(AH_SHA256),), None),
        ((BOTH,), (SecurityMethod((AH_SHA512, ESP_CBC), "ah:sha512+esp:aes256-sha256"),), None),
    ],
)
def test_a_bundle_is_chosen_whole(
    ours: tuple[SecurityMethod, ...], theirs: tuple[SecurityMethod, ...], chosen: str | None
) -> None:
    made = connected(ours, theirs)
    assert made.agree()
    if chosen is None:
        assert made.a.live == []
        [failure] = made.a.failures
        assert failure.kind is FailureKind.REFUSED
        reason = str(made.b.named("negotiation_failed")[0].fields["reason"])
        assert "we accept " + ", ".join(each.text for each in theirs) in reason
    else:
        assert len(made.a.live) == (2 if chosen == "both" else 1)
        assert len(made.a.endpoint._core.spis_in) == len(made.a.live)


def test_other_peers_are_never_sent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made = pair((BOTH,), (PLAIN,))
    made.acquire(made.a)
    with monkeypatch.context() as other:
        other.setattr(ike_init, "VENDOR_ID", b"somebody else's!")
        made.step()
    made.run()
    assert made.a.live == []
    assert "between two Mirrorgates only" in made.a.failures[0].reason
    [failed] = made.a.named("negotiation_failed")
    assert "name a method of one protocol" in failed.message


def test_a_nat_between_refuses_it_with_a_reason() -> None:
    made = pair()
    made.nat = {Endpoint(A, inside): Endpoint(A, outside) for inside, outside in ((500, 1024), (4500, 1025))}
    made.acquire(made.a)
    made.run()
    assert made.a.live == []
    assert any("AH cannot cross the NAT" in failure.reason for failure in made.a.failures)


def test_keys_are_taken_in_the_order_of_the_headers() -> None:
    ah = Suite(protocol=ProtocolId.AH, integ=Integ.HMAC_SHA2_256_128)
    esp = Suite(protocol=ProtocolId.ESP, encr=Encr.AES_CBC, key_bits=256, integ=Integ.HMAC_SHA2_512_256)
    sk_d = Secret(bytes(range(32)))
    (ah_there, ah_back), (esp_there, esp_back) = derive_bundle_keys(
        [ah, esp], sk_d, Prf.HMAC_SHA2_256, b"i" * 32, b"r" * 32
    )
    material = prf_plus(Prf.HMAC_SHA2_256, sk_d.reveal(), b"i" * 32 + b"r" * 32, 2 * (32 + 32 + 64))
    taken = [
        ah_there.integrity, esp_there.encryption, esp_there.integrity,
        ah_back.integrity, esp_back.encryption, esp_back.integrity,
    ]  # fmt: skip
    assert b"".join(key.reveal() for key in taken) == material
    alone = derive_child_keys(ah, sk_d, Prf.HMAC_SHA2_256, b"i" * 32, b"r" * 32)
    assert alone[0].integrity.reveal() == material[:32]


def _message(*notifies: bytes) -> Message:
    made = connected()
    [request] = [d for d in made.a.sent if not d.response][:1]
    message = parse_message(request.ike)
    return replace(message, payloads=tuple(NotifyPayload(NotifyType.MIRRORGATE_BUNDLE, data=d) for d in notifies))


def test_what_is_no_bundle_is_refused() -> None:
    sent = bundle.build([Method(ESP_CBC, AH_SHA256), Method(ESP_GCM128)], 0x1001, 0x1002)
    around = encode_proposals(sent.outer)
    assert bundle.read(_message(around), sent.inner) == sent
    stray = encode_proposals((replace(sent.outer[0], number=9),))
    esp = encode_proposals((sent.inner[0],))
    for hostile in ([around, around], [stray], [esp]):
        with pytest.raises(InvalidSyntax):
            bundle.read(_message(*hostile), sent.inner)
    answer = replace(sent, inner=sent.inner[:1])
    assert bundle.verify(sent, answer)[1] is not None
    for wrong in (Offer(sent.inner[:1]), Offer(sent.inner[1:], sent.outer)):
        with pytest.raises(BadAnswer):
            bundle.verify(sent, wrong)
    assert isinstance(bundle.select(sent, [Method(ESP_CBC)], None), Mismatch)
