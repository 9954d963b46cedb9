"""What the ``Gateway`` puts out, and the commands that it takes (pure values)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ike.events import Event
from policy.clock import Nanos
from policy.explain import Direction
from policy.path import IpAddress
from policy.selectors import Flow
from policy.spd import Snapshot
from tunnel.dataplane.contract import Transmit, WriteTun


@dataclass(frozen=True, slots=True)
class TunMtu:
    """The TUN should have this MTU: the largest inner packet that goes out whole."""

    mtu: int


@dataclass(frozen=True, slots=True)
class Steer:
    """Steering and guard should be those of this snapshot: dynamic entries came or went."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class SoftSa:
    """Two hosts may talk in clear for *lifetime* nanoseconds where an entry has ``fallback_clear``; 0 ends it."""

    local: IpAddress
    remote: IpAddress
    lifetime: Nanos


Output: TypeAlias = Transmit | WriteTun | TunMtu | Steer | SoftSa | Event


@dataclass(frozen=True, slots=True)
class Status:
    """Ask for the whole state; the answer is the documented ``status`` object."""


@dataclass(frozen=True, slots=True)
class Explain:
    """Ask what happens to a flow, by which filter, rule, action and SA, and why."""

    flow: Flow
    #: None: outbound when the source is this host or when an entry matches that way, else inbound.
    direction: Direction | None = None


@dataclass(frozen=True, slots=True)
class Initiate:
    """Negotiate every entry of the rule called *rule* now; with *host* where it secures each host by itself."""

    rule: str
    host: IpAddress | None = None


@dataclass(frozen=True, slots=True)
class Rekey:
    """Rekey now: the Child SAs of a rule, or with *ike* the IKE SAs of its peer. *target* None means all."""

    target: str | None = None
    ike: bool = False


@dataclass(frozen=True, slots=True)
class Terminate:
    """Delete the Child SAs of a rule and then IKE SAs left without any. *target* None means all."""

    target: str | None = None


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Delete every IKE SA in an orderly way (the policy stays; no further dialling)."""


Command: TypeAlias = Status | Explain | Initiate | Rekey | Terminate | Shutdown
