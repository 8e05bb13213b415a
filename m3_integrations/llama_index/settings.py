"""Encoder options as fields of LlamaIndex components."""

from __future__ import annotations

from typing import Any, ClassVar

from llama_index.core.bridge.pydantic import Field
from llama_index.core.schema import BaseComponent

from m3_integrations.adapters.encoder_registry import encoder_options
from m3_integrations.adapters.encoder_settings import EncoderSettings
from m3_integrations.encoders.base import Encoder


class LlamaIndexEncoderSettings(EncoderSettings, BaseComponent):
    """`EncoderSettings` whose model is called `model_name`, as in LlamaIndex's embeddings."""

    model_field: ClassVar[str] = "model_name"

    model_name: str = Field(default="m3-mini", description="m3-mini, a local folder, or a model id on the hub.")

    def __init__(self, model_name: str | None = None, *, encoder: Encoder | None = None, **settings: Any) -> None:
        options = encoder_options(encoder)
        name = options.pop("model", "m3-mini")
        super().__init__(**{**options, "model_name": model_name or name, **settings})
        self._encoder = encoder
