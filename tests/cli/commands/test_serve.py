"""`m3 serve`: what it checks before it starts, and the process itself."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import httpx
import pytest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--host", "0.0.0.0"), "needs an API key; set M3_API_KEY"),
        (("--port", "70000"), "port must be from 0 to 65535"),
        (("--max-texts", "0"), "max_texts must be above 0"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "mcp"])
def test_settings_that_are_invalid_do_not_start_a_server(run, filled, monkeypatch, command, words, message):
    monkeypatch.delenv("M3_API_KEY", raising=False)
    if command == "mcp" and words[0] == "--max-texts":
        words, message = ("-k", "0"), "-k must be at least 1"
    result = run(command, filled, *words)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_missing_index_and_two_of_one_name_are_refused(run, filled, tmp_path):
    assert run("serve", tmp_path / "none").exit_code == 1
    (tmp_path / "other" / "filled").mkdir(parents=True)
    result = run("serve", filled, tmp_path / "other" / "filled")
    assert result.exit_code == 2
    assert "two folders are named 'filled'" in result.stderr


def test_a_port_that_is_in_use_is_named(run, bge_m3):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", "--model", bge_m3(), "--port", port)
    assert result.exit_code == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in result.stderr


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_stop(filled, bge_m3, stop):
    words = [sys.executable, "-m", "m3_integrations.cli", "serve", filled, "--model", bge_m3(), "--port", "0", "--json"]
    with subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, text=True) as process:
        try:
            document = json.loads(process.stdout.readline())
            assert list(document) == ["schema", "command", "url", "model", "fingerprint", "indexes"]
            assert document["indexes"] == {"filled": 2}
            found = httpx.post(f"{document['url']}/search", json={"query": "the bridge", "k": 1}, timeout=60).json()
            assert found["hits"][0]["id"] == "a"
        finally:
            process.send_signal(stop)
        assert process.wait(120) in (0, 130, -stop)
