"""Evaluation of features: ranking metrics, re-ranking, query expansion, and their variants."""

from svll.evaluation.expansion import QueryExpansion
from svll.evaluation.protocols import evaluate_ranking
from svll.evaluation.ranking import RankingResult, Reranked, rerank
from svll.evaluation.reranking import KReciprocal

__all__ = ["KReciprocal", "QueryExpansion", "RankingResult", "Reranked", "evaluate_ranking",
           "rerank"]
