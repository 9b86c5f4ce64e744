"""PIQA: which of two solutions reaches a practical goal."""

from eval.tasks.parsers import first_of
from train.benchmarks.piqa import LABELS, NAME

__all__ = ['LABELS', 'NAME', 'parse']

parse = first_of('solution1', 'solution2')
