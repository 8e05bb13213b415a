from .calibration import (
    Calibration as Calibration,
    Threshold as Threshold,
    calibrate as calibrate,
    fit_threshold as fit_threshold,
)
from .ingestion import IngestReport as IngestReport, ingest as ingest
from .mmr import maximal_marginal_relevance as maximal_marginal_relevance
from .plan_calibration import (
    PlanCalibration as PlanCalibration,
    calibrate_plan as calibrate_plan,
    match_probabilities as match_probabilities,
)
from .reranking import RerankResult as RerankResult, rerank as rerank
from .retriever import Match as Match, Retriever as Retriever
