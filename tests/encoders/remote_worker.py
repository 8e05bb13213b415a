"""The work of a process that shares a server; a module of its own, so that spawning it imports little."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

from m3_integrations.encoders.remote import RemoteEncoder


def send_vectors(remote: RemoteEncoder, connection: Connection) -> None:
    vectors = remote.encode_passages(["the old bridge"]).dense.tobytes()
    connection.send((vectors, "torch" in sys.modules))
    connection.close()
