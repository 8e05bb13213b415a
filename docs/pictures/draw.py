"""The pictures of the documentation: `python docs/pictures/draw.py` writes them to docs/images.

Each has a background of its own and follows the color scheme of the reader, so that it is readable in light and dark.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from m3_integrations.nudging.method.closed_form import rotate

IMAGES = Path(__file__).parents[1] / "images"
STYLE = """
.ground { fill: #ffffff; stroke: #d5d9e0 } .box { fill: #f4f6f9; stroke: #6b7280 }
text { font: 15px system-ui, sans-serif; fill: #1f2430 } .note { font-size: 13px; fill: #4a5060 }
.title { font-weight: 600 } .line { stroke: #4a5060; fill: none; stroke-width: 1.5 } .tip { fill: #4a5060 }
.dense { fill: #2a66d0 } .sparse { fill: #9a5b00 } .multi { fill: #1f7a4d } .faint { stroke: #9aa1ad; fill: none }
.moved { stroke: #1f7a4d; fill: none; stroke-width: 2.5 } .query { fill: #9a5b00 }
@media (prefers-color-scheme: dark) {
.ground { fill: #1e2129; stroke: #3a3f4b } .box { fill: #2a2e38; stroke: #9aa1ad }
text { fill: #e8eaf0 } .note { fill: #c3c7d1 } .line { stroke: #c3c7d1 } .tip { fill: #c3c7d1 }
.dense { fill: #7aa7ff } .sparse { fill: #f0a94a } .multi { fill: #5ec795 } .faint { stroke: #6b7280 }
.moved { stroke: #5ec795 } .query { fill: #f0a94a } }
"""


class Picture:
    """An SVG with boxes, arrows, dots and texts."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.size = (width, height)
        self.parts = [
            f"<title>{escape(title)}</title><style>{STYLE}</style>",
            f'<rect class="ground" x="1" y="1" width="{width - 2}" height="{height - 2}" rx="10"/>',
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" markerHeight="9"'
            ' markerUnits="userSpaceOnUse" orient="auto"><path class="tip" d="M0 0 8 4 0 8z"/></marker></defs>',
        ]

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "middle") -> None:
        self.parts.append(f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>')

    def box(self, x: float, y: float, width: float, height: float, *lines: str) -> None:
        """Draw a box whose first line is its title."""
        self.parts.append(f'<rect class="box" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>')
        top = y + height / 2 + 5 - 9 * (len(lines) - 1)
        for number, line in enumerate(lines):
            self.text(x + width / 2, top + 18 * number, line, "note" if number else "title")

    def arrow(self, x: float, y: float, to_x: float, to_y: float, kind: str = "line") -> None:
        self.parts.append(
            f'<line class="{kind}" x1="{x:.5g}" y1="{y:.5g}" x2="{to_x:.5g}" y2="{to_y:.5g}" marker-end="url(#tip)"/>'
        )

    def dot(self, x: float, y: float, radius: float, kind: str) -> None:
        self.parts.append(f'<circle class="{kind}" cx="{x:.5g}" cy="{y:.5g}" r="{radius:g}"/>')

    def bar(self, x: float, y: float, width: float, kind: str, label: str) -> None:
        """Draw a colored bar with its label below it."""
        self.parts.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="10" rx="3"/>')
        self.text(x + width / 2, y + 28, label, "note")

    def __str__(self) -> str:
        width, height = self.size
        body = "\n".join(self.parts)
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">\n{body}\n</svg>\n'


def architecture() -> Picture:
    """From texts to results, and back from logs to the index."""
    picture = Picture(860, 330, "Texts are encoded in three modes, stored, searched, and learned from")
    picture.box(30, 60, 150, 60, "Passages", "files, tables, nodes")
    picture.box(30, 170, 150, 60, "Question", "any language")
    picture.box(240, 100, 170, 90, "Encoder", "BGE-M3, m3-mini, …", "one forward pass")
    picture.arrow(180, 90, 236, 130)
    picture.arrow(180, 200, 236, 160)
    picture.bar(455, 52, 70, "dense", "dense")
    picture.bar(540, 52, 70, "sparse", "sparse")
    picture.bar(625, 52, 90, "multi", "multi-vector")
    picture.box(455, 100, 260, 60, "Index", "folder, memory or Qdrant server")
    picture.box(455, 190, 260, 60, "Retriever", "candidates, then exact scores")
    picture.arrow(410, 130, 451, 130)
    picture.arrow(410, 170, 451, 210)
    picture.arrow(585, 160, 585, 186)
    picture.box(740, 190, 100, 60, "Results")
    picture.arrow(715, 220, 736, 220)
    picture.box(740, 100, 100, 60, "NUDGE", "from logs")
    picture.arrow(790, 190, 790, 164)
    picture.arrow(740, 130, 719, 130)
    picture.text(
        430, 300, "LlamaIndex and LangChain components, the m3 command, an HTTP API and MCP use the same parts", "note"
    )
    return picture


def query() -> Picture:
    """The path of a query."""
    picture = Picture(860, 250, "A query is encoded once; candidates of two modes are scored exactly in all three")
    picture.box(20, 95, 120, 60, "Query", "encoded once")
    picture.box(190, 40, 190, 60, "Dense search", "best 100, filtered")
    picture.box(190, 150, 190, 60, "Sparse search", "best 100, filtered")
    picture.arrow(140, 115, 186, 75)
    picture.arrow(140, 135, 186, 175)
    picture.box(430, 95, 110, 60, "Union", "100 to 200")
    picture.arrow(380, 70, 426, 112)
    picture.arrow(380, 180, 426, 138)
    picture.box(590, 80, 130, 90, "Exact scores", "in every mode,", "weighted sum")
    picture.arrow(540, 125, 586, 125)
    picture.box(770, 95, 70, 60, "Top k")
    picture.arrow(720, 125, 766, 125)
    for x, kind, label in ((450, "dense", "dense"), (530, "sparse", "sparse"), (610, "multi", "multi-vector")):
        picture.bar(x, 195, 65, kind, label)
    return picture


def nudge() -> Picture:
    """NUDGE-N in two dimensions: passages turn towards the sums of their queries."""
    picture = Picture(860, 430, "Passages turn towards the sums of their queries, by a bounded step")
    center, radius = np.array([225.0, 215.0]), 160.0
    passages = np.radians([20.0, 95.0, 170.0, 260.0])
    queries = np.radians([[42.0, 50.0, 36.0], [102.0, 98.0, 106.0], [150.0, 142.0, 157.0]])
    originals = np.stack([np.cos(passages), np.sin(passages)], axis=1)
    pulls = np.zeros_like(originals)
    pulls[:3] = [np.stack([np.cos(each), np.sin(each)], axis=1).sum(axis=0) for each in queries]
    moved = rotate(originals.astype(np.float32), pulls.astype(np.float32), 0.06)

    def at(vector: np.ndarray, length: float = radius) -> np.ndarray:
        return center + length * np.array([1, -1]) * vector

    picture.dot(*center, radius, "faint")
    for angle in queries.ravel():
        picture.dot(*at(np.array([np.cos(angle), np.sin(angle)]), radius + 22), 4, "query")
    for number, (before, after) in enumerate(zip(originals, moved, strict=True)):
        picture.dot(*at(before), 7, "dense")
        if np.abs(before - after).max() > 1e-6:
            picture.arrow(*at(before), *at(after), "moved")
            picture.dot(*at(after), 7, "multi")
        label = at(before, radius - 28)
        picture.text(label[0], label[1] + 5, "ABCD"[number])
    rows = (
        ("dense", "a passage as it was"),
        ("query", "a training query"),
        ("multi", "the passage afterwards"),
    )
    for row, (kind, label) in enumerate(rows):
        picture.dot(475, 100 + 34 * row, 7, kind)
        picture.text(495, 105 + 34 * row, label, anchor="start")
    notes = (
        "A, B and C turn towards their queries,",
        "by at most one step (gamma), the same for all.",
        "B reaches its sum sooner, and stops there.",
        "D has no queries and stays.",
        "The step is chosen on held-out queries.",
    )
    for row, note in enumerate(notes):
        picture.text(465, 225 + 26 * row, note, anchor="start")
    return picture


PICTURES = {"architecture.svg": architecture, "query.svg": query, "nudge.svg": nudge}

if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (IMAGES / name).write_text(str(draw()), encoding="utf-8")
