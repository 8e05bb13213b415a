"""Ranking metrics and the evaluation of search plans."""

from m3_integrations.core.lazy_imports import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
