"""The torchtitan 0.3.0 plugin: dataloader, loss, trainer, checkpoints, metrics and the CPU path.

The way of a run through the modules:

1. ``run_config`` has the options. ``preflight`` checks the options, opens the packed datasets and fills in the model;
   ``start`` finds the architecture and the first weights.
2. ``trainer`` builds torchtitan's trainer with ``loader``, ``loss``, ``optimizer``, ``metrics``, ``validate`` and
   ``checkpoint``. ``checkpoint_loading`` loads the checkpoint of a resume.
3. ``step_trainer`` runs the optimizer steps. ``loss`` computes the loss with the weights of ``target_weights``.
4. During the steps, ``step_clock`` and ``health`` measure times, and ``nonfinite`` looks for NaN.
5. ``signals`` takes stop signals, and ``stop`` makes all ranks stop after the same step.

``overrides`` brings loss, dataloader and attention into torchtitan's own trainer. ``cpu`` and ``torch_versions`` adapt
torchtitan to machines without an accelerator and to different torch versions.

This room may import the rooms exposure, documents, dataset, packing, sampling, models, runs, reports and titan/model.
Of all rooms, only titan/model, titan and planning import torchtitan.
"""
