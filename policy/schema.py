"""The shape of a config file's tables: which keys there are, of which type, and what their text may mean.

Each table is validated by itself, so that one mistake does not hide another; ``policy.config`` joins them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

from policy.clock import Nanos
from policy.model import AddressSpec, SecurityMethod, TunnelEndpoint
from policy.problems import TextError, quoted
from policy.proposals import Group, Proposal
from policy.selectors import PortRange
from policy.suites import parse_group, parse_ike_proposal, parse_method
from policy.texts import (
    parse_address,
    parse_duration,
    parse_endpoint,
    parse_padding,
    parse_ports,
    parse_protocol,
    parse_size,
)

_T = TypeVar("_T")


def _meaning(parse: Callable[[Any], _T], *, text_only: bool = True) -> PlainValidator:
    """Return a validator that turns the written value into what it means."""

    def validate(value: object) -> _T:
        if text_only and not isinstance(value, str):
            raise PydanticCustomError("string_type", "must be a text")
        try:
            return parse(value)
        except TextError as error:
            raise PydanticCustomError(
                "meaning", "{message}", {"message": error.message, "hint": error.hint}
            ) from None

    return PlainValidator(validate)


def _name(text: str) -> str:
    if not text.strip():
        raise TextError("a name cannot be empty", "write the name that rules use")
    if text == "<Dynamic>":
        raise TextError(f"{quoted(text)} is the name of the default response rule", "choose another name")
    if not text.isprintable() or len(text) > 128:
        raise TextError(f"{quoted(text)} cannot be a name", "use up to 128 printable characters on one line")
    return text


def _identity(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text.encode("utf-8", "replace")) > 256:
        raise TextError(
            f"{quoted(text)} cannot be an identity",
            'write an address, "host.example", "user@host.example" or "keyid:..."',
        )
    if text == "keyid:":
        raise TextError('"keyid:" has nothing after the colon', "write the key id")
    if not text.isascii() and not text.startswith("keyid:"):
        raise TextError(f"{quoted(text)} is not ASCII", 'write the "xn--" form of the name')
    return text


def _interface(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", text) or text in (".", ".."):
        raise TextError(
            f"{quoted(text)} cannot be an interface name", 'use up to 15 letters and digits, such as "mg0"'
        )
    return text


def _path(text: str) -> str:
    if not text or "\0" in text or not text.isprintable():
        raise TextError(f"{quoted(text)} is not a path", "write the path of a file")
    return text


def _listen_address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    try:
        bracketed = host.startswith("[") and host.endswith("]")
        address = ip_address(host[1:-1] if bracketed else host)
        if not colon or bracketed != (address.version == 6):
            raise ValueError(text)
    except ValueError:
        raise TextError(
            f"{quoted(text)} is not an address with a port", 'write "127.0.0.1:9476" or "[::1]:9476"'
        ) from None
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise TextError(f"{quoted(port)} is not a port", "ports are 1 to 65535")
    return text


Name = Annotated[str, _meaning(_name)]
IdentityText = Annotated[str, _meaning(_identity)]
PathText = Annotated[str, _meaning(_path)]
Duration = Annotated[Nanos, _meaning(parse_duration, text_only=False)]
Size = Annotated[int, _meaning(parse_size, text_only=False)]
Address = Annotated[AddressSpec, _meaning(parse_address)]
Ports = Annotated[PortRange, _meaning(parse_ports, text_only=False)]


class Table(BaseModel):
    """One TOML table. Unknown keys are errors; nothing is converted silently."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=True
    )


class TopTable(Table):
    """The file itself; its values are tables that are validated one by one."""

    agent: Any = None
    policy: Any = None
    filter_list: Any = None
    filter_action: Any = None


class AgentTable(Table):
    """[agent]"""

    assigned: str | None = None
    control: PathText = "/run/mirrorgate/control.sock"
    tun: Annotated[str, _meaning(_interface)] = "mg0"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["human", "json"] = "human"
    metrics: Annotated[str, _meaning(_listen_address)] | None = None
    offload: Literal["auto", "off"] = "auto"
    authentication: Any = None


class IkeTable(Table):
    """ike = { ... } of a policy"""

    version: Literal[1, 2] = 2
    preset: Literal["windows-2003"] | None = None
    proposals: list[Annotated[Proposal, _meaning(parse_ike_proposal)]] | None = Field(
        default=None, min_length=1, max_length=16
    )
    lifetime: Duration | None = None
    #: A duration, or "off".
    liveness: Annotated[
        Nanos | None, _meaning(lambda v: None if v == "off" else parse_duration(v), text_only=False)
    ] = 30_000_000_000
    fragment_size: int = Field(default=1280, ge=576, le=65535)


class PolicyTable(Table):
    """[[policy]]"""

    name: Name
    description: str = ""
    ike: Any = None
    default_response: bool = False
    local_id: IdentityText | None = None
    authentication: Any = None
    rule: Any = None


class RuleTable(Table):
    """[[policy.rule]]"""

    name: Name
    filter_list: str
    filter_action: str
    tunnel_endpoint: Annotated[TunnelEndpoint | None, _meaning(parse_endpoint)] = None
    connection_type: Literal["all", "lan", "remote-access"] = "all"
    authentication: Any = None
    active: bool = True
    description: str = ""


class FilterListTable(Table):
    """[[filter_list]]"""

    name: Name
    description: str = ""
    filter: Any = None


class FilterTable(Table):
    """[[filter_list.filter]]"""

    source: Address
    destination: Address
    protocol: Annotated[int, _meaning(parse_protocol, text_only=False)] = 0
    source_port: Ports = PortRange(0, 65535)
    destination_port: Ports = PortRange(0, 65535)
    icmp_type: Any = None
    icmp_code: Any = None
    mirrored: bool = True
    description: str = ""


class FilterActionTable(Table):
    """[[filter_action]]"""

    name: Name
    description: str = ""
    action: Literal["permit", "block", "negotiate"]
    preset: Literal["windows-2003", "windows-2003-request", "windows-2003-response"] | None = None
    methods: list[Annotated[SecurityMethod, _meaning(parse_method)]] | None = Field(
        default=None, min_length=1, max_length=16
    )
    lifetime: Any = None
    pfs: Annotated[Group | None, _meaning(parse_group)] = None
    inbound_clear: bool = False
    fallback_clear: bool = False
    encapsulation: Literal["auto", "udp", "none"] = "auto"
    replay_window: int = Field(default=1024, ge=64, le=8192)
    traffic_padding: Annotated[int, _meaning(parse_padding, text_only=False)] = 0
    dummy_packets: int = Field(default=0, ge=0, le=100)


class LifetimeTable(Table):
    """lifetime = { ... } of a filter action"""

    time: Duration | None = None
    bytes: Size | None = None


class PskTable(Table):
    """{ method = "psk", ... }"""

    method: Literal["psk"]
    secret: str | None = Field(default=None, repr=False)
    secret_file: PathText | None = None
    secret_env: Annotated[str | None, _meaning(_path)] = None
    remote_id: IdentityText | None = None


class CertificateTable(Table):
    """{ method = "certificate", ... }"""

    method: Literal["certificate"]
    certificate: PathText
    key: PathText
    ca: PathText
    remote_id: IdentityText | None = None


class KerberosTable(Table):
    """{ method = "kerberos" }"""

    method: Literal["kerberos"]
    remote_id: IdentityText | None = None
