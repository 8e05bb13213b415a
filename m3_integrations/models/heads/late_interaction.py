"""Tokens that have vectors in late interaction, as in ColBERT (arXiv 2004.12832 and 2112.01488)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class QueryExpansion:
    """Expansion of short queries by mask tokens, which have vectors too.

    Attributes:
        length: Tokens of an expanded query.
        token: The token that expands queries.
        attend: Whether the other tokens attend to it.
        truncate: Whether longer queries are truncated to `length`.

    Raises:
        ValueError: If a value is invalid.
    """

    length: int
    token: str
    attend: bool = False
    truncate: bool = True

    def __post_init__(self) -> None:
        if type(self.length) is not int or self.length < 8:
            raise ValueError(f"queries are expanded to a whole number of tokens from 8, got {self.length!r}")
        if not isinstance(self.token, str) or not isinstance(self.attend, bool) or not isinstance(self.truncate, bool):
            raise ValueError(f"an expansion has a token, attend and truncate as true or false, got {self!r}")


@dataclass(frozen=True)
class LateInteraction:
    """Conventions of a ColBERT-like checkpoint, in which special tokens and prefixes have vectors too.

    Attributes:
        query_length: Longest query in tokens; None as long as passages.
        passage_length: Longest passage in tokens; None is what the tokenizer states.
        expansion: Expansion of queries; None for none.
        skiplist: Tokens without vectors.
        skipped_in: Texts in which these have none.

    Raises:
        ValueError: If a value is invalid.
    """

    query_length: int | None = None
    passage_length: int | None = None
    expansion: QueryExpansion | None = None
    skiplist: Sequence[str] = ()
    skipped_in: Sequence[Literal["query", "document"]] = ("document",)

    def __post_init__(self) -> None:
        for name in ("skiplist", "skipped_in"):  # lists in JSON
            values = getattr(self, name)
            if isinstance(values, str) or not all(isinstance(each, str) for each in values):
                raise ValueError(f"{name} lists strings, got {values!r}")
            object.__setattr__(self, name, tuple(values))
        if not set(self.skipped_in) <= {"query", "document"}:
            raise ValueError(f"skipped_in lists 'query' and 'document', got {self.skipped_in!r}")
        for name in ("query_length", "passage_length"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 8):
                raise ValueError(f"{name} is a whole number of tokens from 8, got {value!r}")

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> LateInteraction:
        """Read what `dataclasses.asdict` gave."""
        expansion = stated.get("expansion")
        return cls(**{**stated, "expansion": None if expansion is None else QueryExpansion(**expansion)})

    def tokens_of(self, side: Literal["query", "document"], vocabulary: Mapping[str, int]) -> VectorTokens:
        """Return the tokens that have vectors in the texts of a side."""
        skipped = [vocabulary[each] for each in self.skiplist if each in vocabulary] if side in self.skipped_in else []
        expansion = self.expansion if side == "query" else None
        if expansion is None:
            return VectorTokens(np.array(skipped, np.int32))
        return VectorTokens(
            np.array(skipped, np.int32), expansion.length, vocabulary[expansion.token], expansion.attend
        )


class VectorTokens(NamedTuple):
    """Tokens that have vectors: all but the skipped ones, and those that expand a text.

    Attributes:
        skipped: Ids of tokens without a vector.
        length: Tokens that a shorter text is expanded to.
        token: Id of the token that expands it.
        attend: Whether the other tokens attend to it.
    """

    skipped: npt.NDArray[np.int32]
    length: int = 0
    token: int = 0
    attend: bool = True

    def expand(self, ids: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], int]:
        """Expand a text.

        Args:
            ids: Its token ids.

        Returns:
            Its token ids, the positions of those that have vectors, and the number of tokens at its end that the others
            do not attend to.
        """
        more = max(0, self.length - len(ids))
        expanded = np.append(ids, np.full(more, self.token, ids.dtype))
        return expanded, np.flatnonzero(~np.isin(expanded, self.skipped)), 0 if self.attend else more
