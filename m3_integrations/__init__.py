"""Dense, lexical and late-interaction retrieval from one forward pass, for LlamaIndex and LangChain."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m3_integrations.core.encoded import Encoded, Mode, MultiVectors, score
    from m3_integrations.core.encoder import Encoder, M3Encoder
    from m3_integrations.core.encoder_pool import EncoderPool
    from m3_integrations.core.plan import SearchPlan
    from m3_integrations.core.texts import Passage, Query
    from m3_integrations.index.base import Hit, Index, Where
    from m3_integrations.index.local import LocalIndex
    from m3_integrations.index.memory import MemoryIndex
    from m3_integrations.index.qdrant import QdrantIndex as QdrantIndex
    from m3_integrations.index.where import Field, all_of, any_of, none_of
    from m3_integrations.nudging.dense import Nudged
    from m3_integrations.nudging.engine import nudge
    from m3_integrations.nudging.hybrid import NudgedModes
    from m3_integrations.nudging.judged import Judged
    from m3_integrations.nudging.nudger import Nudger
    from m3_integrations.nudging.report import NudgeReport
    from m3_integrations.retrieval.ingestion import IngestReport, ingest
    from m3_integrations.retrieval.retriever import Match, Retriever

_HOMES = {
    "core.encoded": ("Encoded", "Mode", "MultiVectors", "score"),
    "core.encoder": ("Encoder", "M3Encoder"),
    "core.encoder_pool": ("EncoderPool",),
    "core.plan": ("SearchPlan",),
    "core.texts": ("Passage", "Query"),
    "index.base": ("Hit", "Index", "Where"),
    "index.local": ("LocalIndex",),
    "index.memory": ("MemoryIndex",),
    "index.qdrant": ("QdrantIndex",),
    "index.where": ("Field", "all_of", "any_of", "none_of"),
    "nudging.dense": ("Nudged",),
    "nudging.engine": ("nudge",),
    "nudging.hybrid": ("NudgedModes",),
    "nudging.judged": ("Judged",),
    "nudging.nudger": ("Nudger",),
    "nudging.report": ("NudgeReport",),
    "retrieval.ingestion": ("IngestReport", "ingest"),
    "retrieval.retriever": ("Match", "Retriever"),
}
_OPTIONAL = ["QdrantIndex"]  # needs an extra, so that `from m3_integrations import *` leaves it out
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "Encoded",
    "Encoder",
    "EncoderPool",
    "Field",
    "Hit",
    "Index",
    "IngestReport",
    "Judged",
    "LocalIndex",
    "M3Encoder",
    "Match",
    "MemoryIndex",
    "Mode",
    "MultiVectors",
    "NudgeReport",
    "Nudged",
    "NudgedModes",
    "Nudger",
    "Passage",
    "Query",
    "Retriever",
    "SearchPlan",
    "Where",
    "all_of",
    "any_of",
    "ingest",
    "none_of",
    "nudge",
    "score",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that importing the package stays light."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'm3_integrations' has no attribute {name!r}; it has {[*__all__, *_OPTIONAL]}")
    value = getattr(import_module(f"m3_integrations.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, *_OPTIONAL, "__version__"]
