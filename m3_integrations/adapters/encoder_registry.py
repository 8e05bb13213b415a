"""Process-wide cache of loaded encoders, so that components with equal options share their weights."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

from m3_integrations.core.errors import NotPicklable
from m3_integrations.core.forking import ForkSafeLock
from m3_integrations.encoders.base import Encoder, EncoderConfig
from m3_integrations.encoders.m3 import M3Encoder
from m3_integrations.encoders.remote import RemoteEncoder
from m3_integrations.index.base import Index
from m3_integrations.index.local.index import LocalIndex

UNNAMED = "encoder:"  # begins the model name of an encoder that was not read by name
_encoders: WeakValueDictionary[EncoderConfig, M3Encoder | RemoteEncoder] = WeakValueDictionary()
_lock = ForkSafeLock()


def get_encoder(config: EncoderConfig | None = None) -> M3Encoder | RemoteEncoder:
    """Return the encoder of these options, loading it unless one is in use.

    Args:
        config: Options of the encoder; None is m3-mini with all defaults.

    Raises:
        CheckpointError: If the checkpoint cannot be loaded.
        ServerError: If the config names a server and another model, and the server cannot be reached.
        WrongEncoder: If the config names a server of another model.
    """
    config = config or EncoderConfig()
    with _lock:
        encoder = _encoders.get(config)
        if encoder is None:
            kind = M3Encoder if config.server_url is None else RemoteEncoder
            encoder = _encoders[config] = kind.from_config(config)
        return encoder


def resolve_encoder(given: Encoder | EncoderConfig | None) -> Encoder:
    """Return a given encoder, or load the one of these options; None is m3-mini."""
    return get_encoder(given) if given is None or isinstance(given, EncoderConfig) else given


def encoder_options(encoder: Encoder | None) -> dict[str, Any]:
    """Return the options of a component with this encoder, as JSON values by the names of `EncoderConfig`.

    They are those by which the encoder was read. Any other encoder has the model name "encoder:<fingerprint>", which is
    no folder and no model on the hub, so that a component of these options alone fails instead of loading another
    model.
    """
    if encoder is None:
        return {}
    config = _config_of(encoder)
    if config is None:
        return {"model": f"{UNNAMED}{encoder.fingerprint[:16]}"}
    named = {name: value for name, value in vars(config).items() if value is not None}
    return {name: value if isinstance(value, (str, int)) else str(value) for name, value in named.items()}


def picklable_config(given: Encoder | EncoderConfig | None, component: object) -> EncoderConfig | None:
    """Return the options that a pickle holds instead of an encoder.

    Args:
        given: The encoder, its options, or None for m3-mini.
        component: The object to pickle, for the message.

    Raises:
        NotPicklable: If the encoder was not read by name.
    """
    if given is None or isinstance(given, EncoderConfig):
        return given
    config = _config_of(given)
    if config is None:
        raise not_picklable(component, given)
    return config


def not_picklable(component: object, encoder: object) -> NotPicklable:
    """Return the error for a component whose encoder cannot be read again by name."""
    return NotPicklable(
        f"{type(component).__name__} cannot be pickled: its encoder {encoder!r} was not read by name; save it in a "
        "folder and pass that, or M3Encoder.from_pretrained(folder), or create the component in each process"
    )


def _config_of(encoder: Encoder) -> EncoderConfig | None:
    config = getattr(encoder, "config", None)
    return config if isinstance(config, EncoderConfig) else None


def check_index_encoder(index: Index, encoder: Encoder) -> None:
    """Check that an index folder was filled by this encoder; an empty folder records it.

    The folder may have been opened without an encoder, so that nothing has compared the two yet.

    Raises:
        WrongEncoder: If another encoder filled the folder.
    """
    if isinstance(index, LocalIndex):
        LocalIndex.open(index.folder, encoder).close()
