"""The HTTP API: checks, endpoints, OpenAPI description."""
