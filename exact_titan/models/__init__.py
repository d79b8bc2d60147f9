"""Decoder models in Hugging Face folders: the architecture, ``config.json`` and the tensor names.

This room may import the rooms exposure, documents, dataset, packing and sampling. Today the room imports no other room.
The room imports no torchtitan.
"""
