"""Another RoPE for a model that a run continues: the options, and the architecture that follows from them.

1. :meth:`RopeChange.check` compares the options with each other.
2. :func:`with_rope` compares the options with the RoPE of the model, and returns the model with the new RoPE.

The result does not change if the same options are applied again. A resume can therefore start from the first model or
from the run's own copy of the model.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from exact_titan.errors import InputError
from exact_titan.models.architecture import LARGEST_SIZE, Architecture
from exact_titan.models.rope import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling

_SCALINGS: dict[str, type[LinearScaling] | type[YarnScaling] | type[Llama3Scaling]] = {
    "linear": LinearScaling,
    "yarn": YarnScaling,
    "llama3": Llama3Scaling,
}
_OF_EVERY_SCALING = ("factor", "original_positions")
_OF_KIND = {
    "linear": (),
    "yarn": ("beta_fast", "beta_slow", "attention_factor"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
}


@dataclass(kw_only=True, slots=True)
class RopeChange:
    """Another RoPE for the model of --model or --start_from."""

    theta: float | None = None
    """Base of RoPE. None: the base of the model. A larger base without linear or yarn scaling raises the positions to
    the window."""

    scaling: Literal["keep", "none", "linear", "yarn", "llama3"] = "keep"
    """Scaling of RoPE. keep: the scaling of the model. none: no scaling."""

    factor: float | None = None
    """Factor of the scaling, counted from the original positions."""

    original_positions: int | None = None
    """Positions before any scaling. None: those of the model's scaling, or the positions of a model without scaling."""

    max_positions: int | None = None
    """Positions of the model. None: original positions x factor for linear and yarn, at least this for llama3."""

    beta_fast: float | None = None
    """yarn: frequencies with more turns over the original positions are kept. None: the value of the model, or 32."""

    beta_slow: float | None = None
    """yarn: frequencies with fewer turns over the original positions are scaled. None: the value of the model, or 1."""

    attention_factor: float | None = None
    """yarn: factor of the cosines and sines. None: the value of the model, or 0.1 ln(factor) + 1."""

    low_freq_factor: float | None = None
    """llama3: waves longer than original positions / this are scaled. None: the value of the model, or 1."""

    high_freq_factor: float | None = None
    """llama3: waves shorter than original positions / this are kept. None: the value of the model, or 4."""

    def given(self) -> dict[str, Any]:
        """Return the options that differ from their default, by name."""
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) != one.default}

    def check(self) -> None:
        """Refuse options without effect, and options that exclude each other.

        Raises:
            InputError: naming the option and the way out.
        """
        allowed = (*_OF_EVERY_SCALING, *_OF_KIND[self.scaling]) if self.scaling in _OF_KIND else ()
        for name, value in self.given().items():
            if name in ("theta", "scaling", "max_positions") or name in allowed:
                continue
            kinds = [kind for kind, names in _OF_KIND.items() if name in (*_OF_EVERY_SCALING, *names)]
            raise InputError(
                f"rope.{name} is {value:g}, but rope.scaling is {self.scaling}: set --rope.scaling "
                f"{' or '.join(kinds)}, or leave rope.{name} out"
            )
        if self.scaling in _OF_KIND and self.factor is None:
            raise InputError(f"rope.scaling is {self.scaling}, but rope.factor is missing: set --rope.factor")
        if self.scaling in ("linear", "yarn") and self.max_positions is not None:
            raise InputError(
                f"rope.max_positions is {self.max_positions}, but the positions of {self.scaling} are rope.factor "
                f"times rope.original_positions: leave rope.max_positions out"
            )


def with_rope(architecture: Architecture, change: RopeChange, *, window: int) -> Architecture:
    """Return the architecture of a model that continues with another RoPE.

    Args:
        architecture: the model.
        change: options that :meth:`RopeChange.check` has accepted.
        window: length of the windows of the run, in tokens.

    Raises:
        InputError: naming the option, the value of the model and the way out.
    """
    if not change.given():
        return architecture
    theta = architecture.rope_theta if change.theta is None else change.theta
    original = _given_original(architecture, change)
    scaling = architecture.rope_scaling
    if change.scaling != "keep":
        scaling = _scaling(architecture, change, original)
    positions = architecture.max_positions
    if isinstance(scaling, LinearScaling | YarnScaling):
        if change.scaling != "keep":
            positions = scaled_positions(change.factor or 1.0, original)
        elif change.max_positions not in (None, positions):
            raise InputError(
                f"rope.max_positions is {change.max_positions}, but the model has a scaling ({scaling}), and "
                f"{positions} positions follow: set --rope.scaling {scaling.kind} with a larger --rope.factor"
            )
    else:
        positions = max(_free_positions(architecture, change, scaling, original, window))
    return replace(architecture, rope_theta=theta, rope_scaling=scaling, max_positions=positions)


def original_positions(architecture: Architecture) -> int:
    """Return the positions of a model before its scaling."""
    scaling = architecture.rope_scaling
    if scaling is None:
        return architecture.max_positions
    if isinstance(scaling, LinearScaling):
        return round(architecture.max_positions / scaling.factor)
    return scaling.original_positions


def scaled_positions(factor: float, original: int) -> int:
    """Return the positions of linear and yarn scaling: factor x original positions, a whole number.

    transformers 4.51 to 4.55 take YaRN's factor from the ratio of the positions.

    Raises:
        InputError: if the product is not a whole number, or too large.
    """
    exact = factor * original
    if exact > LARGEST_SIZE or not math.isclose(exact, round(exact), rel_tol=1e-9):
        raise InputError(
            f"rope.factor is {factor:.12g}: {original} original positions times the factor are {exact:.12g} positions: "
            f"choose a factor that gives a whole number of positions, {LARGEST_SIZE} or fewer"
        )
    return round(exact)


def _given_original(architecture: Architecture, change: RopeChange) -> int:
    """Return the positions before any scaling, from the options or the model."""
    own, given = original_positions(architecture), change.original_positions
    if given is None:
        return own
    if isinstance(architecture.rope_scaling, YarnScaling | Llama3Scaling):
        if given != own:
            raise InputError(
                f"rope.original_positions is {given}, but the scaling of the model starts from {own} positions: leave "
                f"rope.original_positions out"
            )
    elif given > architecture.max_positions:
        raise InputError(
            f"rope.original_positions is {given}, but the model has {architecture.max_positions} positions: set "
            f"{architecture.max_positions} or fewer"
        )
    return given


def _scaling(architecture: Architecture, change: RopeChange, original: int) -> RopeScaling | None:
    """Return the scaling of ``change``. Values that are not set are those of the model's own scaling of this kind."""
    if change.scaling == "none":
        return None
    own, kind = architecture.rope_scaling, _SCALINGS[change.scaling]
    if own is not None and not isinstance(own, kind):
        raise InputError(
            f"rope.scaling is {change.scaling}, but the RoPE of the model is scaled already ({own}): set "
            f"--rope.scaling {own.kind} with another --rope.factor, or leave the scaling out of the config.json "
            f"of the model"
        )
    values: dict[str, Any] = {name: getattr(change, name) for name in ("factor", *_OF_KIND[change.scaling])}
    values = {name: value for name, value in values.items() if value is not None}
    if kind is not LinearScaling:
        values["original_positions"] = original
    made = kind(**values) if own is None else replace(own, **values)
    _check_order(made)
    return made


def _check_order(scaling: RopeScaling) -> None:
    if isinstance(scaling, YarnScaling) and scaling.beta_fast < scaling.beta_slow:
        raise InputError(
            f"rope.beta_fast is {scaling.beta_fast:g}: it must not be below rope.beta_slow ({scaling.beta_slow:g})"
        )
    if isinstance(scaling, Llama3Scaling) and scaling.high_freq_factor <= scaling.low_freq_factor:
        raise InputError(
            f"rope.high_freq_factor is {scaling.high_freq_factor:g}: it must be above rope.low_freq_factor "
            f"({scaling.low_freq_factor:g})"
        )


def _free_positions(
    architecture: Architecture, change: RopeChange, scaling: Llama3Scaling | None, original: int, window: int
) -> Iterator[int]:
    """Yield numbers of positions of a model without scaling, or with the scaling of Llama 3. The largest counts."""
    # Without its scaling the model is a model of the original positions.
    least = original if change.scaling == "none" else architecture.max_positions
    yield least
    if change.max_positions is not None:
        if change.max_positions < least:
            raise InputError(
                f"rope.max_positions is {change.max_positions}, but the model has {least} positions: set {least} or "
                f"more"
            )
        yield change.max_positions
        return
    if change.scaling != "keep" and scaling is not None:
        yield min(int(scaling.factor * original), LARGEST_SIZE)
    if change.theta is not None and change.theta > architecture.rope_theta:
        yield window
