"""SocialIQA: a question about people. The parser knows five labels, a row has three."""

from eval.tasks.parsers import first_of
from train.benchmarks.social_i_qa import LABELS, NAME

__all__ = ['LABELS', 'NAME', 'parse']

parse = first_of('answer1', 'answer2', 'answer3', 'answer4', 'answer5')
