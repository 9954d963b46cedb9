"""Prometheus metrics over HTTP, when ``agent.metrics`` names an address: configured against up, and every drop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from tunnel.host.system import HostError

_MAX_REQUEST = 4096
_TIMEOUT_S = 5


def render(status: Mapping[str, object]) -> str:
    """Return the status object as Prometheus text: no label whose values a peer can choose or grow."""
    rules, peers, children = (_rows(status, name) for name in ("rules", "peers", "children"))
    entries = [
        entry for rule in rules for entry in _rows(rule, "entries") if entry.get("disposition") == "protect"
    ]
    drops = status.get("drops")
    lines = [
        "# TYPE mirrorgate_entries_configured gauge",
        f"mirrorgate_entries_configured {len(entries)}",
        "# TYPE mirrorgate_entries_up gauge",
        f"mirrorgate_entries_up {sum(entry.get('state') == 'up' for entry in entries)}",
        "# TYPE mirrorgate_peers_configured gauge",
        f"mirrorgate_peers_configured {len(peers)}",
        "# TYPE mirrorgate_peers_up gauge",
        f"mirrorgate_peers_up {sum(peer.get('state') == 'up' for peer in peers)}",
        "# TYPE mirrorgate_child_sas gauge",
        f"mirrorgate_child_sas {len(children)}",
        "# TYPE mirrorgate_held_packets gauge",
        f"mirrorgate_held_packets {status.get('held', 0)}",
        "# TYPE mirrorgate_drops_total counter",
    ]
    for reason, count in sorted(drops.items()) if isinstance(drops, dict) else ():
        lines.append(f'mirrorgate_drops_total{{reason="{reason}"}} {count}')
    lines.append("# TYPE mirrorgate_ike_messages_total counter")
    ignored, errors = status.get("ike"), status.get("errors")
    for what, count in sorted(ignored.items()) if isinstance(ignored, dict) else ():
        lines.append(f'mirrorgate_ike_messages_total{{outcome="{what}"}} {count}')
    lines.append("# TYPE mirrorgate_socket_errors_total counter")
    for what, count in sorted(errors.items()) if isinstance(errors, dict) else ():
        lines.append(f'mirrorgate_socket_errors_total{{kind="{what}"}} {count}')
    return "\n".join([*lines, ""])


async def serve(address: str, status: Callable[[], Mapping[str, object]]) -> asyncio.Server:
    """Answer GET /metrics on ``host:port``. HostError when the address cannot be bound."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _TIMEOUT_S)
            found = head.startswith((b"GET /metrics ", b"GET /metrics?"))
            body = (render(status()) if found else "metrics are at /metrics\n").encode()
            code = "200 OK" if found else "404 Not Found"
            writer.write(
                f"HTTP/1.1 {code}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {len(body)}\r\n"
                "Connection: close\r\n\r\n".encode()
                + body
            )
            await asyncio.wait_for(writer.drain(), _TIMEOUT_S)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    host, _, port = address.rpartition(":")
    try:
        return await asyncio.start_server(answer, host.strip("[]"), int(port), limit=_MAX_REQUEST)
    except OSError as error:
        raise HostError(f"metrics cannot be served on {address}: {error.strerror or error}") from error


def _rows(table: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    rows = table.get(name)
    return rows if isinstance(rows, list) else []
