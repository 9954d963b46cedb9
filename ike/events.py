"""What the IKE endpoint tells its owner: messages to send, Child SAs to install or remove, and news."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TypeAlias

from policy.path import Path
from policy.proposals import ProtocolId, Suite
from policy.secret import Secret
from policy.selectors import SelectorPair
from policy.spd import Mode, SpdEntry


class Level(IntEnum):
    """How much an event matters; ERROR means a bug of ours."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


@dataclass(frozen=True, slots=True)
class Event:
    """News for operator, log and tests: a stable name, a sentence, and fields (no secrets, escaped peer text)."""

    name: str
    level: Level
    message: str
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SendIke:
    """An IKE datagram; on port 4500 *data* already opens with the non-ESP marker (RFC 3948 section 2.2).

    A NAT keepalive is a SendIke whose data is b"\\xff".
    """

    path: Path
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSa:
    """A negotiated pair of SAs (RFC 7296 section 1.3)."""

    #: Rising number, unique in the life of the endpoint.
    child: int
    #: PAD entry and SPD entry that it serves; the IKE SA by our SPI.
    peer: str
    entry: str
    ike_spi: int
    protocol: ProtocolId
    mode: Mode
    suite: Suite
    spi_in: int
    spi_out: int
    #: Keys of the inbound and of the outbound half: encryption key, salt, integrity key.
    keys_in: tuple[Secret, Secret, Secret]
    keys_out: tuple[Secret, Secret, Secret]
    selectors: tuple[SelectorPair, ...]
    path: Path
    #: Outbound octet limits (soft is jittered).
    soft_bytes: int | None
    hard_bytes: int | None
    #: The peer sends the first packet on it, or deletes the predecessor; until then keep sending on the old.
    dormant: bool = False
    #: Child SA that this one replaces, None for a new one.
    replaces: int | None = None
    follow_nat: bool = False
    replay_window: int = 1024
    #: See ``SaParams``: only where the peer agreed to receive it.
    padding: int = 0
    dummies: int = 0
    later_fragments: bool = False
    #: When the endpoint means to rekey it, for the operator to see.
    rekey_at: int | None = None
    #: A NAT is between the ends (transport mode repairs checksums then).
    nat: bool = False
    #: The Child SA that forms a bundle of AH and ESP with this one.
    bundle: int | None = None
    #: The dynamic SPD entry that the default response rule grants with it; it lives as long as its SAs.
    dynamic: SpdEntry | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeSaKeys:
    """What opens the messages of an IKE SA; "i" is its original initiator. Made when an operator captures."""

    spi_i: bytes
    spi_r: bytes
    suite: Suite
    sk_ei: Secret
    salt_ei: Secret
    sk_er: Secret
    salt_er: Secret
    sk_ai: Secret
    sk_ar: Secret


@dataclass(frozen=True, slots=True)
class ChildInstalled:
    """Install this pair: inbound first, then outbound, then release what was held for its entry."""

    sa: ChildSa


@dataclass(frozen=True, slots=True)
class ChildActivated:
    """Send on this Child SA from now on (the peer deleted the predecessor)."""

    child: int


@dataclass(frozen=True, slots=True)
class ChildRemoved:
    """Remove this pair. *drain* is how long the inbound half should still receive, nanoseconds (0: at once)."""

    child: int
    spi_in: int
    spi_out: int
    reason: str
    drain: int = 0


@dataclass(frozen=True, slots=True)
class PathChanged:
    """Packets of these Child SAs go along *path* from now on (NAT move or rebinding)."""

    children: tuple[int, ...]
    path: Path


class FailureKind(Enum):
    """How a negotiation ended, as far as policy cares (windows: soft SA only when nobody answered)."""

    NO_ANSWER = "no_answer"  # the peer never answered IKE at all
    REFUSED = "refused"  # a notify, or an answer that policy does not allow
    AUTHENTICATION = "authentication"
    LOCAL = "local"  # configuration, shutdown, resource bound


@dataclass(frozen=True, slots=True)
class AcquireFailed:
    """No Child SA came of an acquire or an ``initiate`` for *entry*."""

    entry: str
    kind: FailureKind
    reason: str
    retry_after: int


IkeOutput: TypeAlias = (
    SendIke | ChildInstalled | ChildActivated | ChildRemoved | PathChanged | AcquireFailed | Event
)
