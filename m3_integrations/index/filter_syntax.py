"""Metadata filters as text: `year >= 2020 and lang in ["de", "en"]`."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from m3_integrations.core.errors import UnsupportedFilter
from m3_integrations.index.filters import Field, Operator, Where, all_of, any_of, none_of

LONGEST = 10_000  # characters
_EXAMPLE = 'write for example: year >= 2020 and lang in ["de", "en"]'
_COMPARISONS: Mapping[type[ast.cmpop], tuple[Operator, Operator]] = {  # and with the sides exchanged
    ast.Eq: ("==", "=="),
    ast.NotEq: ("!=", "!="),
    ast.Lt: ("<", ">"),
    ast.LtE: ("<=", ">="),
    ast.Gt: (">", "<"),
    ast.GtE: (">=", "<="),
}
_TOKEN = re.compile(r"\w+|[=&|!<>]+")
_HABITS = {  # of SQL and C, and what they are here
    **{
        "=": "==",
        "<>": "!=",
        "!": "not",
        "&": "and",
        "&&": "and",
        "|": "or",
        "||": "or",
        "like": "contains(field, ...)",
    },
    **{word: word for word in ("and", "or", "not", "in")},
}
_NAMED_VALUES = {"true": True, "false": False, "null": None}


def parse_where(text: str) -> Where:
    """Parse a filter that is written as a Python expression; nothing of it is run.

    Fields are names (`year`), paths (`author.name`) or `field("any key")`. Conditions are `==`, `!=`, `<`, `<=`, `>`,
    `>=`, also in chains (`2000 <= year < 2010`), `lang in ["de", "en"]`, `"tea" in tags`, `exists(year)`,
    `contains(title, "tea")` and `icontains(title, "tea")`, combined by `and`, `or`, `not` and parentheses. Values are
    numbers, quoted strings, true, false and null. See `Field` for their meaning.

    Args:
        text: The expression, such as 'year >= 2020 and lang in ["de", "en"]'.

    Returns:
        The filter.

    Raises:
        UnsupportedFilter: If the text is not such a filter; its `position` says where.
    """
    if len(text) > LONGEST:
        raise UnsupportedFilter(f"the filter has {len(text):,} characters; write at most {LONGEST:,}")
    stripped = text.strip()
    start = text.find(stripped)
    try:
        return _where(ast.parse(stripped, mode="eval").body)
    except UnsupportedFilter as error:
        if error.position is not None:  # in bytes of UTF-8
            error.position = start + len(stripped.encode()[: error.position].decode())
        raise
    except SyntaxError as error:
        at = (error.offset or len(stripped) + 1) - 1 if error.lineno in (None, 1) else None
        refusal = UnsupportedFilter(f"the filter {text!r} cannot be read ({_reason(stripped, at, error)}); {_EXAMPLE}")
        refusal.position = None if at is None else start + at
        raise refusal from None
    except (ValueError, RecursionError, MemoryError):
        raise UnsupportedFilter(f"the filter {text[:80]!r} cannot be read; {_EXAMPLE}") from None


def _reason(text: str, at: int | None, error: SyntaxError) -> str:
    """Return what is wrong in terms of filters, since Python's words are about programs."""
    if at is None or at >= len(text):
        return "it is empty" if not text else error.msg if at is None else "it ends too early"
    written = next((each[0] for each in _TOKEN.finditer(text) if each.start() <= at < each.end()), "")
    meant = _HABITS.get(written.lower(), written)
    return error.msg if meant == written else f"write {meant} instead of {written}"


def _where(node: ast.expr) -> Where:
    match node:
        case ast.BoolOp(op=ast.And(), values=parts):
            return all_of(*map(_where, parts))
        case ast.BoolOp(values=parts):
            return any_of(*map(_where, parts))
        case ast.UnaryOp(op=ast.Not(), operand=part):
            return none_of(_where(part))
        case ast.Compare(left=left, ops=operators, comparators=others):
            sides = [left, *others]
            conditions = [_condition(*each) for each in zip(sides, operators, others, strict=False)]
            return conditions[0] if len(conditions) == 1 else all_of(*conditions)
        case ast.Call(func=ast.Name(id="exists"), args=[field], keywords=[]):
            return Field(_field(field), "exists", True)
        case ast.Call(func=ast.Name(id="contains" | "icontains" as operator), args=[field, value], keywords=[]):
            return Field(_field(field), "contains" if operator == "contains" else "icontains", _value(value))
        case _:
            raise _refusal(node, "is no condition")


def _condition(left: ast.expr, operator: ast.cmpop, right: ast.expr) -> Where:
    if isinstance(operator, ast.In | ast.NotIn):
        if _is_field(left):
            return Field(_field(left), "in" if isinstance(operator, ast.In) else "not in", _value(right))
        contains = Field(_field(right), "contains", _value(left))
        return contains if isinstance(operator, ast.In) else none_of(contains)
    if type(operator) not in _COMPARISONS:
        raise _refusal(right, "is compared by 'is'; use == or !=")
    symbol, exchanged = _COMPARISONS[type(operator)]
    return (
        Field(_field(left), symbol, _value(right)) if _is_field(left) else Field(_field(right), exchanged, _value(left))
    )


def _is_field(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute | ast.Call) or (isinstance(node, ast.Name) and node.id not in _NAMED_VALUES)


def _field(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) if name not in _NAMED_VALUES:
            return name
        case ast.Attribute(value=outer, attr=name):
            return f"{_field(outer)}.{name}"
        case ast.Call(func=ast.Name(id="field"), args=[ast.Constant(value=str(name))], keywords=[]):
            return name
        case _:
            raise _refusal(node, "is no field; a condition compares a field with a value")


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.Name(id=name) if name in _NAMED_VALUES:
            return _NAMED_VALUES[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return [_value(item) for item in items]
        case ast.Name(id=name):
            raise _refusal(node, f'is no value; put quotes around a text: "{name}"')
        case _:
            raise _refusal(node, "is no value; values are numbers, quoted texts, true, false, null and lists of them")


def _refusal(node: ast.expr, reason: str) -> UnsupportedFilter:
    refusal = UnsupportedFilter(f"the filter cannot be read: {ast.unparse(node)[:80]} {reason}; {_EXAMPLE}")
    refusal.position = node.col_offset if node.lineno == 1 else None
    return refusal
