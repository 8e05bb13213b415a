from .core.encoded import Encoded as Encoded, Mode as Mode, MultiVectors as MultiVectors
from .core.scoring import score as score
from .core.types import Passage as Passage, Query as Query, SearchPlan as SearchPlan
from .encoders.base import Encoder as Encoder
from .encoders.m3 import M3Encoder as M3Encoder
from .encoders.pool import EncoderPool as EncoderPool
from .encoders.remote import RemoteEncoder as RemoteEncoder
from .index.base import Hit as Hit, Index as Index
from .index.filters import Field as Field, Where as Where, all_of as all_of, any_of as any_of, none_of as none_of
from .index.local import LocalIndex as LocalIndex
from .index.memory import MemoryIndex as MemoryIndex
from .index.qdrant import QdrantIndex as QdrantIndex
from .nudging.api import nudge as nudge
from .nudging.judged import Judged as Judged
from .nudging.nudger import Nudger as Nudger
from .nudging.optimize.dense import Nudged as Nudged
from .nudging.optimize.hybrid import NudgedModes as NudgedModes
from .nudging.report.report import NudgeReport as NudgeReport
from .retrieval.ingestion import IngestReport as IngestReport, ingest as ingest
from .retrieval.retriever import Match as Match, Retriever as Retriever

__version__: str
