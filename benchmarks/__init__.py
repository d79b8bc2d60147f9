"""What the README's figures come from. Run a script as ``python -m benchmarks.NAME`` in the repository's root."""
