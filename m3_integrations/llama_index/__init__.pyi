from .embedding import M3Embedding as M3Embedding, M3SparseEmbedding as M3SparseEmbedding
from .finetuning.finetune import M3FinetuneEngine as M3FinetuneEngine
from .finetuning.nudge import Nudge as Nudge, NudgeFinetuneEngine as NudgeFinetuneEngine
from .index import M3Index as M3Index
from .rerank import M3Rerank as M3Rerank
from .retriever import M3Retriever as M3Retriever
from .vector_store import M3VectorStore as M3VectorStore
