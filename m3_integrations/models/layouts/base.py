"""What a layout says of a checkpoint's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from transformers import PreTrainedTokenizerFast

from m3_integrations.models.heads.late_interaction import LateInteraction
from m3_integrations.models.layouts.transformers_folder import Backbone
from m3_integrations.models.transformer import Heads

HeadReader: TypeAlias = Callable[[Backbone, PreTrainedTokenizerFast], Heads]


class FolderLayout(NamedTuple):
    """Parts of a checkpoint's folder.

    Attributes:
        root: Folder of the transformer and its tokenizer.
        stated: Conventions by the names of `CheckpointConventions`; a pooling of None means no dense mode.
        read_heads: Reads the heads.
        markers: Prefixes that are one token of the vocabulary each.
        late: Conventions of late interaction, which need the tokenizer; None for those of BGE-M3.
    """

    root: Path
    stated: dict[str, Any]
    read_heads: HeadReader
    markers: tuple[str, ...] = ()
    late: Callable[[PreTrainedTokenizerFast], LateInteraction] | None = None
