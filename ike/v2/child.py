"""Child SAs of an IKE SA: the record that the control plane keeps, installing and removing (RFC 7296 1.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from ike.crypto.keymat import ChildKeys
from ike.errors import LocalError
from ike.events import ChildActivated, ChildInstalled, ChildRemoved, ChildSa, Level
from ike.names import describe
from ike.timers import Timer
from ike.v2.nat import floated
from ike.v2.states import AUTHENTICATED
from policy.clock import Nanos
from policy.model import Encapsulation
from policy.path import NATT_PORT, RAW_PORT, Endpoint, Path
from policy.proposals import ProtocolId, Suite
from policy.selectors import Flow, SelectorPair
from policy.spd import Mode, SpdEntry

if TYPE_CHECKING:
    from ike.v2.sa import IkeSa


class ChildState(Enum):
    """Where a Child SA is in its life."""

    LIVE = "live"
    REPLACED = "replaced"  # a successor is there; a Delete is to come
    DELETING = "deleting"  # we sent a Delete


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """The pair of AH SAs around a pair of ESP SAs, where both protect one packet."""

    number: int
    suite: Suite
    spi_in: int
    spi_out: int


@dataclass(slots=True, kw_only=True)
class Child:
    """One pair of SAs, without its keys: those went to the data plane. A bundle is one Child SA with *outer*.

    It has the number, suite and SPIs of ESP, and lives and dies as one.
    """

    number: int
    entry: str
    protocol: ProtocolId
    mode: Mode
    suite: Suite
    spi_in: int
    spi_out: int
    selectors: tuple[SelectorPair, ...]
    path: Path
    born: Nanos
    encapsulation: Encapsulation
    state: ChildState = ChildState.LIVE
    outer: Half | None = None
    replaces: int | None = None
    #: Not sent on yet: the responder of a rekey waits for the Delete of the predecessor (section 2.8).
    dormant: bool = False

    def carries(self, flow: Flow) -> bool:
        """Whether an outbound packet of *flow* may travel on it."""
        return any(pair.matches_outbound(flow) for pair in self.selectors)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers that the data plane knows it by, the outermost last."""
        return (self.number,) if self.outer is None else (self.number, self.outer.number)

    @property
    def spis(self) -> tuple[tuple[ProtocolId, int, int], ...]:
        """Protocol, inbound and outbound SPI of each of its pairs."""
        own = (self.protocol, self.spi_in, self.spi_out)
        return (own,) if self.outer is None else (own, (ProtocolId.AH, self.outer.spi_in, self.outer.spi_out))


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreedHalf:
    """What was agreed on for the AH around ESP."""

    suite: Suite
    spi_in: int
    spi_out: int
    keys_in: ChildKeys
    keys_out: ChildKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """What an exchange agreed on for a new Child SA, with keys from the exchange's initiator and responder."""

    entry: SpdEntry
    suite: Suite
    mode: Mode
    spi_in: int
    spi_out: int
    pairs: tuple[SelectorPair, ...]
    keys_in: ChildKeys
    keys_out: ChildKeys
    outer: AgreedHalf | None = None
    #: The peer takes padding behind packets, and dummy packets; later fragments pass selectors with ports.
    tfc: bool = False
    later_fragments: bool = False


def install(
    sa: IkeSa, agreed: Agreed, now: Nanos, *, dormant: bool = False, replaces: Child | None = None
) -> Child:
    """Make the Child SA known and hand it, keys and all, to the data plane."""
    core, protection = sa.core, agreed.entry.protection
    if sa.state not in AUTHENTICATED or sa.peer is None or protection is None:
        raise LocalError(f"a Child SA on an IKE SA that is {sa.state.value}")
    number, around = core.new_child_number(), agreed.outer
    outer = None if around is None else Half(
        number=core.new_child_number(), suite=around.suite, spi_in=around.spi_in, spi_out=around.spi_out
    )  # fmt: skip
    encapsulation = protection.encapsulation if outer is None else Encapsulation.NONE
    child = Child(
        number=number,
        entry=agreed.entry.id,
        protocol=agreed.suite.protocol,
        mode=agreed.mode,
        suite=agreed.suite,
        spi_in=agreed.spi_in,
        spi_out=agreed.spi_out,
        selectors=agreed.pairs,
        path=child_path(sa, encapsulation, agreed.suite.protocol),
        born=now,
        encapsulation=encapsulation,
        outer=outer,
        replaces=None if replaces is None else replaces.number,
        dormant=dormant,
    )
    sa.children[child.number] = child
    core.children.update(dict.fromkeys(child.numbers, sa))
    core.spis_in.update(spi_in for _, spi_in, _ in child.spis)
    lifetime = protection.lifetime
    soft, hard = lifetime.soft_time(core.entropy), lifetime.time
    if soft is not None and hard is not None:
        core.timers.set(sa.number, Timer.REKEY_CHILD, now + soft, child.number)
        core.timers.set(sa.number, Timer.EXPIRE_CHILD, now + hard, child.number)
    told = _child_sa(sa, child, agreed, None if soft is None else now + soft)
    core.emit(ChildInstalled(told))
    if outer is not None and around is not None:
        core.emit(ChildInstalled(_around(told, outer, around, replaces)))
    _tell_installed(sa, child, replaces, now)
    core.failures.pop(sa.peer_name, None)
    core.demands.satisfied(child, now)
    return child


def _child_sa(sa: IkeSa, child: Child, agreed: Agreed, rekey_at: Nanos | None) -> ChildSa:
    """Return *child* as the data plane is told of it, keys and all."""
    core, protection = sa.core, agreed.entry.protection
    if sa.peer is None or protection is None:
        raise LocalError("a Child SA without a peer")
    return ChildSa(
        child=child.number,
        peer=sa.peer.name,
        entry=child.entry,
        ike_spi=int.from_bytes(sa.our_spi, "big"),
        protocol=child.protocol,
        mode=child.mode,
        suite=child.suite,
        spi_in=child.spi_in,
        spi_out=child.spi_out,
        keys_in=agreed.keys_in,
        keys_out=agreed.keys_out,
        selectors=child.selectors,
        path=child.path,
        soft_bytes=protection.lifetime.soft_bytes(core.entropy),
        hard_bytes=protection.lifetime.bytes,
        dormant=child.dormant,
        replaces=child.replaces,
        follow_nat=sa.nat_remote,
        replay_window=protection.replay_window,
        padding=protection.padding if agreed.tfc else 0,
        dummies=protection.dummies if agreed.tfc else 0,
        later_fragments=agreed.later_fragments,
        rekey_at=rekey_at,
        nat=child.mode is Mode.TRANSPORT and (sa.nat_local or sa.nat_remote),
        dynamic=core.dynamic.get(child.entry),
        bundle=None if child.outer is None else child.outer.number,
    )


def _around(inner: ChildSa, outer: Half, agreed: AgreedHalf, replaces: Child | None) -> ChildSa:
    """Return the AH of a bundle as the data plane is told of it: in transport mode around what ESP makes."""
    before = None if replaces is None else replaces.outer
    return replace(
        inner,
        child=outer.number,
        protocol=ProtocolId.AH,
        mode=Mode.TRANSPORT,
        suite=outer.suite,
        spi_in=outer.spi_in,
        spi_out=outer.spi_out,
        keys_in=agreed.keys_in,
        keys_out=agreed.keys_out,
        replaces=None if before is None else before.number,
        bundle=inner.child,
    )


def activate(sa: IkeSa, child: Child) -> None:
    """Send on *child* from now on."""
    if child.dormant:
        child.dormant = False
        for number in child.numbers:
            sa.core.emit(ChildActivated(number))


def remove(sa: IkeSa, child: Child, reason: str, now: Nanos, *, drain: Nanos = 0) -> None:
    """Take the Child SA away; its inbound half may receive for *drain* yet."""
    if sa.children.pop(child.number, None) is None:
        return
    core = sa.core
    for number in child.numbers:
        core.children.pop(number, None)
    core.spis_in.difference_update(spi_in for _, spi_in, _ in child.spis)
    core.timers.cancel(sa.number, Timer.REKEY_CHILD, child.number)
    core.timers.cancel(sa.number, Timer.EXPIRE_CHILD, child.number)
    live = [c for c in sa.children.values() if c.replaces == child.number and c.state is ChildState.LIVE]
    if live:  # the predecessor is gone: the newest successor is in use from now on (section 2.8)
        activate(sa, live[-1])
    core.forget_dynamic(child.entry)
    for number, (_, spi_in, spi_out) in zip(child.numbers, child.spis, strict=True):
        core.emit(ChildRemoved(number, spi_in, spi_out, reason, drain))
    sa.tell(
        now,
        "child_deleted",
        Level.DEBUG if child.state is ChildState.REPLACED else Level.INFO,
        f"Child SA {child.number} ({child.entry}) is gone: {reason}",
        child=child.number,
        entry=child.entry,
        reason=reason,
    )


def unfit(sa: IkeSa, child: Child) -> str:
    """Return why the policy in force has no place for *child*, empty if it has."""
    entry = sa.core.entry(child.entry)
    if entry is None:
        return "the policy no longer has its entry"
    protection = entry.protection
    if protection is None or protection.peer != sa.peer_name:
        return "its entry now has another peer"
    if protection.mode is not child.mode:
        return f"its entry is now in {protection.mode.value} mode"
    if not all(entry.selectors.covers(pair) for pair in child.selectors):
        return "its entry no longer covers its selectors"
    return ""


def by_spi_out(sa: IkeSa, protocol: int, spi: bytes) -> Child | None:
    """Return the Child SA that the peer names by its inbound SPI (REKEY_SA, Delete: sections 1.3.3, 1.4.1)."""
    number = int.from_bytes(spi, "big")
    return next((child for child in sa.children.values() if sends_on(child, protocol, number)), None)


def sends_on(child: Child, protocol: int, spi: int) -> bool:
    """Whether we send packets of *protocol* with *spi* on *child*."""
    return any(kind == protocol and spi_out == spi for kind, _, spi_out in child.spis)


def of_number(sa: IkeSa, number: int) -> Child | None:
    """Return the Child SA that the data plane knows by *number*."""
    found = sa.children.get(number)
    return found or next((child for child in sa.children.values() if number in child.numbers), None)


def child_path(sa: IkeSa, encapsulation: Encapsulation, protocol: ProtocolId) -> Path:
    """Return where ESP and AH packets go: port 4500 on both sides if encapsulated, no ports if not.

    AH is never encapsulated: it covers the addresses outside.
    """
    if protocol is ProtocolId.AH:
        encapsulation = Encapsulation.NONE
    match encapsulation:
        case Encapsulation.UDP:
            encapsulated = True
        case Encapsulation.NONE:
            encapsulated = False
        case Encapsulation.AUTO:
            encapsulated = sa.nat_local or sa.nat_remote or sa.mirrorgate
    path = sa.path
    if not encapsulated:
        return Path(Endpoint(path.local.address, RAW_PORT), Endpoint(path.remote.address, RAW_PORT))
    return path if path.local.port == NATT_PORT else floated(path)


def suite_text(child: Child) -> str:
    """Return protocols and algorithms, the outermost first."""
    own = f"{child.protocol.name} {describe(child.suite)}"
    return own if child.outer is None else f"AH {describe(child.outer.suite)} + {own}"


def selectors_text(pairs: Sequence[SelectorPair]) -> str:
    """Return a few selector pairs for a message."""
    more = ", ..." if len(pairs) > 3 else ""
    return ", ".join(str(pair) for pair in pairs[:3]) + more


def _tell_installed(sa: IkeSa, child: Child, replaces: Child | None, now: Nanos) -> None:
    encapsulation = "udp" if child.path.encapsulated else "none"
    suite, selectors = suite_text(child), selectors_text(child.selectors)
    if replaces is None:
        name, what = "child_established", f"Child SA {child.number} for {child.entry} with {sa.peer_name}"
    else:
        name, what = "child_rekeyed", f"Child SA {child.number} replaces {replaces.number} for {child.entry}"
    sa.tell(
        now,
        name,
        Level.INFO,
        f"{what}: {suite}, {selectors}, {child.mode.value} mode, encapsulation {encapsulation}",
        child=child.number,
        entry=child.entry,
        suite=suite,
        selectors=selectors,
        mode=child.mode.value,
        encapsulation=encapsulation,
        replaces=child.replaces,
    )
