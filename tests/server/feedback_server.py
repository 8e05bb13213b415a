"""A server of an index in a folder, as a process that a test kills: it prints its URL when it accepts connections."""

from __future__ import annotations

import sys
from pathlib import Path

from m3_integrations.index.local.index import LocalIndex
from m3_integrations.server.http.app import create_app
from m3_integrations.server.process import serve
from m3_integrations.server.settings import ServerSettings
from m3_integrations.testing import HashEncoder

ENCODER = HashEncoder(16, 8, 128)


def main(folder: Path) -> None:
    settings = ServerSettings(port=0)
    with LocalIndex.open(folder, ENCODER) as index:
        serve(create_app(ENCODER, {"notes": index}, settings), settings, lambda url: print(url, flush=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
