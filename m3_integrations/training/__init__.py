"""Training and fine-tuning of encoders."""

from m3_integrations.core.lazy_imports import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
