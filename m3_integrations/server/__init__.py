"""HTTP and MCP servers over one encoder and any number of index folders (extra `serve`)."""

from m3_integrations.core.lazy_imports import attach
from m3_integrations.core.optional import import_optional

for _library in ("starlette", "uvicorn", "prometheus-client"):  # mcp is slow to import
    import_optional(_library, extra="serve")

__getattr__, __dir__, __all__ = attach(__name__, __file__)
