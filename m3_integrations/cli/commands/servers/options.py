"""Options, settings and indexes of the servers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m3_integrations.cli.opening import DEFAULT_MODEL, load_encoder, require_index
from m3_integrations.cli.options import UsageError

if TYPE_CHECKING:
    from m3_integrations import LocalIndex, M3Encoder
    from m3_integrations.server import ServerSettings

Host = Annotated[str, typer.Option("--host", help="Name or address to listen on; any but a loopback one needs a key.")]
Port = Annotated[int, typer.Option("--port", help="Port; 0 takes a free one.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="M3_API_KEY",
        help="Key that requests must send as a bearer token. Other users of the computer see options; prefer the "
        "environment variable.",
    ),
]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed-host", metavar="NAME", help="Another name by which clients address the server; repeatable."
    ),
]


def server_settings(
    host: str, port: int, api_key: str | None, allowed_hosts: Sequence[str] | None, **limits: float | None
) -> ServerSettings:
    """Return the settings of a server.

    Raises:
        UsageError: If they are invalid, or the host is not loopback and there is no key.
    """
    from m3_integrations.server import ServerSettings

    try:
        return ServerSettings(host, port, api_key or None, tuple(allowed_hosts or ()), **limits)  # type: ignore[arg-type]  # typer checks them
    except ValueError as error:
        raise UsageError(str(error)) from error


@contextmanager
def open_indexes(
    folders: Sequence[Path], model: str | None, *, can_be_empty: bool = False
) -> Iterator[tuple[M3Encoder, dict[str, LocalIndex]]]:
    """Open indexes of one model, by the names of their folders.

    Args:
        folders: Folders of the indexes.
        model: Name of the model; None for that of the first index.
        can_be_empty: Also open indexes without passages, and create those that are missing.

    Raises:
        FileNotFoundError: If an index is missing or holds no passages.
        UsageError: If two folders have the same name.
        WrongEncoder: If they have different models.
    """
    from m3_integrations import LocalIndex, M3Encoder

    names = [Path(os.path.abspath(folder)).name for folder in folders]  # noqa: PTH100  # keeps links, and names "."
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two folders are named {twice!r}; rename one, since clients choose an index by its name")
    if not can_be_empty:
        for folder in folders:
            require_index(folder)
    encoder = load_encoder(folders[0], model) if folders else M3Encoder.from_pretrained(model or DEFAULT_MODEL)
    with ExitStack() as stack:
        opened = [stack.enter_context(LocalIndex.open(folder, encoder)) for folder in folders]
        yield encoder, dict(zip(names, opened, strict=True))
