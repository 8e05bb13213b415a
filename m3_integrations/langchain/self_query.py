"""M3Translator: the filters of LangChain's SelfQueryRetriever as filters of M3VectorStore."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Any

from langchain_core.structured_query import (
    Comparator,
    Comparison,
    FilterDirective,
    Operation,
    Operator,
    StructuredQuery,
    Visitor,
)

from m3_integrations.index.filters import (
    Field,
    Operator as FieldOperator,
    Where,
    all_of,
    any_of,
    none_of,
    too_deep_error,
)

_COMPARATORS: Mapping[Comparator, FieldOperator] = {
    Comparator.EQ: "==",
    Comparator.NE: "!=",
    Comparator.GT: ">",
    Comparator.GTE: ">=",
    Comparator.LT: "<",
    Comparator.LTE: "<=",
    Comparator.CONTAIN: "contains",
    Comparator.LIKE: "contains",
    Comparator.IN: "in",
    Comparator.NIN: "not in",
}
_OPERATORS: Mapping[Operator, Callable[..., Where]] = {
    Operator.AND: all_of,
    Operator.OR: any_of,
    Operator.NOT: none_of,
}
_DATES: Mapping[str, Callable[[str], date]] = {"date": date.fromisoformat, "datetime": datetime.fromisoformat}


class M3Translator(Visitor):
    """Translator of structured queries to a query and a `Where`.

    Pass it as `SelfQueryRetriever.from_llm(..., structured_query_translator=M3Translator())`. "contain" and "like"
    match elements of lists and substrings, case-sensitively; "%" at the ends of a "like" pattern is ignored. Dates and
    datetimes are compared with those that M3VectorStore stores.
    """

    allowed_comparators = tuple(_COMPARATORS)
    allowed_operators = tuple(_OPERATORS)

    def visit_operation(self, operation: Operation) -> Where:
        """Translate a combination of conditions.

        Args:
            operation: The combination.

        Returns:
            The filter.
        """
        return _OPERATORS[operation.operator](*map(self._visit, operation.arguments))

    def visit_comparison(self, comparison: Comparison) -> Where:
        """Translate a comparison.

        Args:
            comparison: The condition.

        Returns:
            The filter.

        Raises:
            UnsupportedFilter: If the comparator does not take the value.
        """
        value = _to_value(comparison.value)
        if comparison.comparator == Comparator.LIKE and isinstance(value, str):
            value = value.strip("%")
        if comparison.comparator in (Comparator.IN, Comparator.NIN) and not isinstance(value, list):
            value = [value]
        return Field(comparison.attribute, _COMPARATORS[comparison.comparator], value)

    def visit_structured_query(self, structured_query: StructuredQuery) -> tuple[str, dict[str, Any]]:
        """Translate a structured query.

        Args:
            structured_query: The query.

        Returns:
            The query, and the search arguments: `filter` if there is one.

        Raises:
            UnsupportedFilter: If the filter is nested too deep.
        """
        filter = structured_query.filter
        try:
            return structured_query.query, {} if filter is None else {"filter": self._visit(filter)}
        except RecursionError:
            raise too_deep_error() from None

    def _visit(self, directive: FilterDirective) -> Where:
        where: Where = directive.accept(self)
        return where


def _to_value(value: Any) -> Any:
    """Convert the dates of LangChain's query parser, such as {"date": "2024-01-31", "type": "date"}."""
    if isinstance(value, (list, tuple)):
        return [_to_value(each) for each in value]
    if isinstance(value, Mapping) and value.get("type") in _DATES:
        kind = value["type"]
        return _DATES[kind](value[kind])
    return value
