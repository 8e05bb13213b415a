from .encoded import (
    MODES as MODES,
    Array as Array,
    Encoded as Encoded,
    Mode as Mode,
    Modes as Modes,
    MultiVectors as MultiVectors,
)
from .scoring import score as score, score_mode as score_mode
from .types import Passage as Passage, Query as Query, SearchPlan as SearchPlan
