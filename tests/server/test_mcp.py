"""The MCP server with the official client: in memory, over HTTP and over stdin and stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import asynccontextmanager

import httpx
import pytest
from mcp import Client, StdioServerParameters

from m3_integrations import LocalIndex, M3Encoder, MemoryIndex, ingest
from m3_integrations.cli.commands.servers.options import open_indexes
from m3_integrations.nudging import Feedback
from m3_integrations.server import ServerSettings, create_mcp_app, create_mcp_server
from tests.server.conftest import PASSAGES, running


async def call(client, tool, **arguments):
    result = await client.call_tool(tool, arguments)
    (content,) = result.content
    assert not result.is_error, content.text
    return json.loads(content.text)


@asynccontextmanager
async def connected(encoder, index, **options):
    """A client of a server in this process."""
    async with Client(create_mcp_server(encoder, index, name="my notes", **options)) as client:
        yield client


async def test_search_and_fetch_are_read_only_and_the_only_tools(hash_encoder, index):
    async with connected(hash_encoder, index) as client:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == ["search", "fetch"]
        assert all(tool.annotations.read_only_hint for tool in tools)
        assert list(tools[0].input_schema["properties"]) == ["query"]
        assert list(tools[1].input_schema["properties"]) == ["id"]


async def test_search_gives_id_title_url_and_text_and_fetch_the_passage(hash_encoder, index):
    async with connected(hash_encoder, index) as client:
        best, second, *_ = (await call(client, "search", query="old bridge river"))["results"]
        assert best == {
            "id": "bridge",
            "title": "Bridges",
            "url": "https://a.example/b",
            "text": "the old bridge over the river",
        }
        assert second["url"] == "m3://my%20notes/house"
        fetched = await call(client, "fetch", id="bridge")
        assert fetched["metadata"]["year"] == 1901
        assert (await call(client, "search", query=" ")) == {"results": []}


async def test_an_unknown_id_is_an_error_that_says_what_to_do(hash_encoder, index):
    async with connected(hash_encoder, index) as client:
        result = await client.call_tool("fetch", {"id": "none"})
        assert result.is_error
        assert "take an id from the results of search" in result.content[0].text


async def test_with_write_access_texts_are_remembered_once_and_forgotten(hash_encoder):
    index = MemoryIndex()
    async with connected(hash_encoder, index, can_write=True) as client:
        tools = {tool.name: tool.annotations.read_only_hint for tool in (await client.list_tools()).tools}
        assert tools == {"search": True, "fetch": True, "remember": False, "forget": False, "feedback": False}
        first = await call(client, "remember", text="the heron nests", title="Heron", metadata={"year": 2020})
        assert await call(client, "remember", text="the heron nests", title="Heron", metadata={"year": 2020}) == first
        await call(client, "remember", text="other words", id="mine")
        assert len(index) == 2
        (found, *_) = (await call(client, "search", query="heron nests"))["results"]
        assert (found["id"], found["title"]) == (first["id"], "Heron")
        await call(client, "forget", id=first["id"])
        assert index.ids() == ["mine"]
        refused = [
            ("remember", {"text": " "}),
            ("forget", {"id": "none"}),
            ("feedback", {"id": "none", "useful": True}),
        ]
        for tool, arguments in [*refused, ("feedback", {"id": "none", "useful": True, "query": "heron"})]:
            assert (await client.call_tool(tool, arguments)).is_error


async def test_feedback_is_recorded_with_the_last_query_that_found_the_passage(hash_encoder, tmp_path):
    with LocalIndex.open(tmp_path / "notes", hash_encoder) as index:
        ingest(hash_encoder, index, PASSAGES)
        async with connected(hash_encoder, index, can_write=True) as client:
            await call(client, "search", query="green trees")
            await call(client, "search", query="old bridge")
            answer = await call(client, "feedback", id="bridge", useful=True)
            assert answer == {"id": "bridge", "query": "old bridge", "useful": True}
            await call(client, "feedback", id="house", useful=False, query="tall trees")
        judged = [each[:3] for each in Feedback(hash_encoder, index).judgements()]
        assert judged == [("old bridge", "bridge", True), ("tall trees", "house", False)]


@pytest.mark.parametrize("key", [None, "secret"])
async def test_the_official_client_searches_over_http(hash_encoder, index, key):
    settings = ServerSettings(port=0, api_key=key)
    app = create_mcp_app(create_mcp_server(hash_encoder, index, can_write=True), settings)
    with running(app, settings) as url:
        for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            assert httpx.post(f"{url}/mcp", json={}, headers=headers).status_code == 403
        if key is not None:
            assert httpx.post(f"{url}/mcp", json={}).status_code == 401
            return
        async with Client(f"{url}/mcp") as client:
            assert "feedback" in [tool.name for tool in (await client.list_tools()).tools]
            assert (await call(client, "search", query="old bridge"))["results"][0]["id"] == "bridge"
            assert (await call(client, "feedback", id="bridge", useful=True))["query"] == "old bridge"


async def test_the_command_creates_a_memory_and_serves_it_over_stdin_and_stdout(bge_m3, tmp_path):
    words = ["-m", "m3_integrations.cli", "mcp", str(tmp_path / "notes"), "--model", str(bge_m3()), "--write"]
    async with Client(StdioServerParameters(command=sys.executable, args=words)) as client:
        assert len((await client.list_tools()).tools) == 5
        assert (await call(client, "search", query="bridge"))["results"] == []
        for passage in PASSAGES:
            await call(client, "remember", text=passage.text, id=passage.id)
        assert (await call(client, "fetch", id="heron"))["text"] == "herons nest in tall trees"
        assert len((await call(client, "search", query="bridge"))["results"]) == 3
        await call(client, "remember", text="the tide turns", id="tide")
        await call(client, "feedback", id="bridge", useful=True)
    encoder = M3Encoder.from_pretrained(str(bge_m3()))
    with LocalIndex.open(tmp_path / "notes", encoder) as index:
        assert Feedback(encoder, index).counts().useful == 1
        assert index.ids() == ["bridge", "heron", "house", "tide"]
        index.delete(index.ids())
    with open_indexes([tmp_path / "notes"], str(bge_m3()), can_be_empty=True) as (_, indexes):
        assert len(indexes["notes"]) == 0


def test_a_client_that_stops_reading_is_no_fault_of_the_server(bge_m3, tmp_path):
    words = ["-m", "m3_integrations.cli", "mcp", str(tmp_path / "notes"), "--model", str(bge_m3()), "--write"]
    about = {"protocolVersion": "2025-03-26", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
    request = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about})
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, *words], encoding="utf-8", **pipes) as server:
        server.stdout.close()
        server.stdin.write(request + "\n")
        server.stdin.close()
        assert server.stderr.read() == "0 passages of notes; serving MCP on stdin and stdout\n"


def test_a_missing_index_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="create one with: m3 index"), open_indexes([tmp_path / "none"], None):
        pass
