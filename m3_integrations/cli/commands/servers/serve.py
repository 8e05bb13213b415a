"""`m3 serve`: an HTTP server over a model and indexes."""

from __future__ import annotations

from pathlib import Path
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
from m3_integrations.cli.options import IndexModel
from m3_integrations.cli.output import CommandResult, terminal


def serve(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="INDEX", help="Folders of indexes of one model; none only encodes.")
    ] = None,
    model: IndexModel = None,
    host: Host = "127.0.0.1",
    port: Port = 8760,
    api_key: ApiKey = None,
    allowed_hosts: AllowedHosts = None,
    max_texts: Annotated[int, typer.Option("--max-texts", help="Most texts of a request.")] = 256,
    max_body: Annotated[int, typer.Option("--max-body", help="Most bytes of a request.")] = 2 << 20,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds in which a request is answered.")] = 60.0,
    keep_queries: Annotated[
        bool, typer.Option(help="Record feedback with the texts of queries; without them, nothing is learned from it.")
    ] = True,
    forget_after: Annotated[
        float | None,
        typer.Option(help="Days after which feedback and the questions learned from are deleted; by default never."),
    ] = None,
) -> None:
    """Serve a model and indexes over HTTP. Other processes encode and search with it, until Ctrl-C."""
    limits = {"max_texts": max_texts, "max_body": max_body, "request_timeout": timeout}
    memory = {"keeps_queries": keep_queries, "forget_after": forget_after}
    settings = server_settings(host, port, api_key, allowed_hosts, **limits, **memory)
    from m3_integrations.server import create_app, serve

    with open_indexes(folders or [], model) as (encoder, indexes):
        counts = {name: len(index) for name, index in indexes.items()}

        def announce(url: str) -> None:
            data = {"url": url, "model": encoder.name, "fingerprint": encoder.fingerprint, "indexes": counts}
            terminal.show("serve", CommandResult(data, lambda: terminal.print(f"{encoder.name} at {url}")))
            terminal.note(f"endpoints: {url}/docs; stop with Ctrl-C")

        serve(create_app(encoder, indexes, settings), settings, announce)
