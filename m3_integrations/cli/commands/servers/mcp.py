"""`m3 mcp`: an MCP server over an index."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from m3_integrations.cli.commands.servers.options import (
    AllowedHosts,
    ApiKey,
    Host,
    Port,
    open_indexes,
    server_settings,
)
from m3_integrations.cli.options import Folder, IndexModel, TopK, check_k
from m3_integrations.cli.output import CommandResult, terminal


def mcp(
    folder: Folder,
    write: Annotated[
        bool,
        typer.Option(
            "--write",
            help="Let the assistant add, delete and judge passages (remember, forget, feedback); create a new index.",
        ),
    ] = False,
    http: Annotated[
        bool, typer.Option("--http", help="Serve streamable HTTP at /mcp instead of stdin and stdout.")
    ] = False,
    k: TopK = 10,
    model: IndexModel = None,
    host: Host = "127.0.0.1",
    port: Port = 8761,
    api_key: ApiKey = None,
    allowed_hosts: AllowedHosts = None,
) -> None:
    """Serve an index to assistants over MCP. They get the tools search and fetch."""
    check_k(k)
    settings = server_settings(host, port, api_key, allowed_hosts)
    from m3_integrations.core.optional import import_optional

    import_optional("mcp", extra="serve")
    from m3_integrations.server import create_mcp_app, create_mcp_server, serve

    with open_indexes([folder], model, can_be_empty=write) as (encoder, indexes):
        ((name, index),) = indexes.items()
        server = create_mcp_server(encoder, index, name=name, k=k, can_write=write)
        if not http:
            terminal.note(f"{len(index):,} passages of {name}; serving MCP on stdin and stdout")
            with _client_may_leave():
                server.run("stdio")
            return

        def announce(url: str) -> None:
            data = {"url": f"{url}/mcp", "model": encoder.name, "fingerprint": encoder.fingerprint, "index": name}
            terminal.show("mcp", CommandResult(data, lambda: terminal.print(f"{name} at {url}/mcp")))
            terminal.note("stop with Ctrl-C")

        serve(create_mcp_app(server, settings), settings, announce)


@contextmanager
def _client_may_leave() -> Iterator[None]:
    """Raise BrokenPipeError alone, without its group of tasks, if the client stops reading."""
    try:
        yield
    except BaseExceptionGroup as group:
        if group.split(BrokenPipeError)[1] is not None:
            raise
        raise BrokenPipeError(errno.EPIPE, "the client stopped reading") from group
