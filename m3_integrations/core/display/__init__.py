"""Short reprs of values, and their HTML in notebooks."""

from m3_integrations.core.display.html import TextMark, html_table, marked_html
from m3_integrations.core.display.reprs import FieldsDisplay, short_repr

__all__ = ["FieldsDisplay", "TextMark", "html_table", "marked_html", "short_repr"]
