"""Evaluation of features: ranking metrics, re-ranking, query expansion, and their variants."""

from svll.evaluation.camera_pairs import evaluate_camera_pairs
from svll.evaluation.expansion import QueryExpansion
from svll.evaluation.protocols import evaluate_protocol
from svll.evaluation.ranking import RankingResult, evaluate_ranking
from svll.evaluation.reranking import KReciprocal

__all__ = [
    "KReciprocal",
    "QueryExpansion",
    "RankingResult",
    "evaluate_camera_pairs",
    "evaluate_protocol",
    "evaluate_ranking",
]
