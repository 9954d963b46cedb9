"""AH and ESP on one packet, agreed on in one exchange between two Mirrorgates.

IKEv2 offers one protocol a Child SA, though it says how the keys of several are taken (RFC 7296 section 2.17). So
a bundle is offered as Quick Mode does it, where proposals of one number are one offer (RFC 2408 section 4.2): the
ESP proposal stands in the SA payload, and the AH proposal of its number in a private notify, whose data is the
body of an SA payload. The answer is the same pair. Only a peer with our vendor ID is sent such notifies, and only
from one are they read: both pairs of SAs come of one exchange, or neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ike.constants import NotifyType
from ike.errors import BadAnswer, InvalidSyntax
from ike.names import describe_proposal, describe_wire
from ike.negotiate import Choice, Mismatch, choose, verify_answer
from ike.wire.cursor import Cursor
from ike.wire.message import Message
from ike.wire.payloads import NotifyPayload, Payload
from ike.wire.proposals import WireProposal, encode_proposals, offer, parse_proposals, to_wire
from policy.proposals import Proposal, ProtocolId, Suite


@dataclass(frozen=True, slots=True)
class Method:
    """One way to protect packets: AH or ESP alone, or ESP *inner* with AH *outer* around it."""

    inner: Proposal
    outer: Proposal | None = None

    def __str__(self) -> str:
        inner = describe_proposal(self.inner)
        return inner if self.outer is None else f"{describe_proposal(self.outer)}+{inner}"


@dataclass(frozen=True, slots=True)
class Offer:
    """Proposals for the SA payload, and the AH proposals around those of their numbers."""

    inner: tuple[WireProposal, ...]
    outer: tuple[WireProposal, ...] = ()

    def notifies(self) -> list[Payload]:
        """Return the AH proposals as they travel."""
        return [NotifyPayload(NotifyType.MIRRORGATE_BUNDLE, data=encode_proposals((each,))) for each in self.outer]

    def around(self, number: int) -> WireProposal | None:
        """Return the AH proposal around proposal *number*, None where it stands alone."""
        return next((proposal for proposal in self.outer if proposal.number == number), None)

    def __str__(self) -> str:
        return ", ".join(self._text(proposal) for proposal in self.inner[:3]) + (
            ", ..." if len(self.inner) > 3 else ""
        )

    def _text(self, proposal: WireProposal) -> str:
        around = self.around(proposal.number)
        return describe_wire(proposal) + ("" if around is None else f" in AH {describe_wire(around)}")


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a responder chose of an offer; *outer* where it is a bundle."""

    inner: Choice
    outer: Choice | None = None


def build(methods: Sequence[Method], spi: int, outer_spi: int) -> Offer:
    """Return *methods* as an offer, numbered from 1."""
    inner: list[WireProposal] = []
    outer: list[WireProposal] = []
    for method in methods:
        for part in offer([method.inner], spi.to_bytes(4, "big")):
            inner.append(replace(part, number=len(inner) + 1))
            if method.outer is not None:
                outer.append(to_wire(method.outer, len(inner), outer_spi.to_bytes(4, "big")))
    return Offer(tuple(inner), tuple(outer))


def read(message: Message, inner: Sequence[WireProposal]) -> Offer:
    """Return what a Mirrorgate offers or answers. InvalidSyntax unless each AH proposal is around one of ESP."""
    outer: list[WireProposal] = []
    numbers = {proposal.number for proposal in inner if proposal.protocol == ProtocolId.ESP}
    for notify in message.all(NotifyPayload):
        if notify.type != NotifyType.MIRRORGATE_BUNDLE:
            continue
        proposals = parse_proposals(Cursor(notify.data))
        if len(proposals) != 1 or proposals[0].protocol != ProtocolId.AH or proposals[0].number not in numbers:
            raise InvalidSyntax("a bundle's AH proposal is not around one ESP proposal")
        numbers.discard(proposals[0].number)
        outer.append(proposals[0])
    return Offer(tuple(inner), tuple(outer))


def select(offered: Offer, methods: Sequence[Method], group: int | None) -> Chosen | Mismatch:
    """Return the first of *methods* that the offer allows; a bundle is only ever chosen whole."""
    alone = [proposal for proposal in offered.inner if offered.around(proposal.number) is None]
    if not offered.outer and all(method.outer is None for method in methods):
        choice = choose(alone, [method.inner for method in methods], preferred_group=group)
        return choice if isinstance(choice, Mismatch) else Chosen(choice)
    for method in methods:
        for proposal in offered.inner:
            chosen = _fitting(proposal, offered.around(proposal.number), method, group)
            if chosen is not None:
                return chosen
    return Mismatch(str(offered), ", ".join(map(str, methods)), ())


def verify(sent: Offer, answer: Offer) -> tuple[Suite, Suite | None]:
    """Return what the responder chose, ESP or AH alone or both. BadAnswer if it is not what was sent."""
    suite = verify_answer(sent.inner, answer.inner)
    wanted = sent.around(answer.inner[0].number)
    if wanted is None:
        if answer.outer:
            raise BadAnswer("the answer puts AH around a proposal that was offered alone")
        return suite, None
    if len(answer.outer) != 1:
        raise BadAnswer("the answer takes ESP without the AH that was offered around it")
    return suite, verify_answer([wanted], answer.outer)


def _fitting(
    proposal: WireProposal, around: WireProposal | None, method: Method, group: int | None
) -> Chosen | None:
    if (around is None) != (method.outer is None):
        return None
    inner = choose([proposal], [method.inner], preferred_group=group)
    if isinstance(inner, Mismatch):
        return None
    if around is None or method.outer is None:
        return Chosen(inner)
    outer = choose([around], [method.outer])
    return None if isinstance(outer, Mismatch) else Chosen(inner, outer)
