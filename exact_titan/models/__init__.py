"""Decoder models as Hugging Face folders describe them: the architecture, ``config.json`` and the tensor names.

This room imports no other room, and no torchtitan.
"""
