"""The description of the options agrees with the config tree, and its checks refuse no value that the parser takes."""

import json

import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from exact_titan import describe_options
from exact_titan.config import config_of, recipes, registry
from exact_titan.errors import InputError
from exact_titan.launch import arguments, options
from exact_titan.titan.trainer import ExactTrainer


def test_the_description_is_up_to_date():
    assert options.FILE.read_text(encoding="utf-8") == describe_options.text(), (
        "run python -m exact_titan.describe_options"
    )


def test_the_defaults_are_those_of_the_recipes():
    defaults = options.table().defaults
    assert defaults["stage_16k"]["training.seq_len"] == 16384
    assert defaults["quickstart"][options.POLICY] == "none"
    assert defaults["from_scratch"]["loss.threshold"] is None


def test_refused_options_are_hidden():
    hidden = {name for name, option in options.table().options.items() if option.hidden}
    assert {"parallelism.pipeline_parallel_degree", "parallelism.context_parallel_load_balancer"} <= hidden
    assert not {"parallelism.data_parallel_replicate_degree", "dataloader.dataset_path"} & hidden


NUMBERS = ["3", "-1", "+2", " 7 ", "1_000", "0x10", "1e-5", "-0.5", ".5", "1e3", "nan", "-inf", "4,8", "4, 8,", "4,x"]
WORDS = ["None", "none", "true", "False", "", "a b", "a,b", "a=b", "-", "-x", "--x", "full", "exact", "bfloat16", "Ünï"]
TEXTS = st.sampled_from([*NUMBERS, *WORDS])


@st.composite
def command_lines(draw) -> tuple[str, list[str]]:
    """One option of one recipe, in any spelling, with a value that may be right or wrong."""
    recipe = draw(st.sampled_from(sorted(recipes())))
    option = draw(st.sampled_from([one for one in options.table().options.values() if one.name != options.POLICY]))
    name = draw(st.sampled_from([option.name, option.name.replace("_", "-")]))
    if option.type == "bool":
        section, dot, last = name.rpartition(".")
        name = draw(st.sampled_from([name, f"{section}{dot}no-{last}", f"{section}{dot}no_{last}"]))
        words = [f"--{name}", *draw(st.sampled_from([[], ["true"]]))]
    elif option.type == "words":
        words = [f"--{name}", *draw(st.lists(st.sampled_from(["a.b", "c.d"]), max_size=2))]
    else:
        value = draw(st.one_of(TEXTS, st.sampled_from(option.choices or ("3",))))
        words = draw(st.sampled_from([[f"--{name}", value], [f"--{name}={value}"]]))
    policy = [f"{options.POLICY}:{option.policies[-1]}"] if option.policies else []
    return recipe, [*policy, *words]


@settings(max_examples=75, deadline=None)
@given(command_lines())
def test_the_check_refuses_nothing_that_the_parser_takes(line):
    recipe, words = line
    try:
        parsed = tyro.cli(
            ExactTrainer.Config,
            args=words,
            default=recipes()[recipe](),
            registry=registry(),
            console_outputs=False,
            config=(tyro.conf.HelptextFromCommentsOff,),
        )
    except (SystemExit, ValueError, AssertionError):
        return
    # The texts, because NaN does not equal NaN.
    assert repr(config_of(arguments.read(["--config", recipe, *words]))) == repr(parsed)


@pytest.mark.parametrize("recipe", sorted(recipes()))
def test_the_defaults_as_options_change_nothing(recipe):
    words: list[str] = []
    for name, option in options.table().options.items():
        value = options.table().defaults[recipe][name]
        section, dot, last = name.rpartition(".")
        if option.policies or name == options.POLICY or option.type == "words":
            continue
        if option.type == "bool":
            words.append(f"--{section}{dot}{'' if value else 'no-'}{last}")
        else:
            words.append(f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}")
    assert config_of(arguments.read(["--config", recipe, *words])) == recipes()[recipe]()


def test_the_file_is_json_with_one_option_per_line():
    lines = options.FILE.read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith('"training.seq_len": {') for line in lines) == 1
    assert set(json.loads("\n".join(lines))) == {"recipes", "options", "defaults"}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("seq_len", "training.seq_len"),
        ("training.seqlen", "training.seq_len"),
        ("trainng.steps", "training.steps"),
        ("optimiser.lr", "optimizer.lr"),
        ("lr", "optimizer.lr"),
        ("profiling.enable_profiling", "profiler.enable_profiling"),
        ("nothing_like_it", None),
    ],
)
def test_the_closest_option(wrong, right):
    assert options.table().closest(wrong) == right


def test_a_wrong_option_is_an_input_error():
    with pytest.raises(InputError, match=r"loss.rule is 'exat': choose one of .*; did you mean exact"):
        arguments.read(["--config", "from_scratch", "--loss.rule", "exat"])
