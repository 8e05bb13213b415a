"""The reference page of the HTTP API, generated from its OpenAPI description."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from m3_integrations.server import create_app
from m3_integrations.testing import HashEncoder


def openapi() -> Mapping[str, Any]:
    """Return the OpenAPI description of a server."""

    async def get() -> Any:
        transport = httpx.ASGITransport(create_app(HashEncoder()))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return (await client.get("/openapi.json")).raise_for_status().json()

    return asyncio.run(get())


def page() -> str:
    """Return the Markdown of the page."""
    description = openapi()
    lines = ["# HTTP API", ""]
    lines += ["Generated from `/openapi.json` of `m3 serve`. [Serving](../serving.md) shows requests with answers,", ""]
    lines[-2] += " keys and limits."
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            lines += [f"## {method.upper()} {path}", "", operation["summary"], ""]
            lines += _fields(operation, description["components"]["schemas"])
            lines += [_answers(operation), ""]
    return "\n".join(lines)


def fields_of(operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the fields of an operation's query and body by name.

    Args:
        operation: The operation.
        schemas: The schemas of the description.
    """
    query = {each["name"]: each["schema"] for each in operation.get("parameters", ())}
    if "requestBody" not in operation:
        return query
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    return {**query, **schemas[reference.rsplit("/", 1)[1]]["properties"]}


def _fields(operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    fields = fields_of(operation, schemas)
    if not fields:
        yield from ("No fields.", "")
        return
    yield "Fields of the JSON body:" if "requestBody" in operation else "Fields of the query:"
    yield from ("", "| field | type | default | meaning |", "|---|---|---|---|")
    for name, field in fields.items():
        default = f"`{json.dumps(field['default'])}`" if "default" in field else "required"
        yield f"| `{name}` | {_type(field)} | {default} | {field.get('description', '')} |"
    yield ""


def _type(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(each) for each in field["anyOf"])
    if "enum" in field or "const" in field:
        return " or ".join(f"`{json.dumps(value)}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"array of {_type(field.get('items', {}))}"
    return str(field.get("type", "any"))


def _answers(operation: Mapping[str, Any]) -> str:
    answers = [f"{status}: {answer['description']}" for status, answer in operation["responses"].items()]
    return " ".join(answers) + " Errors: [limits and errors](../serving.md#limits)."
