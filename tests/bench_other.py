"""Another side of the benchmark for the tests, in a process of its own."""

from tests.bench_fake import prepare as prepare
