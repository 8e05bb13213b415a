"""Address, key and limits of a server."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address

_POSITIVE = ("max_body", "max_texts", "max_k", "max_requests", "body_timeout", "request_timeout", "shutdown_timeout")

LONGEST_MEMORY = 100_000  # days


@dataclass(frozen=True)
class ServerSettings:
    """Address, key and limits of a server.

    Args:
        host: Name or IP address to listen on. Other computers reach any but a loopback one, which needs a key.
        port: Port; 0 takes a free one.
        api_key: Key that requests must send as "Authorization: Bearer KEY"; None: no key.
        allowed_hosts: Other names by which clients may address the server, such as that of a proxy.
        max_body: Bytes of a request body.
        max_texts: Texts of a request.
        max_k: Hits of a search.
        max_requests: Requests in progress; others are answered with 503.
        body_timeout: Seconds in which a request body must arrive.
        request_timeout: Seconds in which a request is answered.
        shutdown_timeout: Seconds that a shutdown waits for requests in progress.
        keeps_queries: Whether feedback is recorded with the texts of queries, which learning needs.
        forget_after: Days after which feedback and the questions learned from are deleted; None keeps them.

    Raises:
        ValueError: If the host is not loopback and there is no key, or a value is invalid.
    """

    host: str = "127.0.0.1"
    port: int = 8760
    api_key: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    max_body: int = 2 << 20
    max_texts: int = 256
    max_k: int = 1000
    max_requests: int = 256
    body_timeout: float = 30.0
    request_timeout: float = 60.0
    shutdown_timeout: float = 30.0
    keeps_queries: bool = True
    forget_after: float | None = None

    def __post_init__(self) -> None:
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise ValueError("the API key must be printable ASCII characters, at least one")
        if self.api_key is None and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} can be reached from other computers and needs an API key; set M3_API_KEY, or "
                "listen on 127.0.0.1"
            )
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"port must be from 0 to 65535, got {self.port}")
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.forget_after is not None and not 0 < self.forget_after < LONGEST_MEMORY:
            raise ValueError(f"forget_after is a number of days above 0, got {self.forget_after}")

    def accepts_host(self, header: str) -> bool:
        """Return whether a request with this Host header is meant for this server.

        A web page that a foreign name resolves to this server (DNS rebinding) sends that name. IP addresses cannot be
        rebound, so a server on all addresses accepts each of them.

        Args:
            header: Value of the header.
        """
        name = host_of(header)
        if name in {each.lower() for each in (self.host, *self.allowed_hosts)}:
            return True
        if is_loopback(self.host):
            return is_loopback(name)
        return _is_ip(name)


def is_loopback(host: str) -> bool:
    """Return whether only this computer reaches a host."""
    return host == "localhost" or (_is_ip(host) and ip_address(host).is_loopback)


def host_of(header: str) -> str:
    """Return the host of a Host header without its port, in lower case."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
