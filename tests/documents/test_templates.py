import json
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from exact_titan.documents.templates import DOLLY_END, ChatTemplate, dolly_prompt
from exact_titan.errors import InputError

CHATML = """\
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# Blocks on lines of their own, as in the templates of Llama 3.
BLOCKS = """\
{{ bos_token }}
{% if tools is not none %}
    no tools here
{% endif %}
  {% for message in messages %}
    {% if message.role == "user" %}[{{ message.content | trim }}]{% continue %}{% endif %}
    {% generation %}{{ message | tojson }}{{ eos_token }}{% endgeneration %}
  {% endfor %}
{% if add_generation_prompt %}>>{% endif %}
"""
CHAT = [
    {"role": "user", "content": " Is 2 < 3? "},
    {"role": "assistant", "content": "Yes — “2 < 3”."},
    {"role": "user", "content": "And é?"},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def tokenizer_folder(folder: Path, template: object, **config: object) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, **config}))
    return folder


def test_the_prompt_of_dolly() -> None:
    intro = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    assert dolly_prompt("Name a sea.") == f"{intro}\n\n### Instruction:\nName a sea.\n\n### Response:\n"
    assert dolly_prompt("Who?", "Ann came.\n") == (
        f"{intro}\n\n### Instruction:\nWho?\n\nInput:\nAnn came.\n\n\n### Response:\n"
    )
    assert DOLLY_END == "### End"


@pytest.mark.parametrize("template", [CHATML, BLOCKS])
def test_renders_as_transformers_does(tmp_path: Path, template: str) -> None:
    folder = tokenizer_folder(tmp_path, template, bos_token={"content": "<s>"}, eos_token="</s>")
    ours = ChatTemplate.of(folder)
    for generation, render in ((True, ours.prompt), (False, ours.conversation)):
        theirs, _ = render_jinja_template(
            [CHAT], chat_template=template, add_generation_prompt=generation, tools=None, **TOKENS
        )
        assert render(CHAT) == theirs[0]
    assert ours.prompt(CHAT) != ours.conversation(CHAT)


def test_the_file_of_the_template(tmp_path: Path) -> None:
    one = [{"role": "user", "content": "a"}]
    named = [
        {"name": "tool_use", "template": "tool"},
        {"name": "default", "template": "default {{ messages[0].content }}"},
    ]
    assert ChatTemplate.of(tokenizer_folder(tmp_path, named)).prompt(one) == "default a"
    (tmp_path / "chat_template.jinja").write_text("file {{ bos_token }}")
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<s>"}')
    assert ChatTemplate.of(tmp_path).prompt(one) == "file <s>"


def test_the_date_does_not_depend_on_the_day(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path, "{{ strftime_now('%d %b %Y') }}")
    assert ChatTemplate.of(folder).prompt(CHAT) == "26 Jul 2024"


def test_a_template_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no chat template: .* use the tokenizer of a chat model"):
        ChatTemplate.of(tmp_path)
    with pytest.raises(InputError, match="has no chat template"):
        ChatTemplate.of(tokenizer_folder(tmp_path, [{"name": "tool_use", "template": ""}]))
    with pytest.raises(InputError, match=r"tokenizer_config\.json: the chat template is not a Jinja template \(line 1"):
        ChatTemplate.of(tokenizer_folder(tmp_path, "{% if %}"))
    for template, why in (
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content.missing() }}", "has no attribute 'missing'"),
        ("{{ messages.append(1) }}", "unsafe|safely"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ):
        with pytest.raises(InputError, match=f"refuses the messages .*({why})"):
            ChatTemplate.of(tokenizer_folder(tmp_path, template)).prompt(CHAT)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not a JSON object"):
        ChatTemplate.of(tmp_path)
