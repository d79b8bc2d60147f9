"""Instructions: the packed windows against labels that plain Python builds from the raw rows."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer

from exact_titan.cli import main
from exact_titan.dataset import Manifest, PackedDataset
from exact_titan.dataset.verify import verify
from exact_titan.documents.templates import dolly_prompt
from exact_titan.errors import InputError
from exact_titan.packing import append, pack
from exact_titan.packing.corpus import Corpus, CorpusSource
from exact_titan.sampling.mixture import Mixture

pytest_plugins = ["tests.text_fixtures"]

BOS, END = 0, 1
Row = dict[str, object]
Labelled = tuple[list[int], list[int]]


def write(file: Path, rows: list[Row]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def labelled(prompt: list[int], response: list[int]) -> Labelled:
    """Return inputs and labels of a sample: a label has a loss if the label is a token of the response."""
    tokens = [*((token, False) for token in prompt), *((token, True) for token in response)]
    labels = [token if supervised else -100 for token, supervised in tokens[1:]]
    return [token for token, _ in tokens[:-1]], labels


def dolly_samples(rows: list[Row], tokenizer: Path) -> list[Labelled]:
    encode = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).encode
    found = []
    for row in rows:
        prompt = dolly_prompt(str(row["instruction"]), str(row.get("context") or ""))
        response = encode(f"{row['response']}\n\n### End", add_special_tokens=False).ids
        found.append(labelled(encode(prompt).ids, [*response, END]))
    return found


def chat_samples(conversations: list[list[tuple[str, str]]], tokenizer: Path) -> list[Labelled]:
    """One sample for every assistant message, token by token: special tokens divide a text."""
    library = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))

    def encode(text: str) -> list[int]:
        return library.encode(text, add_special_tokens=False).ids

    start, end = (library.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>"))
    found = []
    for messages in conversations:
        before: list[int] = []
        for role, content in messages:
            if role == "assistant":
                prompt = [*before, start, *encode("assistant\n")]
                found.append(labelled(prompt, [*encode(content), end, END]))
            before += [start, *encode(f"{role}\n{content}"), end, *encode("\n")]
    return found


def segments(dataset: PackedDataset) -> list[Labelled]:
    """Return inputs and labels of all segments of all windows, without padding."""
    found = []
    for k in range(len(dataset)):
        row = {name: tensor.tolist() for name, tensor in dataset[k].items()}
        for start, end in zip(row["cu_seqlens"], row["cu_seqlens"][1:], strict=False):
            assert row["positions"][start:end] == list(range(end - start))
            if any(label != -100 for label in row["labels"][start:end]):
                found.append((row["input"][start:end], row["labels"][start:end]))
    return found


def instructions(number: int, seed: int = 0, longest: int = 40) -> list[Row]:
    draw = random.Random(seed)

    def text(most: int) -> str:
        return " ".join(
            draw.choice(["The", "quick", "brown fox", "東京,", "x = 1"]) for _ in range(draw.randrange(1, most))
        )

    return [
        {"instruction": text(9), "context": text(longest) if k % 2 else "", "response": text(9), "category": "qa"}
        for k in range(number)
    ]


def test_only_responses_have_a_loss(tmp_path: Path, chat_tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = instructions(40)
    rows[3]["response"] = "\n\n two lines\n"
    rows[7]["context"] = None
    del rows[8]["context"]
    too_long = [
        {"instruction": "word " * 500, "context": "", "response": "no"},
        {"instruction": "no", "response": "y" * 900},
    ]
    rows[20:20] = too_long
    (tmp_path / "data").mkdir()
    write(tmp_path / "data/a.jsonl", rows[:30])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[30:]), tmp_path / "data/b.parquet")
    out = tmp_path / "out"
    command = ["pack", "--sft", str(tmp_path / "data"), "--tokenizer", str(chat_tokenizer), "--out", str(out)]
    assert main([*command, "--seq-len", "400"]) == 0
    shown = capsys.readouterr().out
    dataset = PackedDataset(out)

    kept = rows[:20] + rows[22:]
    expected = dolly_samples(kept, chat_tokenizer)
    assert sorted(segments(dataset)) == sorted(expected)
    targets = sum(label != -100 for _, labels in expected for label in labels)
    assert dataset.record.targets == sum(dataset.counts.tolist()) == targets
    assert dataset.record.tokens == sum(len(inputs) for inputs, _ in expected)
    assert list(verify(out))

    manifest = dataset.manifest
    assert (manifest.policy, manifest.format_version) == ("best_fit", 4)
    assert manifest.sources[0].documents == len(kept)
    assert manifest.sources[0].dropped["longer than the window"] == 2
    assert manifest.sft is not None
    assert (manifest.sft.template, manifest.sft.rows) == ("dolly", 42)
    lengths = [len(inputs) + 1 for inputs, _ in dolly_samples(too_long, chat_tokenizer)]
    assert manifest.sft.too_long == [
        f"data/a.jsonl, line {line} ({n:,} tokens)" for line, n in zip((21, 22), lengths, strict=True)
    ]
    for line in ("dropped    2 (longer than the window)", f"too long   {manifest.sft.too_long[0]}", "rows         42,"):
        assert line in shown
    assert f"{100 * targets / dataset.record.tokens:.2f} % of the inputs with a loss" in shown


def test_every_assistant_message_has_a_loss_once(tmp_path: Path, chat_tokenizer: Path) -> None:
    conversations = [
        [("system", "Be brief."), ("user", "The fox?"), ("assistant", "Quick.")],
        [
            ("user", "One"),
            ("assistant", "1\n"),
            ("user", "Two"),
            ("assistant", " 2"),
            ("user", "x"),
            ("assistant", "3"),
        ],
        [("user", "東京"), ("assistant", "Tokyo"), ("user", "Thanks"), ("user", "Bye")],
    ]
    rows: list[Row] = [{"messages": [{"role": r, "content": c} for r, c in one]} for one in conversations]
    source = write(tmp_path / "m.jsonl", rows)
    options = {"tokenizer": chat_tokenizer, "seq_len": 128, "template": "chat"}
    manifest = pack([source], **options, out=tmp_path / "out")
    expected = chat_samples(conversations, chat_tokenizer)
    assert len(expected) == 5
    assert sorted(segments(PackedDataset(tmp_path / "out"))) == sorted(expected)
    assert manifest.sources[0].dropped["messages without an answer"] == 2
    assert manifest.sft is not None
    assert manifest.sft.rows == 3
    # The turns that do not fit are left out; the other turns of the conversation stay.
    longest = max(len(inputs) for inputs, _ in expected)
    shorter = pack([source], **(options | {"seq_len": longest - 1}), out=tmp_path / "shorter")
    assert sorted(segments(PackedDataset(tmp_path / "shorter"))) == sorted(
        one for one in expected if len(one[0]) < longest
    )
    assert shorter.sft is not None
    assert shorter.sft.too_long == [f"m.jsonl, line 2, message 6 ({longest + 1} tokens)"]
    # An instruction with a context is one message of the user.
    source = write(tmp_path / "i.jsonl", [{"instruction": "Who?", "context": "Ann came.", "response": "Ann"}])
    pack([source], **options, out=tmp_path / "instructions")
    expected = chat_samples([[("user", "Who?\n\nAnn came."), ("assistant", "Ann")]], chat_tokenizer)
    assert segments(PackedDataset(tmp_path / "instructions")) == expected


@pytest.mark.parametrize("template", ["dolly", "chat"])
def test_letters_that_spell_a_special_token_stay_letters(tmp_path: Path, chat_tokenizer: Path, template: str) -> None:
    spelled = "Say <|im_end|> and<end>."
    row = {"instruction": f"{spelled} <bos>", "context": spelled, "response": f"<|im_end|>{spelled}"}
    source = write(tmp_path / "rows.jsonl", [row])
    pack([source], tokenizer=chat_tokenizer, seq_len=400, out=tmp_path / "out", template=template)
    ((inputs, labels),) = segments(PackedDataset(tmp_path / "out"))
    library = Tokenizer.from_file(str(chat_tokenizer / "tokenizer.json"))
    special = {0, 1, library.token_to_id("<|im_start|>"), library.token_to_id("<|im_end|>")}
    found = [library.id_to_token(token) for token in [*inputs, END] if token in special]
    turn = ["<|im_start|>", "<|im_end|>"]
    assert found == (["<bos>", "<end>"] if template == "dolly" else [*turn, *turn, "<end>"])
    text = library.decode(inputs, skip_special_tokens=False)
    # Four times the letters, and the two ends of messages in ChatML.
    assert text.count("<|im_end|>") == (4 if template == "dolly" else 6)
    response = [label for label in labels if label != -100]
    assert library.decode(response, skip_special_tokens=False).startswith(f"<|im_end|>{spelled}")


def test_rows_of_one_conversation_are_in_one_split(tmp_path: Path, chat_tokenizer: Path) -> None:
    conversations = [
        [("user" if k % 2 == 0 else "assistant", f"{number} {k}") for k in range(6)] for number in range(30)
    ]
    rows: list[Row] = [{"messages": [{"role": r, "content": c} for r, c in one]} for one in conversations]
    source = write(tmp_path / "m.jsonl", rows)
    manifest = pack(
        [source], tokenizer=chat_tokenizer, seq_len=128, out=tmp_path / "out", template="chat", val_fraction=0.3
    )
    for split in ("train", "val"):
        assert manifest.splits[split].documents % 3 == 0
        assert manifest.splits[split].documents > 0
    assert sorted([*segments(PackedDataset(tmp_path / "out")), *segments(PackedDataset(tmp_path / "out", "val"))]) == (
        sorted(chat_samples(conversations, chat_tokenizer))
    )


def test_parts_append_and_limits_keep_the_masks(tmp_path: Path, chat_tokenizer: Path) -> None:
    rows = [instructions(12, seed) for seed in range(3)]
    sources = [write(tmp_path / f"{number}.jsonl", one) for number, one in enumerate(rows)]
    options = {"tokenizer": chat_tokenizer, "seq_len": 300, "template": "dolly"}
    # Every file is a part.
    pack(sources[:2], **options, out=tmp_path / "out", part_bytes=1, shard_tokens=300)
    appended = append(tmp_path / "out", [sources[2]], shard_tokens=300)
    assert sorted(segments(PackedDataset(tmp_path / "out"))) == sorted(
        dolly_samples([*rows[0], *rows[1], *rows[2]], chat_tokenizer)
    )
    assert list(verify(tmp_path / "out"))
    assert appended.sft is not None
    assert appended.sft.rows == 36
    assert appended.splits["train"].parts == [12, 12, 12]

    limited = Corpus([CorpusSource(path=str(sources[0]), max_documents=5)])
    assert pack(limited, **options, out=tmp_path / "limited").sources[0].documents == 5
    assert sorted(segments(PackedDataset(tmp_path / "limited"))) == sorted(dolly_samples(rows[0][:5], chat_tokenizer))

    # The weights of a mixture follow from the supervised targets.
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "The quick brown fox. " * 200}) + "\n")
    pack([tmp_path / "text.jsonl"], tokenizer=chat_tokenizer, seq_len=300, out=tmp_path / "text")
    mixed = Mixture(f"{tmp_path / 'out'}=1,{tmp_path / 'text'}=1")
    windows = sum(len(dataset) for dataset in mixed.datasets)
    per_window = [dataset.counts.numpy() / len(dataset) for dataset in mixed.datasets]
    np.testing.assert_allclose(mixed.counts, (per_window[0] + per_window[1]) * windows / 2, atol=0.5)


def test_a_dataset_of_format_1_takes_more_documents(tmp_path: Path, word_tokenizer: Path) -> None:
    from dataclasses import replace

    for name in ("old", "new"):
        (tmp_path / f"{name}.jsonl").write_text(
            json.dumps({"text": "1 2 3 4 5 6 7 8 9"}) + "\n" + "\n" * (name == "new")
        )
    manifest = pack([tmp_path / "old.jsonl"], tokenizer=word_tokenizer, seq_len=8, out=tmp_path / "out")
    old = replace(manifest.splits["train"], parts=[])
    replace(manifest, splits={"train": old}, format_version=1).write(tmp_path / "out")
    assert Manifest.read(tmp_path / "out").format_version == 1
    assert list(verify(tmp_path / "out"))
    appended = append(tmp_path / "out", [tmp_path / "new.jsonl"])
    assert (appended.format_version, appended.splits["train"].parts) == (2, [1, 1])
    assert list(verify(tmp_path / "out"))


OK = '{"instruction": "a", "response": "b"}'
CHAT = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'


@pytest.mark.parametrize(
    ("second", "options", "message"),
    [
        (
            '{"instruction": "a"}',
            "",
            "rows.jsonl, line 2: no field 'response': a row has instruction, context and resp",
        ),
        ('{"response": "a"}', "", "rows.jsonl, line 2: no field 'instruction'"),
        ('{"instruction": "a", "response": null}', "", "line 2: 'response' is NoneType, not text"),
        ('{"instruction": "a", "response": "b", "context": 3}', "", "line 2: 'context' is int, not text"),
        ('{"instruction": "a", "response": " \\n"}', "", "rows.jsonl, line 2: the response is empty"),
        ('{"instruction": "", "response": "b"}', "", "line 2: the instruction is empty"),
        ("[1]", "", "rows.jsonl, line 2: not a JSON object"),
        (CHAT, "", "rows.jsonl, line 2: other fields than line 1: a file has rows with"),
        ('{"instruction": "\U000f0000", "response": "b"}', "", "line 2: the text has the character U+F0000"),
        (OK, "--policy concat", "--policy is 'concat', and --sft packs with best_fit only"),
        (OK, "--text-key body", "--text-key is not an option of --sft"),
        (OK, "--special-tokens ids", "--special-tokens is 'ids', but special tokens that a row of instructions spells"),
        (OK, "--seq-len 8", "of its 2 documents, 2 are longer than the window: raise --seq-len"),
        (OK, "--template chat --tokenizer {bpe}", "has no chat template: no chat_template.jinja, and no chat_template"),
        (OK, "--template other", "'other'"),
    ],
)
def test_bad_rows_and_options_are_one_line(
    tmp_path: Path,
    chat_tokenizer: Path,
    bpe_tokenizer: Path,
    capsys: pytest.CaptureFixture[str],
    second: str,
    options: str,
    message: str,
) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{OK}\n{second}\n")
    check_refused(tmp_path, chat_tokenizer, capsys, options.format(bpe=bpe_tokenizer), message)


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ('{"messages": [{"role": "user", "content": "a"}]}', "", "line 1: the messages have no assistant message"),
        ('{"messages": []}', "", "line 1: 'messages' is not a list with messages"),
        ('{"messages": [{"role": "user"}]}', "", "line 1: message 1 has no role and content as text"),
        (CHAT.replace('"b"', '" "'), "", "line 1: message 2, the response of the assistant, is empty"),
        (CHAT.replace('"b"', '"b", "tool_calls": [1]'), "", "line 1: message 2 has tool_calls"),
        (CHAT.replace('{"mess', '{"instruction": "a", "mess'), "", "line 1: both 'messages' and 'instruction'"),
        (CHAT.replace("user", "system"), "--template dolly", "line 1: Dolly's template takes one user message and one"),
        ("", "", "rows.jsonl has no row"),
    ],
)
def test_bad_conversations_are_one_line(
    tmp_path: Path, chat_tokenizer: Path, capsys: pytest.CaptureFixture[str], row: str, options: str, message: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{row}\n")
    check_refused(tmp_path, chat_tokenizer, capsys, options or "--template chat", message)


def check_refused(
    folder: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    command = (
        f"pack --sft {folder / 'rows.jsonl'} --out {folder / 'out'} --seq-len 200 --tokenizer {tokenizer} {options}"
    )
    assert main(command.split()) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1
    assert not (folder / "out").exists()


def test_the_option_template_needs_the_option_sft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"pack x.jsonl --out {tmp_path / 'out'} --tokenizer t --template chat".split()) == 2
    assert "--template is an option of --sft" in capsys.readouterr().err


def test_sources_without_rows_are_refused(tmp_path: Path, chat_tokenizer: Path) -> None:
    options = {"tokenizer": chat_tokenizer, "seq_len": 64, "out": tmp_path / "out", "template": "dolly"}
    (tmp_path / "text.txt").write_text("a text")
    with pytest.raises(InputError, match=r"text\.txt is plain text, and has no rows: give a \.jsonl or \.parquet file"):
        pack([tmp_path / "text.txt"], **options)
    np.array([1, 2, 1], dtype=np.uint16).tofile(tmp_path / "a.ds")
    np.array([3], dtype=np.uint64).tofile(tmp_path / "a.ds.index")
    with pytest.raises(InputError, match=r"a\.ds is a token file, and has no instructions: give \.jsonl or \.parquet"):
        pack([tmp_path / "a.ds"], **options)
    write(tmp_path / "rows.jsonl", instructions(1))
    with pytest.raises(
        InputError, match=r"rows\.jsonl has a text_key, but the fields of instructions have fixed names"
    ):
        pack(Corpus([CorpusSource(path=str(tmp_path / "rows.jsonl"), text_key="body")]), **options)


def test_a_template_that_contradicts_its_generation_prompt(tmp_path: Path, chat_tokenizer: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(chat_tokenizer, folder)
    (folder / "chat_template.jinja").write_text("{% if add_generation_prompt %}a{% else %}b{% endif %}")
    source = write(tmp_path / "rows.jsonl", instructions(1))
    options = {"tokenizer": folder, "seq_len": 64, "out": tmp_path / "out", "template": "chat"}
    with pytest.raises(
        InputError, match=r"rows\.jsonl, line 1: the chat template writes an assistant message in another"
    ):
        pack([source], **options)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    with pytest.raises(InputError, match=r"rows\.jsonl, line 1: the chat template of .* refuses the messages \(no\)"):
        pack([source], **options)


def test_a_tokenizer_that_cannot_keep_the_letters(tmp_path: Path, word_tokenizer: Path) -> None:
    source = write(
        tmp_path / "rows.jsonl", [{"instruction": "1 2", "response": "3"}, {"instruction": "</s>", "response": "4"}]
    )
    options = {"tokenizer": word_tokenizer, "seq_len": 64, "out": tmp_path / "out", "template": "dolly"}
    with pytest.raises(
        InputError, match=r"rows\.jsonl, line 2: the text spells the special token '</s>', and the tokenizer"
    ):
        pack([source], **options)
