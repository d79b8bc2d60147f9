"""The parts of a torchtitan model: decoder, document attention, RoPE, state dict, activation checkpointing and FLOPs.

This room may import the rooms exposure, documents, dataset, packing, sampling, models, runs and reports. The room
does not import titan, because the trainer in titan builds models from this room.
"""
