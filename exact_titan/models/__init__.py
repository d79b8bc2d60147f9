"""Models on the disk: architectures, Hugging Face folders in and out, runs' checkpoints. Imports no torchtitan."""
