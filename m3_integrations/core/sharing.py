"""One encoder a process for each set of options, so that an embedding, a retriever and a reranker share its weights."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from m3_integrations.core.encoder import Encoder, M3Encoder

_encoders: WeakValueDictionary[EncoderOptions, M3Encoder] = WeakValueDictionary()
_lock = threading.Lock()


@dataclass(frozen=True)
class EncoderOptions:
    """What `M3Encoder.from_pretrained` takes that a framework's settings carry; see there."""

    model: str = "m3-mini"
    device: str | None = None
    dtype: Any = None
    max_length: int | None = None
    batch_tokens: int | None = None
    query_prefix: str | None = None
    passage_prefix: str | None = None
    revision: str | None = None
    backend: Any = "torch"
    exported: str | None = None
    token_pooling: int = 1

    def load(self) -> M3Encoder:
        """The encoder of these options: the one in use, where there is one, else read now."""
        with _lock:
            encoder = _encoders.get(self)
            if encoder is None:
                encoder = M3Encoder.from_pretrained(**vars(self))
                _encoders[self] = encoder
            return encoder


def name_of(encoder: Encoder | None) -> str:
    """What stands where a model's name is wanted: an encoder that is passed in is known by its fingerprint alone.

    No folder and no hub model is called so: a copy that cannot have the encoder fails, and takes no other.
    """
    return "m3-mini" if encoder is None else f"encoder:{encoder.fingerprint[:16]}"
