from .encode import (
    EncodeReport as EncodeReport,
    encode_corpus as encode_corpus,
    ingest_sharded as ingest_sharded,
    passages_of as passages_of,
    read_corpus as read_corpus,
)
from .executors import InProcess as InProcess, ProcessPool as ProcessPool, RayActors as RayActors
from .nudge import NudgedShards as NudgedShards, nudge_sharded as nudge_sharded
