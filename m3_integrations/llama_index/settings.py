"""The settings of an encoder as fields, for every component that reads texts with one."""

from __future__ import annotations

from typing import Any

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.schema import BaseComponent

from m3_integrations.core.encoder import Encoder
from m3_integrations.core.sharing import EncoderOptions, name_of
from m3_integrations.index.base import Index
from m3_integrations.index.local import LocalIndex


def require_filler(index: Index, encoder: Encoder) -> None:
    """Raises WrongEncoder where the index is a folder that another encoder filled; a new one remembers this one."""
    if isinstance(index, LocalIndex):
        LocalIndex.open(index.folder, encoder).close()  # it may have been opened without saying whose it is


class EncoderSettings(BaseComponent):
    """Which model reads the texts. It is read when it is first needed; components with equal settings share it.

    Copies that are pickled or made `from_dict` read it anew. An encoder that is passed in is used as it is and does
    not travel: copies read what `model_name` says, and without one they raise CheckpointError.
    """

    model_name: str = Field(default="m3-mini", description="m3-mini, a local folder, or a hub id.")
    device: str | None = Field(default=None, description="cuda, mps or cpu; None takes the best there is.")
    dtype: str | None = Field(default=None, description="float32, bfloat16 or float16; None is float32.")
    max_length: int | None = Field(default=None, description="Tokens read of a text; None is all the model reads.")
    batch_tokens: int | None = Field(default=None, description="Tokens in a forward pass; bounds memory.")
    query_prefix: str | None = Field(default=None, description="None keeps what the checkpoint states.")
    passage_prefix: str | None = Field(default=None, description="None keeps what the checkpoint states.")
    revision: str | None = Field(default=None, description="The revision of a hub id.")
    backend: str = Field(default="torch", description="torch, onnx or openvino.")
    exported: str | None = Field(default=None, description="The folder of another engine's model; None keeps none.")
    token_pooling: int = Field(
        default=1, description="Tokens of a passage that share a vector of late interaction; 1 keeps one each."
    )
    _encoder: Encoder | None = PrivateAttr(default=None)

    def __init__(self, model_name: str | None = None, *, encoder: Encoder | None = None, **settings: Any) -> None:
        super().__init__(**{"model_name": model_name or name_of(encoder), **settings})
        self._encoder = encoder

    @property
    def encoder(self) -> Encoder:
        """The encoder, in all its modes."""
        if self._encoder is None:
            self._encoder = self.options().load()
        return self._encoder

    def options(self) -> EncoderOptions:
        """The settings as `EncoderOptions.load` takes them."""
        return EncoderOptions(
            model=self.model_name,
            device=self.device,
            dtype=self.dtype,
            max_length=self.max_length,
            batch_tokens=self.batch_tokens,
            query_prefix=self.query_prefix,
            passage_prefix=self.passage_prefix,
            revision=self.revision,
            backend=self.backend,
            exported=self.exported,
            token_pooling=self.token_pooling,
        )

    def __getstate__(self) -> dict[str, Any]:
        # Weights do not travel: the copy reads them where it wakes up. Other threads go on with those of this one.
        bare = self.model_copy()
        bare._encoder = None
        return super(EncoderSettings, bare).__getstate__()
