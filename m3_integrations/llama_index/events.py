"""The events of embedding a question, as LlamaIndex's own embedding models emit them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # core's own way in
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent

from m3_integrations.core.encoded import Encoded

dispatcher = get_dispatcher(__name__)


@contextmanager
def embedding(
    callbacks: CallbackManager, model: dict[str, Any], texts: Sequence[str]
) -> Iterator[Callable[[Encoded], None]]:
    """Around the encoding of texts: a start, and an end once what is given is called with what they became."""
    dispatcher.event(EmbeddingStartEvent(model_dict=model))
    with callbacks.event(CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: model}) as event:

        def done(encoded: Encoded) -> None:
            embeddings = encoded.dense.tolist() if "dense" in encoded.modes else []
            event.on_end(payload={EventPayload.CHUNKS: list(texts), EventPayload.EMBEDDINGS: embeddings})
            dispatcher.event(EmbeddingEndEvent(chunks=list(texts), embeddings=embeddings))

        yield done
