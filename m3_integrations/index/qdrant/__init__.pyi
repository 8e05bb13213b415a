from .backend import CollectionConfig as CollectionConfig
from .index import (
    PartlyWritten as PartlyWritten,
    QdrantIndex as QdrantIndex,
    QdrantUnreachable as QdrantUnreachable,
    WrongCollection as WrongCollection,
)
