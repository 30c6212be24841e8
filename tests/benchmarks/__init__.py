"""Measurements against their own limits; run each as a module: `python -m tests.benchmarks.service`."""
