"""The settings of an encoder as fields, for every embedding that reads texts with one."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, PrivateAttr

from m3_integrations.core.encoder import Encoder
from m3_integrations.core.sharing import EncoderOptions, name_of
from m3_integrations.index.base import Index
from m3_integrations.index.local import LocalIndex


def require_filler(index: Index, encoder: Encoder) -> None:
    """Raises WrongEncoder where the index is a folder that another encoder filled; a new one remembers this one."""
    if isinstance(index, LocalIndex):
        LocalIndex.open(index.folder, encoder).close()  # it may have been opened without saying whose it is


class EncoderSettings(BaseModel):
    """Which model reads the texts. It is read when it is first needed; embeddings with equal settings share it.

    model: "m3-mini" (embedded, offline), a local folder, or a hub id such as "BAAI/bge-m3". The other settings are
    those of `M3Encoder.from_pretrained`. An encoder that is passed in does not travel: copies read what `model` says,
    and without one they raise CheckpointError.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = "m3-mini"
    device: str | None = None
    dtype: str | None = None
    max_length: int | None = None
    batch_tokens: int | None = None
    query_prefix: str | None = None
    passage_prefix: str | None = None
    revision: str | None = None
    backend: str = "torch"
    exported: str | None = None
    token_pooling: int = 1
    _encoder: Encoder | None = PrivateAttr(default=None)

    def __init__(self, model: str | None = None, *, encoder: Encoder | None = None, **settings: Any) -> None:
        super().__init__(model=model or name_of(encoder), **settings)
        self._encoder = encoder

    @property
    def encoder(self) -> Encoder:
        """The encoder behind these embeddings, in all its modes."""
        if self._encoder is None:
            self._encoder = EncoderOptions(**self.model_dump()).load()
        return self._encoder

    def __getstate__(self) -> dict[Any, Any]:
        # Weights do not travel: the copy reads them where it wakes up. Other threads go on with those of this one.
        bare = self.model_copy()
        bare._encoder = None
        return super(EncoderSettings, bare).__getstate__()
