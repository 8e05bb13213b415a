"""OpenAPI description of the endpoints, and a page that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2 import Environment
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from m3_integrations import __version__

_REFERENCES = "#/components/schemas/{model}"
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>m3 serve</title>
<style>
:root { color-scheme: light dark }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem }
td, th { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0 }
</style>
<main>
<h1>m3 serve {{ version }}</h1>
<p>The same as <a href="openapi.json">OpenAPI</a>.</p>
{% for path in paths %}
<h2><code>{{ path.method }} {{ path.path }}</code></h2>
<p>{{ path.summary }}</p>
{% if path.fields %}
<table>
<tr><th scope="col">field</th><th scope="col">default</th><th scope="col">meaning</th></tr>
{% for name, field in path.fields.items() %}
<tr><td><code>{{ name }}</code></td>
<td>{{ "required" if field.is_required() else field.default | tojson }}</td><td>{{ field.description or "" }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% endfor %}
</main>
"""


class PathItem(NamedTuple):
    """An endpoint: path, method, what it does, and the models of its body and its query string."""

    path: str
    method: str
    summary: str
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None

    @property
    def fields(self) -> dict[str, Any]:
        model = self.body or self.query
        return {} if model is None else dict(model.model_fields)

    @property
    def parameters(self) -> list[dict[str, Any]]:
        """The fields of the query string, as OpenAPI describes them."""
        schema = {"properties": {}} if self.query is None else self.query.model_json_schema()
        return [{"name": name, "in": "query", "schema": field} for name, field in schema["properties"].items()]


def describe(paths: Sequence[PathItem], *, needs_key: bool) -> dict[str, Any]:
    """Return an OpenAPI 3.1 document.

    Args:
        paths: The endpoints.
        needs_key: Whether requests need a bearer key.
    """
    bodies = [path.body for path in paths if path.body is not None]
    models = [(body, "validation") for body in dict.fromkeys(bodies)]
    references, schemas = models_json_schema(models, ref_template=_REFERENCES)  # type: ignore[arg-type]  # "validation"
    items: dict[str, dict[str, Any]] = {}
    for path in paths:
        operation: dict[str, Any] = {"summary": path.summary, "responses": {"200": {"description": "Success."}}}
        if path.parameters:
            operation["parameters"] = path.parameters
        if path.body is not None:
            schema = references[path.body, "validation"]
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        items.setdefault(path.path, {})[path.method.lower()] = operation
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "m3 serve", "version": __version__},
        "paths": items,
        "components": {"schemas": schemas.get("$defs", {})},
    }
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def render(paths: Sequence[PathItem]) -> str:
    """Return an HTML page of the endpoints, without scripts and external files."""
    return Environment(autoescape=True).from_string(_PAGE).render(paths=paths, version=__version__)
