"""The files that a training run leaves on disk, and the exit code of the run.

- ``run_folder``: the output folder, with the model folder and the checkpoints.
- ``locations``: the folder of a run's checkpoints, and the run of a checkpoint.
- ``checkpoint_manifest``: the file list that marks a checkpoint as complete.
- ``checkpoint_verdict``: whether a folder is a complete checkpoint, and why not.
- ``checkpoint_folders``: the checkpoints in a folder, and the names of their folders.
- ``run_record``: ``run.json``, the identity of a run. ``record_types`` has the types of its values.
- ``export``: the weights of a checkpoint as a Hugging Face folder.
- ``export_tokenizer``: the tokenizer and the token ids of an export.
- ``destinations``: folders that are tried before the work starts.
- ``records``: the values of a log step and of a validation.
- ``metrics_log``: the records of the run, in ``metrics.jsonl``.
- ``target_losses``: the cross-entropy of every target of a validation.
- ``exit_codes``: the exit codes, and the file that holds the exit code.

This room may import the rooms exposure, documents, dataset, packing, sampling and models. The room
imports no torchtitan.
"""

LOGS_FOLDER = "logs"
"""Folder in the run's folder for the messages of the libraries, and for the output of the ranks other than 0."""
