"""Errors that know their notify and their reach (RFC 7296 section 2.21).

``IkeError`` is what a peer did, or what policy refuses: it names the notify that tells the peer (None: say
nothing) and how much it costs. ``LocalError`` is a mistake of ours and never follows from network input.
Texts hold no secret and no peer-supplied octets other than numbers.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar

from ike.constants import NotifyType, PayloadType, ProtocolId, name_of


class Reach(Enum):
    """What an error costs, from least to most."""

    MESSAGE = "message"  # drop the message; nothing else changes
    TASK = "task"  # the exchange's intent fails; the SAs live on
    CHILD_SA = "child sa"
    IKE_SA = "ike sa"


class LocalError(Exception):
    """A bug or a bound of ours: never caused by network input alone, never told to a peer."""


class IkeError(Exception):
    """An error of the protocol. Subclasses declare ``notify`` and ``reach``; a test enumerates them."""

    notify: ClassVar[NotifyType | None] = None
    reach: ClassVar[Reach] = Reach.MESSAGE

    @property
    def notify_data(self) -> bytes:
        """Notification data that goes with ``notify`` (RFC 7296 section 3.10.1)."""
        return b""

    @property
    def notify_protocol(self) -> int:
        """Protocol ID of the notify; 0 unless it concerns an SPI (RFC 7296 section 3.10)."""
        return 0

    @property
    def notify_spi(self) -> bytes:
        """SPI of the notify; empty unless it concerns one (RFC 7296 section 3.10)."""
        return b""


# Parsing.


class WireError(IkeError):
    """Octets that are not an IKE message, in a message whose integrity is not proven (section 2.21.1)."""

    notify = NotifyType.INVALID_SYNTAX
    reach = Reach.MESSAGE


class InvalidSyntax(WireError):
    """An authenticated message is malformed: fatal to its IKE SA (RFC 7296 section 2.21.3)."""

    notify = NotifyType.INVALID_SYNTAX
    reach = Reach.IKE_SA


class UnsupportedCriticalPayload(WireError):
    """A payload that we do not know has its critical bit set (RFC 7296 section 2.5)."""

    notify = NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD
    reach = Reach.TASK

    def __init__(self, payload_type: int) -> None:
        super().__init__(f"unsupported critical payload {name_of(PayloadType, payload_type)}")
        self.payload_type = payload_type

    @property
    def notify_data(self) -> bytes:
        return bytes([self.payload_type])


class InvalidMajorVersion(WireError):
    """The major version is not 2. Carries what the answer's header needs (RFC 7296 section 2.5)."""

    notify = NotifyType.INVALID_MAJOR_VERSION
    reach = Reach.MESSAGE

    def __init__(
        self,
        major: int,
        *,
        spi_i: bytes,
        spi_r: bytes,
        exchange: int,
        initiator: bool,
        response: bool,
        message_id: int,
    ) -> None:
        super().__init__(f"major version {major}")
        self.major = major
        self.spi_i = spi_i
        self.spi_r = spi_r
        self.exchange = exchange
        self.initiator = initiator
        self.response = response
        self.message_id = message_id


class IntegrityError(IkeError):
    """The integrity check of a protected message failed: drop, count, say nothing (RFC 7296 section 2.4)."""

    notify = None
    reach = Reach.MESSAGE


class InvalidMessageId(IkeError):
    """A request outside the window (RFC 7296 section 2.3)."""

    notify = NotifyType.INVALID_MESSAGE_ID
    reach = Reach.MESSAGE

    def __init__(self, message_id: int) -> None:
        super().__init__(f"message ID {message_id} is outside the window")
        self.message_id = message_id

    @property
    def notify_data(self) -> bytes:
        return self.message_id.to_bytes(4, "big")


class InvalidIkeSpi(IkeError):
    """A message for an IKE SA that we do not have (RFC 7296 sections 1.5 and 2.21.4)."""

    notify = NotifyType.INVALID_IKE_SPI
    reach = Reach.MESSAGE


class InvalidSpi(IkeError):
    """An ESP or AH packet for an SA that we do not have; the data is its SPI (RFC 7296 section 1.5)."""

    notify = NotifyType.INVALID_SPI
    reach = Reach.MESSAGE

    def __init__(self, spi: bytes) -> None:
        super().__init__(f"no SA with SPI {spi.hex()}")
        self.spi = spi

    @property
    def notify_data(self) -> bytes:
        return self.spi


# Negotiation.


class NoProposalChosen(IkeError):
    """None of the proposals is acceptable (RFC 7296 section 2.7)."""

    notify = NotifyType.NO_PROPOSAL_CHOSEN
    reach = Reach.TASK


class InvalidKePayload(IkeError):
    """The KE payload's group is not the chosen one; the data is the group we want (RFC 7296 section 1.3)."""

    notify = NotifyType.INVALID_KE_PAYLOAD
    reach = Reach.TASK

    def __init__(self, group: int) -> None:
        super().__init__(f"key exchange method {group} is wanted")
        self.group = group

    @property
    def notify_data(self) -> bytes:
        return self.group.to_bytes(2, "big")


class InvalidPublicValue(IkeError):
    """A peer's public value fails the tests of RFC 6989 (or RFC 8031 section 3.2), or has a wrong length."""

    notify = NotifyType.INVALID_SYNTAX
    reach = Reach.TASK


class BadAnswer(IkeError):
    """A response that is not one of the answers our request allows (RFC 7296 section 3.3.6)."""

    notify = None  # a response is never answered
    reach = Reach.TASK


class AuthenticationFailed(IkeError):
    """The peer is not who policy wants (RFC 7296 section 2.21.2)."""

    notify = NotifyType.AUTHENTICATION_FAILED
    reach = Reach.IKE_SA


class SinglePairRequired(IkeError):
    """We take only a single pair of addresses a Child SA (RFC 7296 section 2.9)."""

    notify = NotifyType.SINGLE_PAIR_REQUIRED
    reach = Reach.TASK


class NoAdditionalSas(IkeError):
    """No more Child SAs on this IKE SA (RFC 7296 section 1.3)."""

    notify = NotifyType.NO_ADDITIONAL_SAS
    reach = Reach.TASK


class InternalAddressFailure(IkeError):
    """No internal address can be assigned (RFC 7296 section 3.15.4)."""

    notify = NotifyType.INTERNAL_ADDRESS_FAILURE
    reach = Reach.TASK


class FailedCpRequired(IkeError):
    """A configuration request is required and missing (RFC 7296 section 2.19)."""

    notify = NotifyType.FAILED_CP_REQUIRED
    reach = Reach.TASK


class TsUnacceptable(IkeError):
    """None of the addresses, protocols and ports is acceptable (RFC 7296 section 2.9)."""

    notify = NotifyType.TS_UNACCEPTABLE
    reach = Reach.TASK


class InvalidSelectors(IkeError):
    """A packet came through a Child SA whose selectors it does not match (RFC 7296 section 3.10.1)."""

    notify = NotifyType.INVALID_SELECTORS
    reach = Reach.MESSAGE


class TemporaryFailure(IkeError):
    """The request collides with something in progress; try again later (RFC 7296 section 2.25)."""

    notify = NotifyType.TEMPORARY_FAILURE
    reach = Reach.TASK


class ChildSaNotFound(IkeError):
    """The Child SA to rekey is not there; protocol and SPI come from REKEY_SA (RFC 7296 section 2.25)."""

    notify = NotifyType.CHILD_SA_NOT_FOUND
    reach = Reach.TASK

    def __init__(self, protocol: int, spi: bytes) -> None:
        super().__init__(f"no {name_of(ProtocolId, protocol)} SA with SPI {spi.hex()}")
        self.protocol = protocol
        self.spi = spi

    @property
    def notify_protocol(self) -> int:
        return self.protocol

    @property
    def notify_spi(self) -> bytes:
        return self.spi
