"""The ``authentication`` of a rule: preshared keys from their files, and methods that only later versions know."""

from __future__ import annotations

import shlex
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from policy.model import AuthenticationMethod, CertificateAuth, PresharedKey
from policy.positions import KeyPath
from policy.problems import nearest, quoted
from policy.schema import CertificateTable, KerberosTable, PskTable
from policy.secret import Secret
from policy.tables import TableReader, type_name

_KINDS = ("psk", "certificate", "kerberos")
#: A preshared key is never longer than this; a longer file is the wrong file.
_MAX_SECRET = 64 * 1024


@dataclass(frozen=True, slots=True)
class Sources:
    """Where secrets come from: a file's octets, a file's mode, an environment variable."""

    read: Callable[[FilePath], bytes]
    mode_of: Callable[[FilePath], int]
    environment: Callable[[str], str | None]


def read_authentication(
    reader: TableReader, sources: Sources, raw: object, path: KeyPath
) -> tuple[AuthenticationMethod, ...]:
    """Return the usable methods at *path* in order of preference, after noting what is wrong with them."""
    hint = 'write authentication = [{ method = "psk", secret_file = "..." }]'
    if isinstance(raw, dict):
        reader.error(reader.at_value(*path), '"authentication" must be an array, not a table', hint)
        return ()
    if raw == []:
        reader.error(reader.at_value(*path), '"authentication" is empty', hint)
    found = [
        _read_method(reader, sources, row, place) for place, row in reader.tables(raw, path, "authentication")
    ]
    return tuple(method for method in found if method is not None)


def _read_method(
    reader: TableReader, sources: Sources, raw: dict[str, Any], path: KeyPath
) -> AuthenticationMethod | None:
    match raw.get("method"):
        case "psk":
            return _read_psk(reader, sources, raw, path)
        case "certificate":
            return _read_certificate(reader, raw, path)
        case "kerberos":
            reader.read(KerberosTable, raw, path)
            reader.error(
                reader.at_value(*path, "method"),
                "kerberos authentication is not available in this version",
                'use { method = "psk", ... }',
            )
        case None:
            reader.error(reader.at_value(*path), "the authentication method has no name", 'add method = "psk"')
        case str() as name:
            near = nearest(name, _KINDS)
            hint = f'did you mean "{near}"?' if near else f"one of: {', '.join(_KINDS)}"
            reader.error(reader.at_value(*path, "method"), f"unknown authentication method {quoted(name)}", hint)
        case other:
            place = reader.at_value(*path, "method")
            reader.error(place, f'"method" must be a text, not {type_name(other)}', "put it in quotes")
    return None


def _read_certificate(reader: TableReader, raw: dict[str, Any], path: KeyPath) -> CertificateAuth | None:
    table = reader.read(CertificateTable, raw, path)
    if table is None:
        return None
    folder = reader.file.parent
    return CertificateAuth(
        certificate=folder / table.certificate,
        key=folder / table.key,
        ca=folder / table.ca,
        remote_id=table.remote_id,
        where=reader.at_value(*path),
    )


def _read_psk(reader: TableReader, sources: Sources, raw: dict[str, Any], path: KeyPath) -> PresharedKey | None:
    table = reader.read(PskTable, raw, path)
    if table is None:
        return None
    written = [key for key in ("secret", "secret_file", "secret_env") if getattr(table, key) is not None]
    if len(written) != 1:
        reader.error(
            reader.at_key(*path, written[1]) if written else reader.at_value(*path),
            f"{' and '.join(map(quoted, written))} are both there" if written else "the preshared key is missing",
            "keep exactly one of secret_file, secret_env and secret",
        )
        return None
    octets = _secret(reader, sources, table, path)
    if octets is None:
        return None
    if not octets.strip():
        reader.error(
            reader.at_value(*path, written[0]), "the preshared key is empty", "write the key that both sides know"
        )
        return None
    if "secret" in written and _open_to_others(sources, reader.file):
        message = "the config file holds this preshared key and can be read by others"
        reader.warn(
            reader.at_value(*path, "secret"),
            message,
            f"chmod 600 {shlex.quote(str(reader.file))}, or use secret_file",
        )
    if "secret" in written and b"\n" in octets:
        reader.warn(reader.at_value(*path, "secret"), "the preshared key contains a line end", "is it meant?")
    return PresharedKey(secret=Secret(octets), remote_id=table.remote_id, where=reader.at_value(*path, written[0]))


def _open_to_others(sources: Sources, file: FilePath) -> bool:
    try:
        return bool(sources.mode_of(file) & 0o077)
    except (OSError, ValueError):
        return False


def _secret(reader: TableReader, sources: Sources, table: PskTable, path: KeyPath) -> bytes | None:
    if table.secret is not None:
        return table.secret.encode("utf-8", "surrogatepass")
    if table.secret_env is not None:
        value = sources.environment(table.secret_env)
        if value is None:
            reader.error(
                reader.at_value(*path, "secret_env"),
                f"the environment variable {quoted(table.secret_env)} is not set",
                "set it for the agent, or use secret_file",
            )
            return None
        return value.encode("utf-8", "surrogateescape")
    return _secret_file(reader, sources, reader.file.parent / str(table.secret_file), path)


def _secret_file(reader: TableReader, sources: Sources, file: FilePath, path: KeyPath) -> bytes | None:
    where = reader.at_value(*path, "secret_file")
    name = quoted(str(file))
    try:
        mode = sources.mode_of(file)
        if not stat.S_ISREG(mode):
            reader.error(
                where, f"the secret file {name} is not a regular file", "name a file that holds the key only"
            )
            return None
        if mode & 0o077:
            reader.error(
                where,
                f"the secret file {name} can be used by others (mode {mode & 0o777:04o})",
                f"chmod 600 {shlex.quote(str(file))}",
            )
            return None
        octets = sources.read(file)
    except FileNotFoundError:
        reader.error(
            where,
            f"there is no secret file {name}",
            "create it with mode 0600; paths are relative to the config file",
        )
        return None
    except PermissionError:
        reader.error(where, f"the secret file {name} cannot be read: permission denied", "run as its owner")
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a path"
        reader.error(where, f"the secret file {name} cannot be read: {reason.lower()}", "check the path")
        return None
    if len(octets) > _MAX_SECRET:
        reader.error(where, f"the secret file {name} is larger than {_MAX_SECRET} octets", "is it the right file?")
        return None
    # Editors end a file with a line end; it is not part of the key.
    return octets.removesuffix(b"\n").removesuffix(b"\r")
