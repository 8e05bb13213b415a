from .bm25 import BM25 as BM25, terms_of as terms_of
from .compare import (
    PlanRun as PlanRun,
    combined_plans as combined_plans,
    default_plans as default_plans,
    evaluate_plans as evaluate_plans,
    run_plans as run_plans,
)
from .languages import (
    cross_lingual_matrix as cross_lingual_matrix,
    metrics_by_language as metrics_by_language,
    stated_language as stated_language,
)
from .metrics import Metric as Metric, evaluate as evaluate, values_by_query as values_by_query
from .page import (
    EvaluationPage as EvaluationPage,
    QueryOutcome as QueryOutcome,
    outcomes as outcomes,
    texts_of as texts_of,
)
from .significance import bootstrap_interval as bootstrap_interval
