"""Open and copy an index by its location: a folder or a qdrant:// URL."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from m3_integrations.core.errors import WrongCollection
from m3_integrations.index import qdrant  # imports qdrant-client only when QdrantIndex is used
from m3_integrations.index.base import Fingerprinted
from m3_integrations.index.copying import CopyReport, copy_index
from m3_integrations.index.local.index import LocalIndex
from m3_integrations.index.qdrant.locations import check_url

_QDRANT = ("qdrant", "qdrants")


@dataclass(frozen=True)
class EncoderIdentity:
    """Identity of the encoder that an index records, enough to open another index with it."""

    fingerprint: str
    label: str

    def __repr__(self) -> str:
        return self.label


def open_index(
    location: str, encoder: Fingerprinted | None = None, *, api_key: str | None = None
) -> LocalIndex | qdrant.QdrantIndex:
    """Open an index by its location.

    Args:
        location: A folder, or qdrant://host:port/collection (qdrants:// with TLS; qdrant:///folder/collection for
            Qdrant's embedded engine).
        encoder: The encoder of its vectors; None: not checked.
        api_key: API key of the Qdrant server.

    Returns:
        The index; close it, or use it in a `with` block.

    Raises:
        WrongCollection: If a Qdrant location has no collection, or the collection was not made by QdrantIndex.
        WrongEncoder: If another encoder filled the index.
    """
    if not _is_qdrant(location):
        return LocalIndex.open(location, encoder)
    check_url(location)
    url = urlsplit(location)
    path, _, collection = url.path.rpartition("/")
    if not collection or not (url.netloc or path):
        raise WrongCollection(f"{location} has no collection; write qdrant://host:6333/collection")
    server = f"{url.scheme}://{url.netloc}{path}" if url.netloc else path
    return qdrant.QdrantIndex.open(server, collection, encoder, api_key=api_key)


def copy_location(source: str, target: str, api_key: str | None = None) -> CopyReport:
    """Copy an index between locations as `open_index` takes them; the target records the source's encoder.

    Args:
        source: Location of the index to read.
        target: Location of the index to write, created if missing.
        api_key: API key of the Qdrant server.

    Returns:
        Counts of passages, and the checksum.

    Raises:
        FileNotFoundError: If the source does not exist or holds no passages.
        WrongEncoder: If the target was filled by another encoder.
        CopyDiffers: If passages read back differ from those written.
    """
    with _open_source(source, api_key) as index:
        fingerprint, label = index.encoder
        identity = None if fingerprint is None else EncoderIdentity(fingerprint, label or "an encoder")
        with open_index(target, identity, api_key=api_key) as copy:
            return copy_index(index, copy)


def _open_source(location: str, api_key: str | None) -> LocalIndex | qdrant.QdrantIndex:
    if not _is_qdrant(location) and not (Path(location).is_dir() and any(Path(location).iterdir())):
        raise FileNotFoundError(f"there is no index at {location}; create one with: m3 index {location} SOURCE")
    index = open_index(location, api_key=api_key)
    if not index.modes:
        index.close()
        raise FileNotFoundError(f"there are no passages at {location}; name an index that holds some")
    return index


def _is_qdrant(location: str) -> bool:
    return location.partition("://")[0].lower() in _QDRANT
