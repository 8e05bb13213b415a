"""Run an application until it is told to stop."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from m3_integrations.server.settings import ServerSettings

_BACKLOG = 1024


def serve(app: ASGIApp, settings: ServerSettings, on_start: Callable[[str], None] = lambda _: None) -> None:
    """Serve an application until SIGINT or SIGTERM.

    A shutdown accepts no more connections and waits for the requests in progress.

    Args:
        app: Application of `create_app`.
        settings: Address and time-outs.
        on_start: Called with the URL when connections are accepted.

    Raises:
        OSError: If the address is not free.
    """
    with listen(settings) as listener:
        create_server(app, settings, partial(on_start, url_of(listener, settings))).run(sockets=[listener])


def create_server(
    app: ASGIApp, settings: ServerSettings, on_start: Callable[[], None] = lambda: None
) -> uvicorn.Server:
    """Return uvicorn's server of an application; `should_exit = True` stops it.

    Args:
        app: Application of `create_app`.
        settings: Time-outs.
        on_start: Called when connections are accepted.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=5,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout)),
    )
    return _AnnouncingServer(config, on_start)


def listen(settings: ServerSettings) -> socket.socket:
    """Return a socket that listens on the address of the settings.

    Raises:
        OSError: If the address is not free, or is none of this computer.
    """
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}; choose another --port"
        ) from error


def url_of(listener: socket.socket, settings: ServerSettings) -> str:
    """Return the URL of a listening socket."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listener.getsockname()[1]}"


class _AnnouncingServer(uvicorn.Server):
    """A server that calls a function when it has started."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start()
