"""Room 7: the LangChain door. Converts, calls one thing of ours, converts back."""

from m3_integrations.langchain.embeddings import M3Embeddings
from m3_integrations.langchain.nudge import nudge_store
from m3_integrations.langchain.reranker import M3Reranker
from m3_integrations.langchain.retriever import M3Retriever
from m3_integrations.langchain.sparse import M3SparseEmbeddings
from m3_integrations.langchain.vectorstore import M3VectorStore

__all__ = ["M3Embeddings", "M3Reranker", "M3Retriever", "M3SparseEmbeddings", "M3VectorStore", "nudge_store"]
