"""Room 7: the LlamaIndex door. Converts, calls one thing of ours, converts back."""

from m3_integrations.llama_index.embedding import M3Embedding
from m3_integrations.llama_index.finetune import M3FinetuneEngine
from m3_integrations.llama_index.managed import M3Index
from m3_integrations.llama_index.nudge import Nudge, NudgeFinetuneEngine
from m3_integrations.llama_index.rerank import M3Rerank
from m3_integrations.llama_index.retriever import M3Retriever
from m3_integrations.llama_index.sparse import M3SparseEmbedding
from m3_integrations.llama_index.vector_store import M3VectorStore

__all__ = [
    "M3Embedding",
    "M3FinetuneEngine",
    "M3Index",
    "M3Rerank",
    "M3Retriever",
    "M3SparseEmbedding",
    "M3VectorStore",
    "Nudge",
    "NudgeFinetuneEngine",
]
