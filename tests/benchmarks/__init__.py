"""Benchmarks with a limit for each figure; run one as a module: `python -m tests.benchmarks.server`."""
