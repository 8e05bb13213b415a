"""The options of an encoder as pydantic fields, for the components of both frameworks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self

from pydantic import BaseModel, Field, PrivateAttr, model_validator

from m3_integrations.adapters.encoder_registry import UNNAMED, get_encoder, not_picklable
from m3_integrations.encoders.base import Encoder, EncoderConfig, WindowOverlap


class EncoderSettings(BaseModel):
    """Options of `EncoderConfig`, which describes them, and the encoder that they load when it is first used.

    Components with equal options share one encoder. Pickles and dumps hold the options, not the weights, and load the
    model again; deep copies share the encoder. An encoder passed to the constructor has the options by which it was
    read. If it was not read by name, pickling raises NotPicklable.
    """

    model_field: ClassVar[str] = "model"  # the name of the field that holds EncoderConfig.model

    device: str | None = Field(default=None, description="cuda, mps or cpu; None takes the best available.")
    dtype: str | None = Field(default=None, description="float32, bfloat16, float16 or int8; None is float32.")
    max_length: int | None = Field(default=None, description="Tokens per text; None is the checkpoint's maximum.")
    batch_tokens: int | None = Field(default=None, description="Tokens per forward pass; bounds memory.")
    query_prefix: str | None = Field(default=None, description="None is the checkpoint's.")
    passage_prefix: str | None = Field(default=None, description="None is the checkpoint's.")
    revision: str | None = Field(default=None, description="Revision of a model on the hub.")
    pooling: str | None = Field(default=None, description="cls or mean, for a checkpoint that does not state it.")
    window_overlap: WindowOverlap = Field(default=None, description="Tokens shared by windows, or truncate.")
    mcls_interval: int | None = Field(default=None, description="Tokens between CLS tokens; None inserts one.")
    backend: str = Field(default="torch", description="torch, onnx or openvino.")
    export_dir: str | None = Field(default=None, description="Folder of the exported model; None keeps none.")
    token_pooling: int = Field(default=1, description="Tokens of a passage per multi-vector; 1 pools none.")
    truncate_dim: int | None = Field(default=None, description="Dense dimensions to use; None is the checkpoint's.")
    server_url: str | None = Field(default=None, description="URL of a server of m3 serve that encodes.")
    _encoder: Encoder | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _read_former_name(cls, settings: Any) -> Any:
        """Read `export_dir` from settings that were dumped as `exported`."""
        if not isinstance(settings, Mapping) or "exported" not in settings:
            return settings
        return {"export_dir": settings["exported"], **{key: settings[key] for key in settings if key != "exported"}}

    @property
    def encoder(self) -> Encoder:
        """The encoder in all its modes, loaded when it is first used."""
        if self._encoder is None:
            self._encoder = get_encoder(self.encoder_config())
        return self._encoder

    def encoder_config(self) -> EncoderConfig:
        """Return the options as `EncoderConfig`."""
        options = {each.name: getattr(self, each.name) for each in fields(EncoderConfig) if each.name != "model"}
        return EncoderConfig(getattr(self, self.model_field), **options)

    def __getstate__(self) -> dict[Any, Any]:
        if self._encoder is not None and getattr(self, self.model_field).startswith(UNNAMED):
            raise not_picklable(self, self._encoder)
        bare = self.model_copy()  # other threads may be using this object's encoder
        bare._encoder = None
        return super(EncoderSettings, bare).__getstate__()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        memo[id(self._encoder)] = self._encoder
        return super().__deepcopy__(memo)
