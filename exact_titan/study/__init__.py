"""Paired studies: the same start and the same windows for every arm, and statistics over the pairs.

The package imports ``documents``, ``dataset``, ``packing`` and ``errors`` from exact_titan.
"""
