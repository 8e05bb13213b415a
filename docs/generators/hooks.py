"""Hooks of mkdocs: generated pages, links that leave docs/, Markdown twins and llms.txt."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from mkdocs.structure.files import File, Files  # noqa: E402

from docs.generators import api, command_line, http_api, machines, notebooks  # noqa: E402

# Pages whose text is elsewhere in the repository.
COPIED = {
    "changelog.md": "CHANGELOG.md",
    "architecture.md": "ARCHITECTURE.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "m3_mini.md": "m3_integrations/models/m3_mini/README.md",
    "world.md": "examples/world/README.md",
}
_shown: dict[str, str] = {}  # the Markdown of each page by its path
_LINK = re.compile(r"\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def generated_pages() -> dict[str, str]:
    """Return the Markdown of every page that is not in docs/, by its path."""
    copied = {page: (ROOT / source).read_text(encoding="utf-8") for page, source in COPIED.items()}
    return {
        **copied,
        **{f"notebooks/{each.stem}.md": notebooks.to_markdown(each) for each in notebooks.FOLDER.glob("*.ipynb")},
        **dict(api.pages()),
        "reference/command_line.md": command_line.page(),
        "reference/http.md": http_api.page(),
    }


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for path, content in generated_pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:  # noqa: ARG001  # an event of mkdocs
    """Make links to files outside docs/ links to their page, or plain text."""
    source = page.file.src_uri
    home = ROOT / COPIED[source] if source in COPIED else ROOT / "docs" / source
    _shown[source] = _LINK.sub(lambda link: _link(link, home, source), markdown)
    return _shown[source]


def _link(link: re.Match[str], home: Path, source: str) -> str:
    text, target, anchor = link[1], link[2], link[3] or ""
    if re.match(r"[a-z]+:", target):
        return link[0]
    path = (home.parent / target).resolve()
    if not path.is_relative_to(ROOT) or not path.exists():
        return link[0]  # a link to a generated page, or a broken one, which mkdocs reports
    relative = path.relative_to(ROOT).as_posix()
    pages = {origin: page for page, origin in COPIED.items()}
    if relative.startswith("docs/"):
        found = relative.removeprefix("docs/")
    elif relative in pages:
        found = pages[relative]
    else:
        return text if "`" in text else f"{text} (`{relative}`)"
    up = "../" * source.count("/")
    return f"[{text}]({up}{found}{anchor})"


def on_post_page(output: str, page: Any, config: Any) -> str:  # noqa: ARG001  # an event of mkdocs
    """Name the search for screen readers, and make empty headings of tables plain cells."""
    named = re.sub('data-md-component="search" role="dialog"', r'\g<0> aria-label="Search"', output)
    return re.sub(r"<th([^>]*)>\s*</th>", r"<td\1></td>", named)


def on_post_build(config: Any) -> None:
    """Write the Markdown twins and llms.txt."""
    machines.write(Path(config["site_dir"]), _shown, config["nav"], config["site_name"], config["site_description"])
