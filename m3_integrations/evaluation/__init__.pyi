from .compare import (
    PlanRun as PlanRun,
    default_plans as default_plans,
    evaluate_plans as evaluate_plans,
    run_plans as run_plans,
)
from .metrics import Metric as Metric, evaluate as evaluate, values_by_query as values_by_query
from .significance import bootstrap_interval as bootstrap_interval
