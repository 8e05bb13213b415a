"""Sources of `m3 index`: files, folders and stdin, read and checked before a model is loaded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from m3_integrations.cli.options import UsageError
from m3_integrations.cli.output import terminal
from m3_integrations.core.errors import MissingExtra

if TYPE_CHECKING:
    from m3_integrations import M3Encoder, Passage
    from m3_integrations.llama_index.documents import Section

CORPORA = ("corpus.jsonl", "corpus.jsonl.gz", "passages.jsonl", "passages.jsonl.gz")  # of a BEIR folder


@dataclass
class Sources:
    """Contents of the sources.

    Attributes:
        files: Files of passages, which are read again.
        rows: Number of passages in these files.
        held: Passages from stdin.
        documents: Sections of each document by its name.
        unreadable: Names of documents that could not be read, and of folders, which end in "/".
        unsupported: Names of documents that no installed library reads.
        skipped: Number of files of other kinds in folders, by ending.
    """

    files: list[Path] = field(default_factory=list)
    rows: int = 0
    held: list[Passage] = field(default_factory=list)
    documents: dict[str, list[Section]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    unsupported: set[str] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)

    def passages(self) -> Iterator[Passage]:
        """Yield the passages of files and stdin."""
        from m3_integrations.data import read_passages

        for file in self.files:
            yield from read_passages(file)
        yield from self.held

    def split_documents(self, encoder: M3Encoder, chunk_tokens: int | None) -> list[Passage]:
        """Return the passages of all documents."""
        if not self.documents:
            return []
        from m3_integrations.llama_index.documents import split_document

        documents = self.documents.items()
        return [each for name, sections in documents for each in split_document(encoder, name, sections, chunk_tokens)]

    def is_unread(self, name: str) -> bool:
        """Return whether a document may be there and was not read, for itself or for the folder that it is in."""
        folders = tuple(each for each in self.unreadable if each.endswith("/"))
        return name in self.unsupported or name in self.unreadable or name.startswith(folders)

    def add_file(self, file: Path) -> None:
        """Read a file of passages, or a document named by itself."""
        from m3_integrations.data.passages import PASSAGE_FILES, read_passages

        if Path(file.name.removesuffix(".gz")).suffix.lower() in PASSAGE_FILES:
            self.rows += sum(1 for _ in read_passages(file))
            self.files.append(file)
            return
        from m3_integrations.llama_index.documents import DOCUMENT_FILES, read_sections

        if file.suffix.lower() not in DOCUMENT_FILES:
            known = ", ".join((*PASSAGE_FILES, *DOCUMENT_FILES))
            raise ValueError(f"{file} is none of the files that can be indexed: {known}")
        self.documents[document_name(file, file)] = read_sections(file)

    def add_folder(self, folder: Path, exclude: Path) -> None:
        """Read the passages of a BEIR folder, or the documents of another folder."""
        corpus = next((folder / name for name in CORPORA if (folder / name).is_file()), None)
        if corpus is not None:
            self.add_file(corpus)
            return
        missing: set[str] = set()

        def note_unreadable(error: OSError) -> None:
            terminal.warn(f"{error.filename} cannot be read ({error.strerror})")
            self.unreadable.append(document_name(Path(error.filename), folder) + "/")

        for file in _walk(folder, exclude, note_unreadable):
            self._add_document(file, folder, missing)
        for reason in sorted(missing):
            terminal.warn(f"files are skipped: {reason}")

    def _add_document(self, file: Path, folder: Path, missing: set[str]) -> None:
        from m3_integrations.llama_index.documents import DOCUMENT_FILES, read_sections

        ending = file.suffix.lower()
        if ending not in DOCUMENT_FILES:
            self.skipped[ending or file.name] += 1
            return
        name = document_name(file, folder)
        try:
            self.documents[name] = read_sections(file)
            if not self.documents[name]:
                terminal.warn(f"{file} holds no text; if it is scanned, run OCR on it first")
        except MissingExtra as error:
            missing.add(str(error))
            self.unsupported.add(name)
            self.skipped[ending] += 1
        except (OSError, ValueError) as error:
            terminal.warn(str(error))
            self.unreadable.append(name)


def read_sources(sources: Sequence[str], exclude: Path) -> Sources:
    """Read the sources of an index.

    Args:
        sources: Files, folders, and "-" for JSON lines from stdin.
        exclude: Folder that is not read, which is that of the index.

    Raises:
        FileNotFoundError: If a source is missing.
        ValueError: If a file cannot be read, or the sources hold no passages.
        UsageError: If stdin is named twice.
    """
    from m3_integrations.data import read_passages

    if sources.count("-") > 1:
        raise UsageError("stdin can be read once; give - once")
    for source in sources:
        if source != "-" and not Path(source).exists():
            raise FileNotFoundError(f"there is no {source}; name a file, a folder, or - for stdin")
    found = Sources()
    for source in sources:
        if source == "-":
            found.held += read_passages(source)
        elif Path(source).is_dir():
            found.add_folder(Path(source), exclude)
        else:
            found.add_file(Path(source))
    if found.skipped:
        kinds = ", ".join(f"{count} {ending}" for ending, count in found.skipped.most_common())
        terminal.note(f"skipped files of other kinds: {kinds}")
    if not (found.rows or found.held or any(found.documents.values())):
        named = " ".join("stdin" if source == "-" else source for source in sources)
        raise ValueError(f"there are no passages in {named}; m3 index --help names the files that are read")
    return found


def document_name(file: Path, source: Path) -> str:
    """Return the path of a file below the working directory; outside of it, from the name of its source on."""
    absolute, here = Path(os.path.normpath(file.absolute())), Path.cwd()
    base = here if absolute.is_relative_to(here) else Path(os.path.normpath(source.absolute())).parent
    return absolute.relative_to(base).as_posix()


def _walk(folder: Path, exclude: Path, on_error: Callable[[OSError], None]) -> Iterator[Path]:
    """Yield the files of a folder in order, but for hidden ones and an excluded folder."""
    for root, folders, files in os.walk(folder, onerror=on_error):
        at = Path(root)
        folders[:] = sorted(name for name in folders if name[0] != "." and not _is_same(at / name, exclude))
        yield from (at / name for name in sorted(files) if name[0] != ".")


def _is_same(path: Path, other: Path) -> bool:
    return path.resolve() == other.resolve()
