"""No message, repr or pickle repeats a credential."""

from __future__ import annotations

import pickle
import traceback

import pytest

from m3_integrations.core.errors import NotPicklable, WrongCollection
from m3_integrations.index.opening import copy_location, open_index
from m3_integrations.index.qdrant import QdrantIndex
from m3_integrations.index.qdrant.locations import hide_credentials
from tests.optional import requires

KEY = "sup3r-s3cret"
URLS = [
    f"qdrant://{KEY}@localhost:6333",
    f"qdrant://{KEY}@localhost:6333/collection",
    f"qdrants://user:{KEY}@localhost/collection",
    f"qdrant://user:{KEY}/x@y@localhost/collection",
    f"qdrant://localhost/collection?api_key={KEY}",
    f"qdrant://localhost/collection#{KEY}",
    f"qdrant://user:{KEY}@[::1/collection",
    f"QDRANT://{KEY}@localhost:port/collection",
]


def told(call):
    """The error of a call, as text with all errors that it was raised from."""
    with pytest.raises((WrongCollection, ValueError)) as caught:
        call()
    return "".join(traceback.format_exception(caught.value, limit=0))


@requires("qdrant_client")
@pytest.mark.parametrize("url", URLS)
def test_a_url_with_a_key_is_refused_without_repeating_it(url, tmp_path):
    calls = (
        lambda: open_index(url),
        lambda: copy_location(url, str(tmp_path / "index")),
        lambda: QdrantIndex.open(url, "collection"),
    )
    for call in calls:
        assert KEY not in told(call)


@requires("qdrant_client")
@pytest.mark.parametrize("end", ["\n", "\x00", "é"])
def test_a_key_that_http_cannot_send_is_refused_without_repeating_it(end):
    message = told(lambda: QdrantIndex.open("http://localhost:9", "collection", api_key=f"{KEY}{end}"))
    assert KEY not in message
    assert "HTTP cannot send" in message


@requires("qdrant_client")
def test_the_repr_of_an_index_over_ones_own_client_has_no_key():
    from qdrant_client import QdrantClient

    client = QdrantClient(":memory:")
    client.init_options["url"] = f"http://user:{KEY}@localhost:6333?key={KEY}"
    index = QdrantIndex.from_client(client, "collection")
    assert KEY not in repr(index)
    with pytest.raises(NotPicklable):
        pickle.dumps(index)


def test_paths_and_plain_urls_are_returned_unchanged():
    for location in ("a folder/with@sign?", "/srv/index", "qdrant://localhost:6333/collection"):
        assert hide_credentials(location) == location
