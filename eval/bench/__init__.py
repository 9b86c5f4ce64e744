"""The benchmark program `python -m eval.bench`: jaxpeft against its peers and the floor.

A row of the table is a ratio, ours / theirs, of two subjects: things that are measured. Each side
(our step, Hugging Face's, ...) lives in a process of its own that keeps its models warm and is
told over a pipe whose turn it is, so that one alone computes at any time, and two runtimes never
share threads. The subjects of a group of rows take turns (A B C, A B C, ...): what else the
machine does strikes all of them alike, and a ratio is taken within a turn.
"""
