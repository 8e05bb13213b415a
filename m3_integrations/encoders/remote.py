"""RemoteEncoder: the encoder of a server that `m3 serve` runs."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, Self

import httpx

from m3_integrations.core.concurrency import as_async
from m3_integrations.core.encoded import MODES, Encoded, Mode, Modes, SparseScore, check_modes
from m3_integrations.core.errors import ServerError, WrongEncoder
from m3_integrations.encoders.base import EncoderConfig, check_texts
from m3_integrations.encoders.wire_format import MEDIA_TYPE, from_npz

API_KEY_VARIABLE = "M3_API_KEY"
Role = Literal["query", "passage"]
_TRANSIENT = (408, 429, 502, 503, 504)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds
_DEFAULTS = EncoderConfig()
_ANY_MODEL = ("model", "server_url")


@dataclass(frozen=True)
class _ServerInfo:
    """What a server states of its encoder."""

    model: str
    fingerprint: str
    modes: frozenset[Mode]
    weights: Mapping[frozenset[Mode], Mapping[Mode, float]]
    sparse_score: SparseScore
    dense_dim: int
    multi_vector_dim: int
    vocab_size: int
    max_texts: int
    max_body: int

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> Self:
        """Read the answer of /info."""
        own = stated["m3"]
        weights = {frozenset(key.split(",")): value for key, value in own["weights"].items()}
        dims = {name: int(own[name]) for name in ("dense_dim", "multi_vector_dim", "vocab_size")}
        limits = {"max_texts": int(stated["max_client_batch_size"]), "max_body": int(own["max_body"])}
        return cls(
            model=str(stated["model_id"]),
            fingerprint=str(own["fingerprint"]),
            modes=check_modes(own["modes"], MODES),
            weights=weights,
            sparse_score="mean" if own["sparse_score"] == "mean" else "sum",
            **dims,
            **limits,
        )


class RemoteEncoder:
    """An Encoder that sends texts to a server started with `m3 serve`.

    It has the modes, weights and fingerprint of the server's encoder, and gives the same vectors bit for bit, so that
    index folders filled by either open with the other. Any number of threads and processes share one server; after a
    fork, and in a process that unpickles it, the encoder opens connections of its own.

    Requests that fail to connect, time out, or are answered with 408, 429, 502, 503 or 504 are repeated with growing
    pauses. Encoding is free of side effects, so repeating it is safe.

    Args:
        url: URL of the server, such as "http://127.0.0.1:8760".
        api_key: Key of the server; None reads the environment variable M3_API_KEY. Pickles do not hold it.
        timeout: Seconds to wait for each answer.
        retries: Repetitions of a failed request.

    Raises:
        ValueError: If an argument is invalid.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 60.0, retries: int = 4) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the URL of a server begins with http:// or https://, got {url!r}")
        if retries < 0 or not timeout > 0:
            raise ValueError(f"retries must be at least 0 and timeout above 0, got {retries} and {timeout}")
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.retries = retries
        self.config = EncoderConfig(server_url=url)
        self._api_key = api_key
        self._lock = threading.Lock()
        self._clients: dict[int, httpx.Client] = {}  # by process

    @classmethod
    def from_config(cls, config: EncoderConfig) -> RemoteEncoder:
        """Connect to the server of a config; the server has the other options.

        Args:
            config: Options with the URL of the server.

        Returns:
            The encoder.

        Raises:
            ValueError: If the config has an option of the server.
            WrongEncoder: If the config names another model than the server's.
        """
        own = [each.name for each in fields(config) if each.name not in _ANY_MODEL]
        given = [name for name in own if getattr(config, name) != getattr(_DEFAULTS, name)]
        if given:
            raise ValueError(f"{given[0]} is an option of the server at {config.server_url}; start m3 serve with it")
        encoder = cls(str(config.server_url))
        if config.model not in (_DEFAULTS.model, encoder._info.model):
            raise WrongEncoder(
                f"the server at {encoder.url} serves {encoder._info.model!r}, not {config.model!r}; leave the model out"
            )
        encoder.config = config
        return encoder

    @property
    def modes(self) -> frozenset[Mode]:
        return self._info.modes

    @property
    def weights(self) -> Mapping[Mode, float]:
        return self.weights_for(self.modes)

    def weights_for(self, modes: Modes) -> Mapping[Mode, float]:
        return self._info.weights.get(self.modes & frozenset(modes), {})

    @property
    def sparse_score(self) -> SparseScore:
        """Convention of the server's encoder for sparse scores, see `SearchPlan`."""
        return self._info.sparse_score

    @property
    def dense_dim(self) -> int:
        return self._info.dense_dim

    @property
    def multi_vector_dim(self) -> int:
        return self._info.multi_vector_dim

    @property
    def vocab_size(self) -> int:
        return self._info.vocab_size

    @property
    def fingerprint(self) -> str:
        return self._info.fingerprint

    def encode_queries(
        self, texts: Sequence[str], modes: Modes | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode queries on the server.

        Args:
            texts: Queries.
            modes: Modes to compute; None computes all.
            show_progress: No effect.

        Raises:
            MissingMode: If the server's encoder lacks a mode.
            ServerError: If the server cannot be reached or refuses the request.
            WrongEncoder: If the server was restarted with another encoder.
        """
        return self._encode("query", texts, modes).with_sparse_score(self.sparse_score)

    def encode_passages(
        self, texts: Sequence[str], modes: Modes | None = None, *, show_progress: bool = False
    ) -> Encoded:
        """Encode passages on the server; arguments, result and errors as in `encode_queries`."""
        return self._encode("passage", texts, modes)

    aencode_queries = as_async(encode_queries)
    aencode_passages = as_async(encode_passages)

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        with self._lock:
            client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteEncoder:
        """Return this encoder: deep copies of components share its connections."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.url, self.timeout, self.retries, self.config)

    def __repr__(self) -> str:
        return f"RemoteEncoder({self.url!r})"

    @cached_property
    def _info(self) -> _ServerInfo:
        answer = self._request("GET", "/info")
        try:
            return _ServerInfo.from_json(answer.json())
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(f"{self.url} is no server of m3 serve: its /info lacks {error}") from error

    def _encode(self, role: Role, texts: Sequence[str], modes: Modes | None) -> Encoded:
        checked = check_modes(self.modes if modes is None else modes, self.modes)
        wanted = [mode for mode in MODES if mode in checked]
        # No texts are one text of which no row is taken, so that the result has the modes and dimensions.
        batches = list(self._batches(check_texts(texts))) or [[""]]
        parts = [self._encode_batch(role, batch, wanted) for batch in batches]
        return parts[0].join(*parts[1:]) if texts else parts[0].take([])

    def _batches(self, texts: Sequence[str]) -> Any:
        """Yield the texts in batches within the limits of the server."""
        most_bytes = self._info.max_body // 2  # the rest is for escapes and the other fields
        batch: list[str] = []
        size = 0
        for text in texts:
            added = len(text.encode())
            if batch and (len(batch) == self._info.max_texts or size + added > most_bytes):
                yield batch
                batch, size = [], 0
            batch.append(text)
            size += added
        if batch:
            yield batch

    def _encode_batch(self, role: Role, texts: list[str], modes: list[Mode]) -> Encoded:
        body = {"inputs": texts, "input_type": role, "modes": modes, "format": "npz"}
        answer = self._request("POST", "/embed_all", body)
        if answer.headers.get("content-type") != MEDIA_TYPE:
            raise ServerError(f"{self.url}/embed_all answers {answer.headers.get('content-type')!r}, not {MEDIA_TYPE}")
        stated = answer.headers.get("x-m3-fingerprint")
        if stated != self.fingerprint:
            raise WrongEncoder(
                f"the server at {self.url} now has the encoder {str(stated)[:16]}, not {self.fingerprint[:16]}; "
                "create a new RemoteEncoder"
            )
        return from_npz(answer.content)

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        pause = _FIRST_PAUSE
        for attempt in range(self.retries + 1):
            try:
                answer = self._client().request(method, f"{self.url}{path}", json=body)
            except httpx.TransportError as error:
                failure = ServerError(f"no answer from {self.url}{path}: {error}; is m3 serve running there?")
                failure.__cause__ = error
            else:
                if answer.is_success:
                    return answer
                failure = _refusal(answer, f"{self.url}{path}")
                if answer.status_code not in _TRANSIENT:
                    raise failure
            if attempt < self.retries:
                time.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, _LONGEST_PAUSE)
        raise failure

    def _client(self) -> httpx.Client:
        """Return the connections of this process; those of a parent cannot be shared after a fork."""
        process = os.getpid()
        client = self._clients.get(process)
        if client is None:
            key = self._api_key or os.environ.get(API_KEY_VARIABLE)
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            # Connections close after 2 idle seconds, before the server closes them.
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=8, keepalive_expiry=2.0)
            client = httpx.Client(headers=headers, timeout=self.timeout, limits=limits, trust_env=False)
            client = self._clients.setdefault(process, client)
        return client


def _restore(url: str, timeout: float, retries: int, config: EncoderConfig) -> RemoteEncoder:
    encoder = RemoteEncoder(url, timeout=timeout, retries=retries)
    encoder.config = config
    return encoder


def _refusal(answer: httpx.Response, address: str) -> ServerError:
    """Return the error of an answer, with the message of the server."""
    try:
        message = str(answer.json()["error"])
    except (KeyError, TypeError, ValueError):
        message = answer.reason_phrase
    if answer.status_code == 401:
        message += f"; set the environment variable {API_KEY_VARIABLE} or pass RemoteEncoder(url, api_key=...)"
    return ServerError(f"{address} answers {answer.status_code}: {message}", answer.status_code)
