"""QdrantIndex: an index in a Qdrant server or in Qdrant's embedded engine."""

from m3_integrations.core.lazy_imports import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
