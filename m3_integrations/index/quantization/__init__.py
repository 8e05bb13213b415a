"""Quantized vectors: int8 and int4 codecs, exact integer products, error bounds."""

from m3_integrations.core.lazy_imports import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
