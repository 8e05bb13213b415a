"""Dense, lexical and late-interaction retrieval from one forward pass, for LlamaIndex and LangChain."""

from m3_integrations.core.lazy_imports import attach

__version__ = "0.1.0"
__getattr__, __dir__, _names = attach(__name__, __file__)
__all__ = [name for name in _names if name != "QdrantIndex"]  # it needs an extra, so `import *` leaves it out
