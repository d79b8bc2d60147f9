"""The torchtitan 0.3.0 plugin: dataloader, loss, trainer, checkpoints, metrics and the CPU path.

This room may import the rooms exposure, documents, dataset, packing, sampling, models, runs, reports and titan/model.
Of all rooms, only titan/model, titan and planning import torchtitan.
"""
