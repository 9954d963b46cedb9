"""What operators of such policies stumble over: it works as written, and not as many expect."""

from __future__ import annotations

from collections.abc import Iterator

from policy.lint import filter_text
from policy.model import ActionKind, AddressSpec, Filter, FilterAction, Policy, Rule, Special, Where
from policy.path import IKE_PORT, NATT_PORT
from policy.problems import ConfigError, quoted
from policy.proposals import Encr
from policy.selectors import ICMP, ICMPV6, AddressRange, PortRange
from policy.suites import hides
from policy.windows2003 import is_weak

_ESP, _AH, _UDP = 50, 51, 17
_MULTICAST = (AddressRange(4, 0xE0000000, 0xEFFFFFFF), AddressRange(6, 0xFF << 120, (1 << 128) - 1))
_BROADCAST = AddressRange(4, 0xFFFFFFFF, 0xFFFFFFFF)
_ECHO = {ICMP: 8 * 256, ICMPV6: 128 * 256}


def advice(policy: Policy) -> list[ConfigError]:
    """Return warnings about how the rules of *policy* work together, and about what their actions offer."""
    negotiating = [r for r in policy.rules if r.active and r.filter_action.kind is ActionKind.NEGOTIATE]
    found = []
    weak = next(filter(is_weak, policy.ike.proposals), None)
    if weak is not None:
        found.append(_weak(policy, weak.text))
    seen: set[str] = set()
    for rule in negotiating:
        if rule.filter_action.name not in seen:
            seen.add(rule.filter_action.name)
            found += _action(rule)
        found += [warning for entry in rule.filter_list.filters for warning in _exempt(rule, entry)]
    if negotiating:
        found += _ping(policy)
    return found


def _weak(policy: Policy, text: str) -> ConfigError:
    message = f"policy {quoted(policy.name)}: IKE offers {quoted(text)}, which can be broken today"
    return ConfigError(policy.where, message, "use it only with systems that speak nothing newer")


def _action(rule: Rule) -> Iterator[ConfigError]:
    action = rule.filter_action
    where = action.where if action.where.line else rule.where
    name = f"filter action {quoted(action.name)}"
    weak = next((method for method in action.methods if any(map(is_weak, method.protocols))), None)
    if weak is not None:
        message = f"{name} offers {quoted(weak.text)}, which can be broken today"
        yield ConfigError(where, message, "use it only with systems that speak nothing newer")
    yield from _plain(action, name, where)
    if not action.fallback_clear or rule.tunnel_endpoint is not None or not action.where.line:
        return
    if not action.inbound_clear:
        message = (
            f"{name} contradicts itself: fallback_clear lets this host talk in clear with a host that does not "
            "answer, and without inbound_clear such a host cannot begin"
        )
        yield ConfigError(where, message, "write inbound_clear = true, or fallback_clear = false")
    message = f"{name} has fallback_clear: hosts that never answer are talked to in clear"
    yield ConfigError(where, message, "write fallback_clear = false to require security")


def _plain(action: FilterAction, name: str, where: Where) -> Iterator[ConfigError]:
    """Where AH stands beside ESP, the peer may choose what everybody can read. Who offers AH alone wants that."""
    readable = [method for method in action.methods if not hides(method)]
    gmac = [m for m in readable if any(t.id == Encr.NULL_AUTH_AES_GMAC for part in m.protocols for t in part.encr)]
    if gmac:
        message = (
            f"{name} offers {quoted(gmac[0].text)}, which does not encrypt: GMAC is GCM without its encryption"
        )
        yield ConfigError(where, message, "write aes256gcm16 to encrypt")
        return
    if not readable or len(readable) == len(action.methods) or not action.where.line:
        return
    message = f"{name} offers {quoted(readable[0].text)}, which does not encrypt, and the peer may choose it"
    yield ConfigError(where, message, "leave it out to have every packet encrypted; AH does not pass NAT either")


def _exempt(rule: Rule, entry: Filter) -> Iterator[ConfigError]:
    """What IKE can never agree on: packets to many, and the packets of IPsec itself."""
    where = entry.where if entry.where.line else rule.where
    name = f"rule {quoted(rule.name)}: the filter {filter_text(entry)}"
    if any(map(_is_many, (entry.source, entry.destination))):
        message = f"{name} is for multicast or broadcast, which no negotiation can secure"
        yield ConfigError(
            where, message, "permit or block it: now it is dropped on the way out, accepted on the way in"
        )
    if entry.protocol in (_ESP, _AH) or (
        entry.protocol == _UDP and entry.source_port == entry.destination_port and _is_ike(entry.source_port)
    ):
        message = f"{name} is for the packets of IPsec itself, which are exempt: nothing reaches it"
        yield ConfigError(where, message, "remove the filter")


def _ping(policy: Policy) -> Iterator[ConfigError]:
    for rule in policy.rules:
        if not rule.active or rule.filter_action.kind is not ActionKind.PERMIT:
            continue
        if any(_permits_ping(entry) for entry in rule.filter_list.filters):
            message = (
                f"rule {quoted(rule.name)} permits ICMP, so ping goes in clear and proves nothing about IPsec here"
            )
            yield ConfigError(rule.where, message, "test with TCP, or see mirrorgate status")
            return


def _permits_ping(entry: Filter) -> bool:
    echo = _ECHO.get(entry.protocol)
    wide = all(isinstance(side, (Special, AddressRange)) for side in (entry.source, entry.destination))
    return echo is not None and wide and entry.source_port.contains(echo)


def _is_many(spec: AddressSpec) -> bool:
    if not isinstance(spec, AddressRange):
        return False
    return spec == _BROADCAST or any(cast.covers(spec) for cast in _MULTICAST)


def _is_ike(ports: PortRange) -> bool:
    return ports.start == ports.end and ports.start in (IKE_PORT, NATT_PORT)
