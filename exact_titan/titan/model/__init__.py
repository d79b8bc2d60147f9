"""The parts of a torchtitan model: decoder, document attention, RoPE, state dict, activation checkpointing and FLOPs.

This room may import the rooms exposure, documents, dataset, packing, sampling, models, runs and reports. It does not
import titan: the trainer builds models from this room.
"""
