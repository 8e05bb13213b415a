"""URLs that may carry credentials, and API keys."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from m3_integrations.core.errors import WrongCollection

_USER_INFO = re.compile(r"(?<=://).*@", re.DOTALL)
_QUERY = re.compile(r"(?<=[?#]).*", re.DOTALL)


def hide_credentials(location: str) -> str:
    """Return a URL without user name, password and query, which may hold a key; a path is returned unchanged."""
    if "://" not in location:
        return location
    return _QUERY.sub("***", _USER_INFO.sub("***@", location))


def check_url(location: str) -> None:
    """Check that a URL of a server has no key in it, which would be ignored, and a valid port.

    Raises:
        WrongCollection: If it has.
    """
    hidden = hide_credentials(location)
    if hidden != location:
        raise WrongCollection(f"{hidden} has a user name, a password or a query; pass a key as api_key=... instead")
    try:
        _ = urlsplit(location).port
    except ValueError:
        raise WrongCollection(
            "the URL of the server has an invalid host or port; write qdrant://host:6333/collection"
        ) from None


def check_api_key(api_key: str | None) -> None:
    """Check that HTTP can send a key; the errors of HTTP libraries would repeat it.

    Raises:
        ValueError: If it cannot.
    """
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise ValueError(
            "the API key has a line end, a control character or a letter that is not ASCII, which HTTP cannot send; "
            "remove it"
        )
