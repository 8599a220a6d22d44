"""Evaluation of features: ranking metrics, and re-ranking by k-reciprocal neighbours."""

from svll.evaluation.protocols import evaluate_protocol
from svll.evaluation.ranking import RankingResult, evaluate_ranking
from svll.evaluation.reranking import KReciprocal

__all__ = ["KReciprocal", "RankingResult", "evaluate_protocol", "evaluate_ranking"]
