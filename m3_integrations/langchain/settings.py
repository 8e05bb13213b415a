"""Encoder options as fields of LangChain components."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

from m3_integrations.adapters.encoder_registry import encoder_options
from m3_integrations.adapters.encoder_settings import EncoderSettings
from m3_integrations.encoders.base import Encoder


class LangChainEncoderSettings(EncoderSettings):
    """`EncoderSettings` whose model is called `model`, as in LangChain's embeddings.

    Args:
        model: "m3-mini" (bundled), a local folder, or a model id on the hub.
        encoder: Encoder to use instead of loading the model.
        **settings: Options of `EncoderConfig`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = "m3-mini"

    def __init__(self, model: str | None = None, *, encoder: Encoder | None = None, **settings: Any) -> None:
        options = encoder_options(encoder)
        super().__init__(**{**options, "model": model or options.get("model", "m3-mini"), **settings})
        self._encoder = encoder
