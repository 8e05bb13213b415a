"""Room 7: the LangChain door. Converts, calls one thing of ours, converts back."""

from m3_integrations.langchain.embeddings import M3Embeddings
from m3_integrations.langchain.reranker import M3Reranker
from m3_integrations.langchain.retriever import M3Retriever

__all__ = ["M3Embeddings", "M3Reranker", "M3Retriever"]
