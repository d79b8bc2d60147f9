"""Scripts for the figures in docs/benchmarks.md and README.md.

Run a script as ``python -m benchmarks.NAME`` in the root of the repository.
"""
