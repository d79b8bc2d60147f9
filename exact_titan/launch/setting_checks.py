"""The checks of a setting: an option of a run with its values as text, from a TOML or from the command line."""

from exact_titan.errors import InputError
from exact_titan.launch.options import POLICY, Option, table

_FORMER = {
    "activation_checkpoint.mode": 'write activation_checkpoint = "full" above the first [section]',
    "job.dump_folder": "write dump_folder above the first [section]",
    "lr_scheduler.lr_min": "it is lr_scheduler.min_lr_factor now",
    "model.flavor": 'write model = "FOLDER" above the first [section]',
    "model.hf_assets_path": "write hf_assets_path above the first [section]",
    "model.name": 'write model = "FOLDER" above the first [section]',
    "optimizer.name": "the optimizer is AdamW: leave the key out",
    "training.compile": "it is compile.enable now",
    "training.dataset": "name packed datasets in dataloader.dataset_path",
    "training.dataset_path": "it is dataloader.dataset_path now",
    "training.seed": "it is debug.seed now",
}
"""Keys of older torchtitan versions, and their place today."""


def checked(option: Option, value: str, where: str) -> str:
    """Return the value of a setting. Refuse a value of another type, or outside the choices.

    Raises:
        InputError: naming ``where`` and the option.
    """
    wrong = option.wrong(value)
    if wrong:
        raise InputError(f"{where}: {wrong}")
    return value


def unknown(name: str) -> str:
    """Return the words about a name that is no option: its place today, or the closest option."""
    name = name.replace("-", "_")
    if name in _FORMER:
        return f"there is no key {name}: {_FORMER[name]}"
    if name in table().sections:
        inside = [option for option in table().options if option.startswith(f"{name}.")]
        return f"{name} is a section, not an option: set one of its options, such as {inside[0]}"
    close = table().closest(name)
    return f"there is no key {name}: {f'did you mean {close}?' if close else 'see --help-all for all keys'}"


def check_policy(settings: dict[str, list[str]], file: dict[str, list[str]], recipe: str, *, where: str) -> None:
    """Check that the chosen policy of activation checkpointing has the options that are set for a policy."""
    chosen = (settings.get(POLICY) or file.get(POLICY) or [table().defaults[recipe][POLICY]])[-1]
    for name in settings:
        policies = table().options[name].policies
        if policies and chosen not in policies:
            raise InputError(
                f"{where}: {name} is set, but {POLICY} is {chosen}, and only {', '.join(policies)} has this option"
            )
