"""Documents are read in sections and split by the model's tokens."""

from __future__ import annotations

import zipfile

import pytest

from m3_integrations import M3Encoder, Passage
from m3_integrations.llama_index.documents import Section, read_sections, split_document
from tests.optional import requires


def test_markdown_has_a_section_for_each_heading(tmp_path):
    file = tmp_path / "birds.md"
    file.write_text("# Birds\n\nThey fly.\n\n## Heron\n\nIt nests.\n\n# Fish\n\nThey swim.\n", encoding="utf-8")
    assert read_sections(file) == [
        Section("# Birds\n\nThey fly.", {"heading": "Birds"}),
        Section("## Heron\n\nIt nests.", {"heading": "Birds / Heron"}),
        Section("# Fish\n\nThey swim.", {"heading": "Fish"}),
    ]


def test_a_text_is_one_section_and_a_blank_one_none(tmp_path):
    (tmp_path / "a.txt").write_text("# no heading\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text(" \n", encoding="utf-8")
    assert read_sections(tmp_path / "a.txt") == [Section("# no heading\n", {})]
    assert read_sections(tmp_path / "b.txt") == []


@requires("beautifulsoup4")
def test_html_is_read_without_scripts_and_by_its_headings(tmp_path):
    file = tmp_path / "page.html"
    file.write_text(
        "<head><title>t</title><style>p {}</style></head><script>alert(1)</script><h1>Birds <i>fly</i></h1>"
        "<p>The <b>heron</b> nests.</p><h2>Food</h2><ul><li>fish</li><li>frogs</li></ul>",
        encoding="utf-8",
    )
    first, second = read_sections(file)
    assert (first.metadata, second.metadata) == ({"heading": "Birds fly"}, {"heading": "Birds fly / Food"})
    assert "The heron nests." in first.text
    assert second.text.split() == ["##", "Food", "fish", "frogs"]
    assert "alert" not in first.text + second.text


@requires("llama-index-readers-file")
def test_pdf_has_a_section_for_each_page(tmp_path):
    file = tmp_path / "paper.pdf"
    file.write_bytes(pdf_of("The heron nests.", "Copper doubled."))
    assert [(section.text.strip(), section.metadata) for section in read_sections(file)] == [
        ("The heron nests.", {"page": "1"}),
        ("Copper doubled.", {"page": "2"}),
    ]


@requires("llama-index-readers-file")
def test_a_damaged_pdf_is_named(tmp_path):
    file = tmp_path / "paper.pdf"
    file.write_bytes(b"%PDF-1.4 nothing else")
    with pytest.raises(ValueError, match=r"paper\.pdf cannot be read"):
        read_sections(file)


@requires("docx2txt")
def test_word_files_are_read(tmp_path):
    file = tmp_path / "letter.docx"
    space = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    body = (
        f'<w:document xmlns:w="{space}"><w:body><w:p><w:r><w:t>The heron nests.</w:t></w:r></w:p></w:body></w:document>'
    )
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", body)
    assert [section.text.strip() for section in read_sections(file)] == ["The heron nests."]


def test_long_sections_are_split_by_tokens(bge_m3):
    encoder = M3Encoder.from_pretrained(str(bge_m3()))
    text = " ".join(f"The bridge {i}." for i in range(40))
    passages = list(split_document(encoder, "docs/a.md", [Section(text, {"heading": "Bridges"})], 20))
    assert [passage.id for passage in passages] == [f"docs/a.md#{i}" for i in range(1, len(passages) + 1)]
    assert len(passages) > 2
    assert all(passage.metadata == {"source": "docs/a.md", "heading": "Bridges"} for passage in passages)


def test_a_short_section_is_one_passage(bge_m3):
    encoder = M3Encoder.from_pretrained(str(bge_m3()))
    assert list(split_document(encoder, "a.txt", [Section("the bridge", {})])) == [
        Passage("a.txt#1", "the bridge", {"source": "a.txt"})
    ]


def pdf_of(*pages: str) -> bytes:
    """Return a PDF with one line of text on each page."""
    count = len(pages)
    kids = " ".join(f"{3 + i} 0 R" for i in range(count))
    font = 3 + 2 * count
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>",
        *(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 300] /Contents {3 + count + i} 0 R "
            f"/Resources << /Font << /F {font} 0 R >> >> >>"
            for i in range(count)
        ),
        *(
            f"<< /Length {len(content)} >>\nstream\n{content}\nendstream"
            for content in (f"BT /F 12 Tf 10 200 Td ({text}) Tj ET" for text in pages)
        ),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    data, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    size = len(objects) + 1
    trailer = f"trailer << /Size {size} /Root 1 0 R >>\nstartxref\n{len(data)}\n%%EOF\n"
    return f"{data}xref\n0 {size}\n0000000000 65535 f \n{table}{trailer}".encode()
