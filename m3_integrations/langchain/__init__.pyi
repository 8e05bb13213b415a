from .embeddings import M3Embeddings as M3Embeddings
from .nudging.nudge import HoldsVectors as HoldsVectors, nudge_store as nudge_store
from .reranker import M3Reranker as M3Reranker
from .retriever import M3Retriever as M3Retriever
from .self_query import M3Translator as M3Translator
from .sparse_embeddings import M3SparseEmbeddings as M3SparseEmbeddings
from .vectorstore import M3VectorStore as M3VectorStore
