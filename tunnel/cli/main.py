"""The ``mirrorgate`` command. Exit status: 0 done, 1 failed, 2 usage or bad config."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import Any, NoReturn

from policy.compile import compile_policy
from policy.explain import explain
from policy.model import Configuration
from policy.order import effective_order
from policy.problems import ConfigErrors, TextError, quoted, suggestion
from policy.selectors import AddressRange
from policy.spd import Snapshot
from policy.store.files import load_file
from policy.texts import parse_flow
from tunnel.agent.control import RequestError
from tunnel.agent.policies import AssignedPolicy, NoSuchPolicy, Policies, servers_of
from tunnel.cli import capture, rehearse, render
from tunnel.cli.client import AgentError, call, follow
from tunnel.host import addresses, names
from tunnel.host.system import HostError
from tunnel.version import VERSION

DONE, FAILED, USAGE = 0, 1, 2
_CONTROL = FilePath("/run/mirrorgate/control.sock")

_EXAMPLES = """\
examples:
  mirrorgate check configs/site-a.toml              is this file right, and in which order do its filters match?
  mirrorgate run configs/site-a.toml                protect what it says, in the foreground
  mirrorgate status                                 what is up, what is not and why, what was dropped
  mirrorgate explain tcp 10.1.0.5:4000 10.2.0.9:443 what happens to this flow?
  mirrorgate initiate "LAN to LAN"                  negotiate now instead of with the first packet
"""


_EXAMPLES_OF = {
    "run": ("mirrorgate run /etc/mirrorgate/gateway.toml",),
    "check": ("mirrorgate check configs/site-a.toml configs/site-b.toml",),
    "rehearse": (
        "mirrorgate rehearse site-a.toml site-b.toml",
        "mirrorgate rehearse web-client.toml web-server.toml --a-address 10.9.0.1 --b-address 10.9.0.2",
        "mirrorgate rehearse a.toml b.toml --flow 'tcp 10.1.0.5:4000 10.2.0.9:443'",
    ),
    "capture": (
        "mirrorgate capture /root/tunnel.pcapng --seconds 30",
        'mirrorgate capture /root/tunnel.pcapng --rule "LAN to LAN" --count 100',
        "WIRESHARK_CONFIG_DIR=/root/tunnel.pcapng.keys tshark -r /root/tunnel.pcapng",
    ),
    "status": (
        "mirrorgate status",
        "mirrorgate status --json | jq '.rules[].entries[].state'",
    ),
    "events": ("mirrorgate events --last 20", "mirrorgate events --json | jq 'select(.level == \"warning\")'"),
    "explain": (
        "mirrorgate explain tcp 10.1.0.5:4000 10.2.0.9:443",
        "mirrorgate explain icmp 10.1.0.5 10.2.0.9",
        "mirrorgate explain udp [fd00:1::5]:4000 [fd00:2::9]:53 --config site-a.toml",
    ),
    "initiate": ('mirrorgate initiate "LAN to LAN"', 'mirrorgate initiate "HTTP" 10.9.0.2 --timeout 5'),
    "rekey": ("mirrorgate rekey", 'mirrorgate rekey "LAN to LAN" --ike'),
    "terminate": ('mirrorgate terminate "LAN to LAN"',),
    "assign": ('mirrorgate assign "Server (Request Security)"',),
}


class _Parser(argparse.ArgumentParser):
    """Says what was meant when a command is misspelt."""

    def error(self, message: str) -> NoReturn:
        """Exit 2 with one sentence and, where it helps, the usage."""
        found = re.search(r"argument COMMAND: invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if message.endswith("required: COMMAND"):
            self.exit(USAGE, self.format_help())
        if found is None:
            super().error(message)
        word, known = found[1], re.findall(r"[a-z]+", found[2])
        said = f"there is no command {quoted(word)}: {suggestion(word, known, what='command')}"
        self.exit(USAGE, f"{self.prog}: {said} ({self.prog} --help tells what each does)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except ConfigErrors as error:
        return _complain(str(error), USAGE)
    except (NoSuchPolicy, TextError) as error:
        return _complain(f"mirrorgate: {error}", USAGE)
    except (AgentError, HostError, RequestError) as error:
        return _complain(f"mirrorgate: {error}", FAILED)
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # what is left in the buffer has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return FAILED


def _run(options: argparse.Namespace) -> int:
    from tunnel.agent import agent  # noqa: PLC0415 (uvloop, pytun: only the agent needs them)

    agent.run(AssignedPolicy(options.config))
    return DONE


def _check(options: argparse.Namespace) -> int:
    """Check each file as ``run`` would; the mistakes of all are shown."""
    worst, report = DONE, []
    for path in options.config:
        try:
            loaded = load_file(path)
            snapshots = _compile_all(loaded.configuration)
        except ConfigErrors as error:
            worst = USAGE
            report.append({"file": str(path), "ok": False, "errors": str(error).splitlines()})
            if not options.json:
                print(error, file=sys.stderr)
            continue
        warnings = [*map(str, loaded.warnings), *(w for snapshot in snapshots for w in snapshot.warnings)]
        report.append(
            {
                "file": str(path), "ok": True, "warnings": warnings,
                "assigned": loaded.configuration.agent.assigned,
                "policies": {str(snapshot.policy): _order_rows(snapshot) for snapshot in snapshots},
            }
        )  # fmt: skip
        if not options.json:
            _print_checked(path, loaded.configuration, snapshots, warnings)
    if options.json:
        print(json.dumps(report, indent=2))
    return worst


def _compile_all(configuration: Configuration) -> list[Snapshot]:
    """Compile the assigned policy, or every policy of the file when none is assigned."""
    host = addresses.current(configuration.agent.tun)
    policies = Policies(configuration)
    assigned = configuration.agent.assigned
    wanted = [assigned] if assigned else [policy.name for policy in configuration.policies]
    compiled = []
    for name in wanted:
        found = {known: answer.addresses for known, answer in names.resolve(policies.dns_names(name)).items()}
        compiled.append(
            compile_policy(
                policies.policy(name),
                generation=1,
                local_addresses=host.addresses,
                local_networks=host.networks,
                resolve=found.__getitem__,
                servers=servers_of(policies.policy(name)),
            )
        )
    return compiled


def _order_rows(snapshot: Snapshot) -> list[dict[str, object]]:
    return [{name: getattr(row, name) for name in row.__slots__} for row in effective_order(snapshot)]


def _print_checked(
    path: FilePath, configuration: Configuration, snapshots: Sequence[Snapshot], warnings: Sequence[str]
) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    assigned = configuration.agent.assigned
    print(f"{path}: OK" + ("" if assigned else " (no policy is assigned: set agent.assigned to put one in force)"))
    for snapshot in snapshots:
        print(f'\nPolicy "{snapshot.policy}": filters in the order in which they match on this host')
        print(render.order(effective_order(snapshot)))


def _status(options: argparse.Namespace) -> int:
    size = shutil.get_terminal_size((100, 24))
    lines = size.lines - 1 if sys.stdout.isatty() else None
    answer = call(options.control, "status")
    return _show(options, answer, lambda a: render.status(a, lines=lines, width=size.columns))


def _monitor(options: argparse.Namespace) -> int:
    from tunnel.cli import monitor  # noqa: PLC0415 (textual: half a second, and nothing else needs it)

    monitor.run(options.control)
    return DONE


def _events(options: argparse.Namespace) -> int:
    for record in follow(options.control, options.last):
        print(json.dumps(record) if options.json else render.event(record), flush=True)
    return DONE


def _explain(options: argparse.Namespace) -> int:
    flow = parse_flow(options.protocol, options.source, options.destination)
    if options.config is None:
        request = {
            "protocol": flow.protocol,
            "source": str(AddressRange(flow.version, flow.source, flow.source)),
            "destination": str(AddressRange(flow.version, flow.destination, flow.destination)),
            "source_port": flow.source_port,
            "destination_port": flow.destination_port,
        }
        return _show(options, call(options.control, "explain", request), render.explanation)
    configuration = load_file(options.config).configuration
    snapshots = _compile_all(configuration)
    snapshot = snapshots[0] if configuration.agent.assigned else Snapshot(generation=0)
    return _show(options, explain(snapshot, flow).to_dict(), render.explanation)


def _initiate(options: argparse.Namespace) -> int:
    arguments = {"rule": options.rule, "host": options.host, "timeout": options.timeout}
    to = f" with {options.host}" if options.host else ""
    return _show(options, call(options.control, "initiate", arguments), lambda _: f'"{options.rule}" is up{to}')


def _rekey(options: argparse.Namespace) -> int:
    what = "IKE SAs of" if options.ike else "Child SAs"
    answer = call(options.control, "rekey", {"target": options.rule, "ike": options.ike})
    return _show(
        options, answer, lambda a: f"rekeying {what} {', '.join(map(str, a['rekeying'])) or '(none is up)'}"
    )


def _terminate(options: argparse.Namespace) -> int:
    answer = call(options.control, "terminate", {"target": options.rule})
    return _show(
        options, answer, lambda a: f"deleted Child SAs {', '.join(map(str, a['terminated'])) or '(none was up)'}"
    )


def _reload(options: argparse.Namespace) -> int:
    return _show(options, call(options.control, "reload"), _in_force)


def _assign(options: argparse.Namespace) -> int:
    return _show(options, call(options.control, "assign", {"name": options.name}), _in_force)


def _unassign(options: argparse.Namespace) -> int:
    return _show(options, call(options.control, "unassign"), _in_force)


def _version(options: argparse.Namespace) -> int:
    return _show(options, {"version": VERSION}, lambda a: f"mirrorgate {a['version']}")


def _in_force(answer: dict[str, Any]) -> str:
    policy = answer["policy"]
    return f'policy "{policy}" is in force' if policy else "no policy is in force"


def _show(options: argparse.Namespace, answer: dict[str, Any], text: Callable[[dict[str, Any]], str]) -> int:
    print(json.dumps(answer, indent=2) if options.json else text(answer))
    return DONE


def _complain(text: str, status: int) -> int:
    print(text, file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mirrorgate",
        description="Policy-driven IPsec in user space: filters decide what is permitted, blocked or protected.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mirrorgate {VERSION}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str, *, agent: bool = True) -> Any:
        examples = "".join(f"  {line}\n" for line in _EXAMPLES_OF.get(name, ()))
        command = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"examples:\n{examples}" if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        command.add_argument("--json", action="store_true", help="print JSON")
        if agent:
            command.add_argument(
                "--control",
                type=FilePath,
                default=_CONTROL,
                metavar="PATH",
                help=f"the agent's socket ({_CONTROL})",
            )
        return command

    command = add(
        "run", _run, "run the agent in the foreground until SIGTERM; SIGHUP reads the file again", agent=False
    )
    command.add_argument("config", type=FilePath, metavar="CONFIG")
    command = add("check", _check, "check config files and show the effective order of their filters", agent=False)
    command.add_argument("config", type=FilePath, metavar="CONFIG", nargs="+")
    _add_trials(add)
    add("status", _status, "show policy, peers, SAs, and what was dropped and why")
    add("monitor", _monitor, "watch SAs, throughput, drops and events live on the terminal")
    command = add("events", _events, "follow what happens, an event a line, until Ctrl-C or the agent's end")
    command.add_argument(
        "--last", type=int, default=0, metavar="N", help="begin with the last N events, of 100 that are kept (0)"
    )
    command = add(
        "explain", _explain, "explain what happens to a flow: which filter, rule, action and SA, and why"
    )
    command.add_argument("protocol", metavar="PROTO", help="tcp, udp, icmp, ... or a number")
    command.add_argument("source", metavar="SRC[:PORT]", help="10.1.0.5:4000, fd00:1::5 or [fd00:1::5]:4000")
    command.add_argument("destination", metavar="DST[:PORT]")
    command.add_argument(
        "--config", type=FilePath, metavar="FILE", help="ask this file instead of the running agent"
    )
    _add_actions(add)
    add("version", _version, "show the version", agent=False)
    return parser


def _add_actions(add: Callable[..., Any]) -> None:
    """Add the commands that change what is up or in force."""
    command = add("initiate", _initiate, "negotiate the SAs of a rule now")
    command.add_argument("rule", metavar="RULE")
    command.add_argument(
        "host", metavar="HOST", nargs="?", help="with which host, where the rule secures each host by itself"
    )
    command.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="how long to wait (30)")
    command = add("rekey", _rekey, "replace the Child SAs of a rule (or of all) by fresh ones")
    command.add_argument("rule", metavar="RULE", nargs="?")
    command.add_argument("--ike", action="store_true", help="rekey the IKE SA with the rule's peer instead")
    command = add("terminate", _terminate, "delete the SAs of a rule (or all); the next packet negotiates anew")
    command.add_argument("rule", metavar="RULE", nargs="?")
    add("reload", _reload, "read the config file again; a file with mistakes changes nothing")
    command = add("assign", _assign, "put another policy of the file in force, until reload or restart")
    command.add_argument("name", metavar="NAME")
    add("unassign", _unassign, "put no policy in force: everything passes in clear")


def _add_trials(add: Callable[..., Any]) -> None:
    """Add the commands for looking closely: before a policy is in force, and at its packets."""
    command = add(
        "rehearse", rehearse.run, "let two configs negotiate with each other, without network or root", agent=False
    )
    command.add_argument("one", type=FilePath, metavar="A.toml")
    command.add_argument("other", type=FilePath, metavar="B.toml")
    for end in ("a", "b"):
        command.add_argument(
            f"--{end}-address", action="append", default=[], metavar="ADDRESS", help=f"an address of {end.upper()}"
        )
    command.add_argument(
        "--flow", action="append", default=[], metavar="FLOW", help='also this: "tcp 10.1.0.5:4000 10.2.0.9:443"'
    )
    command = add(
        "capture", capture.run, "write packets inside and outside the SAs to a file, and the keys beside it"
    )
    command.add_argument("file", type=FilePath, metavar="FILE.pcapng")
    command.add_argument("--rule", metavar="RULE", help="what serves this rule alone")
    command.add_argument(
        "--count", type=int, default=10_000, metavar="N", help="end after so many packets (10000)"
    )
    command.add_argument("--seconds", type=float, default=60.0, metavar="S", help="end after this time (60)")


if __name__ == "__main__":
    sys.exit(main())
