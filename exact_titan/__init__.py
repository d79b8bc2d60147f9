"""Long-context continued pretraining in torchtitan with EXACT (arXiv 2605.10544)."""
