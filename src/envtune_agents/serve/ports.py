"""The address a server listens at, taken before minutes go into loading weights."""

from __future__ import annotations

import errno
import socket

from envtune_agents.errors import ServerError


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket bound to `host` and `port` (0: a free one); `ServerError` when that cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        raise ServerError(_why(host, port, error)) from error
    taken.set_inheritable(True)
    return taken


def check_port(host: str, port: int) -> None:
    """Raises `ServerError` when something listens there already, or the address is not this machine's."""
    listening_socket(host, port).close()


def _why(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} of {host} is in use: another server runs there. Stop it, or choose another port, such as "
            f"--port {port + 1}."
        )
    if error.errno == errno.EACCES:
        return f"Port {port} needs special rights here. Choose one from 1024 up, such as --port 8000."
    return f"Cannot listen at {host}:{port} ({error.strerror or error}). Wanted: an address of this machine."
