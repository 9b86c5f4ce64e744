"""OpenBookQA: elementary science applied. The parser knows five labels, a row has four."""

from eval.tasks.parsers import first_of
from train.benchmarks.openbookqa import LABELS, NAME

__all__ = ['LABELS', 'NAME', 'parse']

parse = first_of('answer1', 'answer2', 'answer3', 'answer4', 'answer5')
