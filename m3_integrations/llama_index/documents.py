"""Passages of documents: text, Markdown, HTML, PDF and Word files, split by the model's tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from llama_index.core.node_parser import MarkdownNodeParser
from llama_index.core.schema import Document

from m3_integrations.adapters.text_length import max_tokens
from m3_integrations.core.optional import import_optional
from m3_integrations.core.types import Passage
from m3_integrations.data.text_files import LONGEST_DOCUMENT, text_lines
from m3_integrations.encoders.m3 import M3Encoder
from m3_integrations.llama_index.embedding import M3Embedding

CHUNK_TOKENS = 512
_EXTRA = "files"
_HIDDEN = ("script", "style", "template", "noscript", "head")
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")


class Section(NamedTuple):
    """A part of a document and its metadata: heading or page."""

    text: str
    metadata: Mapping[str, Any]


def split_document(
    encoder: M3Encoder, name: str, sections: Sequence[Section], chunk_tokens: int | None = None
) -> Iterator[Passage]:
    """Yield the passages of a document in order, with the ids name#1, name#2 and so on.

    Args:
        encoder: Encoder whose tokens are counted.
        name: Name of the document, stored as `source` in the metadata.
        sections: Its sections; no passage belongs to two.
        chunk_tokens: Most tokens of a passage; default 512, or what the encoder reads at once if that is less.

    Raises:
        ValueError: If the encoder would truncate passages of `chunk_tokens`.
    """
    size = min(CHUNK_TOKENS, max_tokens(encoder)) if chunk_tokens is None else chunk_tokens
    splitter = M3Embedding(encoder=encoder).node_parser(size)
    chunks = ((chunk, section.metadata) for section in sections for chunk in splitter.split_text(section.text))
    for number, (text, metadata) in enumerate(chunks, start=1):
        yield Passage(f"{name}#{number}", text, {"source": name, **metadata})


def read_sections(file: Path) -> list[Section]:
    """Read the sections of a document that are not blank.

    Raises:
        MissingExtra: If the library that reads such files is not installed.
        ValueError: If the file cannot be read.
    """
    sections = DOCUMENT_FILES[file.suffix.lower()](file)
    return [section for section in sections if section.text.strip()]


def require_reader(ending: str) -> None:
    """Check that files with this ending can be read.

    Raises:
        MissingExtra: If the library that reads them is not installed.
    """
    for distribution, module in _LIBRARIES.get(ending, {}).items():
        import_optional(distribution, extra=_EXTRA, module=module)


def _read_text(file: Path) -> Iterator[Section]:
    yield Section(_text_of(file), {})


def _read_markdown(file: Path) -> Iterator[Section]:
    return _markdown_sections(_text_of(file))


def _read_html(file: Path) -> Iterator[Section]:
    soup: Any = import_optional("beautifulsoup4", extra=_EXTRA, module="bs4").BeautifulSoup(
        file.read_bytes(), "html.parser"
    )
    for tag in soup(_HIDDEN):
        tag.decompose()
    for tag in soup(_HEADINGS):
        title = " ".join(tag.get_text(" ").split())
        tag.replace_with(f"\n\n{'#' * int(tag.name[1])} {title}\n\n")
    for tag in soup(("p", "div", "li", "tr", "br", "section", "article", "pre", "table", "ul", "ol", "blockquote")):
        tag.insert_before("\n")
        tag.insert_after("\n")
    return _markdown_sections(re.sub(r"\n\s*\n+", "\n\n", soup.get_text()))


def _read_by_reader(name: str, file: Path) -> Iterator[Section]:
    """Read a file by a reader of LlamaIndex."""
    require_reader(file.suffix.lower())
    readers: Any = import_optional("llama-index-readers-file", extra=_EXTRA, module="llama_index.readers.file")
    try:
        documents: Iterable[Document] = getattr(readers, name)().load_data(file)
    except Exception as error:  # the parsers of these formats raise errors of many kinds
        attempt = getattr(error, "last_attempt", None)  # of a reader that tries again
        cause = error if attempt is None else attempt.exception()
        raise ValueError(f"{file} cannot be read ({type(cause).__name__}: {cause})") from error
    for document in documents:
        page = document.metadata.get("page_label")
        yield Section(document.text, {} if page is None else {"page": page})


def _markdown_sections(text: str) -> Iterator[Section]:
    for node in MarkdownNodeParser().get_nodes_from_documents([Document(text=text)]):
        section = node.get_content()
        own = re.match(r"#+\s+(.*)", section)
        parents = [part for part in str(node.metadata["header_path"]).split("/") if part]
        headings = [*parents, own[1].strip()] if own else parents
        yield Section(section, {"heading": " / ".join(headings)} if headings else {})


def _text_of(file: Path) -> str:
    return "".join(text_lines(file, LONGEST_DOCUMENT))


_LIBRARIES: Mapping[str, Mapping[str, str]] = {
    ".html": {"beautifulsoup4": "bs4"},
    ".htm": {"beautifulsoup4": "bs4"},
    ".pdf": {"llama-index-readers-file": "llama_index.readers.file", "pypdf": "pypdf"},
    ".docx": {"llama-index-readers-file": "llama_index.readers.file", "docx2txt": "docx2txt"},
}
DOCUMENT_FILES: Mapping[str, Callable[[Path], Iterator[Section]]] = {
    ".txt": _read_text,
    ".md": _read_markdown,
    ".markdown": _read_markdown,
    ".html": _read_html,
    ".htm": _read_html,
    ".pdf": partial(_read_by_reader, "PDFReader"),
    ".docx": partial(_read_by_reader, "DocxReader"),
}
