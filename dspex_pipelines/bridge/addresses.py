"""Addresses: where a bridge may serve, which is a Unix socket or loopback, and what can be dialled."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from pathlib import Path
from urllib.parse import unquote

from dspex_pipelines.errors import InvalidValue

SOCKET_PATH_BYTES = 107
MOST_PORT = 65_535


def socket_path(address: str) -> Path | None:
    """Return the path of a ``unix:`` address, None for TCP."""
    return Path(address.removeprefix("unix:")) if address.startswith("unix:") else None


def check_address(address: str) -> None:
    """Raise `InvalidValue` unless *address* may be served without authentication."""
    path = socket_path(address)
    if path is not None:
        if not _is_socket(str(path)):
            raise InvalidValue(
                field="address", value=address, fix=f"give a socket path of 1 to {SOCKET_PATH_BYTES} bytes"
            )
        return
    host, colon, port = address.rpartition(":")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise InvalidValue(field="address", value=address, fix=f"write it with brackets: [{host}]:{port}")
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = False
    if not colon or not port.isdecimal() or not loopback:
        raise InvalidValue(
            field="address",
            value=address,
            fix="give unix:/path or a loopback host:port; without authentication nothing else is served",
        )
    if int(port) > MOST_PORT:
        raise InvalidValue(field="address", value=address, fix=f"give a port of at most {MOST_PORT:,}, or 0 for any")


def check_dialled(address: str, *, field: str = "address") -> None:
    """Raise `InvalidValue` for an *address* that nobody can be reached at, wherever they serve.

    gRPC would try it until time is over, and dial port 443 where there is none.
    """
    # gRPC takes blanks at the end, as a variable that was read from a file may have them.
    dialled = address.rstrip()
    scheme, _, rest = dialled.partition(":")
    match scheme.lower():
        case "unix" | "unix-abstract":
            sound = _is_socket(rest.removeprefix("//"))
        case "xds" | "google-c2p":
            sound = bool(rest)
        case "dns" | "vsock":
            sound = _has_port(rest) and not rest.startswith("::")
        case "ipv4" | "ipv6":
            # A list of them, of which any will do.
            sound = all(_has_port(one) and _is_number(one.rpartition(":")[0]) for one in rest.split(","))
        case _:
            host = dialled.rpartition(":")[0]
            bracketed = host.startswith("[") and _is_number(host)
            sound = _has_port(dialled) and "/" not in host and (bracketed or not set(":[]") & set(host))
    if not sound:
        fix = "give unix:/path or host:port, such as 127.0.0.1:50051 or [::1]:50051; gRPC's dns:///host:port will do"
        raise InvalidValue(field=field, value=address, fix=fix)


def _is_socket(path: str) -> bool:
    return bool(path.strip()) and "\0" not in path and len(os.fsencode(path)) <= SOCKET_PATH_BYTES


def _is_number(host: str) -> bool:
    """Whether *host* is an IPv4 address, or one of IPv6 in brackets, which may be written for URLs."""
    host = unquote(host)
    six = host.startswith("[") and host.endswith("]")
    try:
        return ipaddress.ip_address(host[1:-1] if six else host).version == (6 if six else 4)
    except ValueError:
        return False


def _has_port(address: str) -> bool:
    host, _, port = address.rpartition(":")
    port = port.lstrip("0")
    sound = port.isascii() and port.isdecimal() and len(port) <= len(str(MOST_PORT)) and 0 < int(port) <= MOST_PORT
    return sound and bool(host) and " " not in host


def check_free(address: str) -> None:
    """Raise `InvalidValue` unless *address* may be served and nobody serves there now."""
    check_address(address)
    path = socket_path(address)
    try:
        if path is None:
            _listen_once(address)
        else:
            _check_socket(path)
    except OSError as error:
        fix = f"nothing can be served there: {error.strerror or error}"
        if error.errno == errno.EADDRINUSE:
            fix = "it is in use; give another, or end what serves there (`dspex pool status` lists your pools)"
        raise InvalidValue(field="address", value=address, fix=fix) from error


def _listen_once(address: str) -> None:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    socket.create_server((host.strip("[]"), int(port)), family=family).close()


def _check_socket(path: Path) -> None:
    """Raise `OSError` where somebody listens at the path, or no socket can be made there."""
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, f"{path.parent} is no folder that can be written to")
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "there is a file that is no socket")
    with socket.socket(socket.AF_UNIX) as one, contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
        one.connect(str(path))
        raise OSError(errno.EADDRINUSE, "somebody listens there")


def why_unreachable(address: str, within_s: float) -> str:
    """Return why nobody takes a connection at *address*; empty where somebody does, or only gRPC can know."""
    path = socket_path(address)
    host, colon, port = address.rpartition(":")
    if path is None and not (colon and port.isdecimal() and "/" not in host):
        return ""
    try:
        if path is None:
            socket.create_connection((host.strip("[]"), int(port)), within_s).close()
        else:
            with socket.socket(socket.AF_UNIX) as one:
                one.settimeout(within_s)
                one.connect(str(path))
    except (OSError, OverflowError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""
