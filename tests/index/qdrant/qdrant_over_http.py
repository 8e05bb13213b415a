"""Qdrant's own engine behind the REST calls that QdrantIndex makes, so that the wire is tested without a server."""

from __future__ import annotations

import json
import re
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from qdrant_client import models

from m3_integrations.index.qdrant.backend import CollectionConfig, CollectionInfo, Point
from m3_integrations.index.qdrant.edge import EdgeBackend


class Server:
    """A server of one collection; it answers with the statuses in `failures` first."""

    def __init__(self, folder: Path, key: str | None = None) -> None:
        self.engine, self.key = EdgeBackend(folder), key
        self.config: dict[str, Any] | None = None
        self.failures: list[int] = []
        self.calls: list[str] = []

    @contextmanager
    def running(self) -> Iterator[str]:
        """Run the server; yields its URL."""
        http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            http.server_close()
            self.engine.close()

    def answer(self, call: str, body: dict[str, Any]) -> tuple[int, Any]:
        if call == "GET /collections/x":
            return (404, None) if self.config is None else (200, self._description())
        if call == "PUT /collections/x":
            return self._create(body)
        if call == "PATCH /collections/x":
            self.config = {**(self.config or {}), "metadata": body["metadata"]}
            return 200, True
        try:
            return 200, getattr(self, _CALLS[call])(body)
        except Exception:  # a mistake of the test; a retry would not help
            return 400, traceback.format_exc()

    def _create(self, body: dict[str, Any]) -> tuple[int, Any]:
        if self.config is not None:
            return 409, None
        self.config = body
        self.engine.create(CollectionInfo(body["metadata"]["m3_integrations"]["widths"]), CollectionConfig())
        return 200, True

    def _description(self) -> dict[str, Any]:
        config = self.config or {}
        params = {"vectors": config["vectors"], "sparse_vectors": config.get("sparse_vectors")}
        return {
            "status": "green",
            "optimizer_status": "ok",
            "segments_count": 1,
            "payload_schema": {},
            "config": {"params": params, "metadata": config["metadata"], **_DEFAULTS},
        }

    def index(self, body: dict[str, Any]) -> Any:
        self.engine.create_field_index(body["field_name"], models.PayloadSchemaType(body["field_schema"]))
        return _DONE

    def upsert(self, body: dict[str, Any]) -> Any:
        self.engine.upsert([Point(each["id"], _vectors(each["vector"]), each["payload"]) for each in body["points"]])
        return _DONE

    def replace(self, body: dict[str, Any]) -> Any:
        self.engine.replace([Point(each["id"], _vectors(each["vector"])) for each in body["points"]])
        return _DONE

    def delete(self, body: dict[str, Any]) -> Any:
        self.engine.delete(body["points"])
        return _DONE

    def retrieve(self, body: dict[str, Any]) -> Any:
        payload, vectors = body.get("with_payload") or [], body.get("with_vector") or []
        return [_record(each) for each in self.engine.records(body["ids"], payload, vectors)]

    def scroll(self, body: dict[str, Any]) -> Any:
        condition = models.Filter(**body["filter"]) if body.get("filter") else None
        pages = list(self.engine.pages(condition, body["with_payload"]))
        at = body.get("offset") or 0  # a server's offset is a point id; the client only returns it
        return {
            "points": [_record(each) for each in pages[at]],
            "next_page_offset": at + 1 if at + 1 < len(pages) else None,
        }

    def count(self, body: dict[str, Any]) -> Any:
        return {"count": self.engine.count()}

    def query(self, body: dict[str, Any]) -> Any:
        answers = self.engine.query([models.QueryRequest(**each) for each in body["searches"]])
        return [{"points": [{**_record(each), "score": each.score, "version": 0} for each in one]} for one in answers]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_any(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
                call = f"{self.command} {re.sub('/collections/[^/?]+', '/collections/x', self.path).partition('?')[0]}"
                server.calls.append(call)
                if server.key is not None and self.headers.get("api-key") != server.key:
                    status, result = 403, None
                elif server.failures:
                    status, result = server.failures.pop(0), None
                else:
                    status, result = server.answer(call, body)
                # As a real server: UTF-8, and the shortest decimals that identify a float32.
                body = json.dumps({"result": result, "status": "ok", "time": 0.0}, ensure_ascii=False).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_any

            def log_message(self, *_: object) -> None: ...

        return Handler


_DONE = {"operation_id": 0, "status": "completed"}
_DEFAULTS = {
    "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
    "optimizer_config": {"deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "default_segment_number": 0}
    | {"flush_interval_sec": 5},
}
_CALLS = {
    "PUT /collections/x/index": "index",
    "PUT /collections/x/points": "upsert",
    "PUT /collections/x/points/vectors": "replace",
    "POST /collections/x/points/delete": "delete",
    "POST /collections/x/points": "retrieve",
    "POST /collections/x/points/scroll": "scroll",
    "POST /collections/x/points/count": "count",
    "POST /collections/x/points/query/batch": "query",
}


def _vectors(body: dict[str, Any]) -> dict[str, Any]:
    return {mode: models.SparseVector(**each) if isinstance(each, dict) else each for mode, each in body.items()}


def _record(each: Any) -> dict[str, Any]:
    return {"id": each.id, "payload": each.payload, "vector": {mode: _vector(v) for mode, v in each.vectors.items()}}


def _vector(vector: Any) -> Any:
    return {"indices": vector.indices, "values": vector.values} if hasattr(vector, "indices") else vector
