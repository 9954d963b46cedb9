"""Raw sockets: ESP and AH straight over IP, and whole packets out, many in one system call."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from policy.path import RAW_PORT, Endpoint, Path
from tunnel.dataplane.contract import Transmit, WireDatagrams
from tunnel.host import cmsg, mmsg
from tunnel.host.sockets import CUT_OFF, MAX_PATHS, PathMtuReport, WireSocket

#: Control messages without extension headers, whose octets anybody may choose, are no longer than this.
_PLAIN_CONTROL = 128


class RawSocket(WireSocket):
    """A raw socket of one IP *version* and *protocol*."""

    def __init__(self, version: int, protocol: int, *, offload: bool, path_mtu: PathMtuReport) -> None:
        super().__init__(version, RAW_PORT, protocol, offload=offload, path_mtu=path_mtu)
        self._outbox = mmsg.Outbox()
        self._arrival_paths: dict[tuple[bytes, bytes], Path] = {}
        self._said: dict[bytes, cmsg.Received] = {}

    def receive(self, limit: int, *, unseen: bool = True) -> list[WireDatagrams]:
        """Return what is ready: as many single datagrams as one system call takes, whatever *limit* says."""
        datagrams: list[WireDatagrams] = []
        take = self._take_v4 if self.version == 4 else self._take_v6
        try:
            arrivals = _inbox(self._control_space).receive(self.fd, mmsg.MOST)
        except OSError:
            self.receive_errors += 1
            return datagrams
        for data, name, control, flags in arrivals:
            item = None if flags & CUT_OFF else take(data, name, control)
            if item is None:
                self.receive_errors += 1
            else:
                datagrams.append(item)
        return datagrams

    def _take_v4(self, data: memoryview, name: bytes, control: bytes) -> WireDatagrams | None:
        """A raw IPv4 socket reads the IP header too."""
        start = (data[0] & 15) * 4 if len(data) else 0
        if start < 20 or len(data) < start:
            return None
        header = bytes(data[:start])
        path = self._path(name, header[16:20])
        if path is None:
            return None
        return WireDatagrams(path, bytes(data[start:]), 0, header[1], self.protocol, header)

    def _take_v6(self, data: memoryview, name: bytes, control: bytes) -> WireDatagrams | None:
        said = self._said.get(control)
        if said is None:
            said = cmsg.parse(mmsg.unpacked(control))
            if len(control) <= _PLAIN_CONTROL:
                if len(self._said) >= MAX_PATHS:
                    self._said.clear()
                self._said[control] = said
        path = self._path(name, said.local)
        if path is None:
            return None
        header = cmsg.header6(said, path.remote.address.packed, self.protocol, len(data))
        return WireDatagrams(path, bytes(data), 0, said.tos, self.protocol, header)

    def _path(self, name: bytes, local: bytes) -> Path | None:
        path = self._arrival_paths.get((name, local))
        if path is None:
            remote = mmsg.endpoint(name)
            if remote is None or not local:
                return None
            path = Path(Endpoint(cmsg.address(local), RAW_PORT), Endpoint(remote[0], RAW_PORT))
            if len(self._arrival_paths) >= MAX_PATHS:
                self._arrival_paths.clear()
            self._arrival_paths[name, local] = path
        return path

    def _singly(
        self, transmit: Transmit, ancillary: cmsg.Ancillary, target: tuple[str, int], refused: int | None
    ) -> Transmit | None:
        """Send what one call takes at a time; the first that fails, and what is behind it, one by one."""
        rest, taken = transmit.buffers, 1
        if len(rest) > 1:
            name, control = mmsg.sockaddr(transmit.path.remote.address, target[1]), mmsg.packed(ancillary)
            while rest and taken:
                taken = self._outbox.send(self.fd, rest, name, control)
                rest = rest[taken:]
        if not rest:
            return None
        return super()._singly(replace(transmit, buffers=rest), ancillary, target, refused)


@lru_cache(maxsize=2)
def _inbox(space: int) -> mmsg.Inbox:
    """One for all sockets: what it holds is copied before the next call."""
    return mmsg.Inbox(space)
