"""The reference page of the command line, generated from typer."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import typer.main

from m3_integrations.cli.entry_point import app


def commands() -> Mapping[str, Any]:
    """Return the commands of `m3` by name, as click objects."""
    return typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group


def page() -> str:
    """Return the Markdown of the page."""
    lines = ["# Command line reference", ""]
    lines += ["Generated from `m3 COMMAND --help`. [Command line](../cli.md) explains the commands by task.", ""]
    for name, command in commands().items():
        lines += [f"## m3 {name}", "", inspect.cleandoc(command.help or ""), "", "```text"]
        lines += [" ".join(["m3", name, *_usage(command)]), "```", ""]
        lines += ["| argument or option | meaning | default |", "|---|---|---|"]
        lines += [f"| {_name(each)} | {_cell(each.help or '')} | {_default(each)} |" for each in parameters(command)]
        lines.append("")
    return "\n".join(lines)


def parameters(command: Any) -> Iterator[Any]:
    """Yield the parameters of a command, arguments first."""
    visible = [each for each in command.params if not getattr(each, "hidden", False) and each.name != "help"]
    return iter(sorted(visible, key=lambda each: each.param_type_name != "argument"))


def _usage(command: Any) -> Iterator[str]:
    yield "[OPTIONS]"
    for each in parameters(command):
        if each.param_type_name == "argument":
            name = (each.metavar or each.name).upper().strip("[]").removesuffix("...")
            shown = f"{name}..." if each.nargs == -1 else name
            yield shown if each.required else f"[{shown}]"


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{(parameter.metavar or parameter.name).upper().strip('[]')}`"
    return ", ".join(f"`{flag}`" for flag in (*parameter.opts, *parameter.secondary_opts))


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    shown = getattr(parameter, "show_default", None)
    value = shown if isinstance(shown, str) else parameter.default
    if value is None or value is False or callable(value) or value in ([], ()):
        return ""
    return f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
