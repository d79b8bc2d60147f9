"""The server engine against a real HTTP server on this machine that runs a tiny model."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from exact_titan.errors import InputError
from exact_titan.evaluation.engine_options import EngineOptions, ServerOptions
from exact_titan.evaluation.engines import completions, make_engine
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from tests.evaluation.tiny_models import example, text, write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("served"))


@pytest.fixture
def server(folder, monkeypatch):
    """A server of the tiny model. ``failures`` are statuses that it sends before it works, 0 closes the connection."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), PromptTokenizer(folder)
    state = SimpleNamespace(failures=[], bodies=[], keys=[], models=["tiny"], echo=True)

    def complete(body):
        ids = tokenizer.encode(body["prompt"])
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            mask = torch.ones(1, len(ids), dtype=torch.long)
            new = model.generate(torch.tensor([ids]), attention_mask=mask, max_new_tokens=body["max_tokens"],
                                 do_sample=False, pad_token_id=0)[0, len(ids) :].tolist()  # fmt: skip
        choice = {"text": tokenizer.decode(new), "finish_reason": "length"}
        if body.get("echo") and state.echo:
            scores = [None, *(row[token].item() for row, token in zip(logits, ids[1:], strict=False)), -1.0]
            top = [None, *({"best": row.max().item()} for row in logits[:-1]), {"best": -1.0}]
            choice["logprobs"] = {"token_logprobs": scores, "top_logprobs": top}
        return {"choices": [choice], "usage": {"completion_tokens": len(new)}}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(200, {"data": [{"id": name} for name in state.models]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.keys.append(self.headers.get("Authorization"))
            status = state.failures.pop(0) if state.failures else 200
            if status == 0:
                self.connection.close()
            elif status != 200:
                self.reply(status, {"error": "not now"})
            else:
                state.bodies.append(body)
                self.reply(200, complete(body))

        def reply(self, status, content):
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    monkeypatch.setattr(completions.time, "sleep", lambda seconds: state.pauses.append(seconds))
    state.pauses = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        state.url = f"http://127.0.0.1:{running.server_port}/v1"
        yield state
        running.shutdown()


def served(folder: Path, server, **options):
    return make_engine(folder, EngineOptions(engine="server", server=ServerOptions(url=server.url, **options)))


def questions() -> list:
    continued = {"continuations": (" w1 w2", " w3")}
    return [
        example("a", text(9, 1), room=5, **continued),
        example("b", text(7, 2), room=0, **continued),
        example("c", text(5, 3) + " ", room=4, continuations=("w1",)),
    ]


def test_answers_equal_those_of_the_transformers_engine(folder, server):
    expected = list(make_engine(folder, EngineOptions(batch=3)).answer(questions()))
    found = list(served(folder, server).answer(questions()))
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert (one.id, one.text, one.generated, one.tokens, one.greedy) == (
            other.id, other.text, other.generated, other.tokens, other.greedy)  # fmt: skip
    assert {(body["model"], body["temperature"]) for body in server.bodies} == {("tiny", 0)}


def test_a_server_without_echo_gives_no_likelihood_and_says_so(folder, server, capsys):
    server.echo = False
    engine = served(folder, server)
    assert "no log-probabilities of prompts" in capsys.readouterr().out
    assert engine.settings["likelihood"] is False
    answers = list(engine.answer(questions()))
    assert [(one.id, one.logprobs) for one in answers] == [("a", ()), ("c", ())]


def test_failures_are_tried_again(folder, server):
    engine = served(folder, server)
    server.failures = [429, 503, 0]
    (answer,) = engine.answer(questions()[:1])
    assert answer.text
    assert server.pauses == [1, 2, 4]


def test_a_server_that_stays_away_is_one_line(folder, server):
    engine = served(folder, server, retries=2)
    server.failures = [500] * 9
    with pytest.raises(InputError, match=r"fails after 3 tries \(HTTP 500 .*not now.*\): start the server"):
        list(engine.answer(questions()[:1]))
    with pytest.raises(InputError, match=r"/models fails after 1 tries \(URLError: .*refused"):
        make_engine(folder, EngineOptions(engine="server", server=ServerOptions(url="http://127.0.0.1:9", retries=0)))


def test_refusals_are_not_tried_again(folder, server):
    engine = served(folder, server)
    server.failures = [400]
    with pytest.raises(InputError, match="refuses example a: HTTP 400"):
        list(engine.answer(questions()[:1]))
    server.failures = [401]
    with pytest.raises(InputError, match=r"refuses the key in \$OPENAI_API_KEY"):
        list(engine.answer(questions()[:1]))
    assert server.pauses == []


def test_key_and_model_of_the_options(folder, server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    server.models = ["one", "two"]
    with pytest.raises(InputError, match=r"has the models one, two: choose one with --server.model"):
        served(folder, server)
    engine = served(folder, server, model="two", api_key_env="MY_KEY")
    assert server.keys == ["Bearer secret"]
    assert "secret" not in str(engine.settings)


def test_another_tokenizer_is_refused(folder, server, tmp_path):
    other = write_model(tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "use_regex": True,
        "trim_offsets": True,
    }
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="the server divides example odd into"):
        list(served(other, server).answer([example("odd", "w1,w2 w3", room=0, continuations=(" w1",))]))


@pytest.mark.parametrize(("url", "message"), [(None, "needs --server.url"), ("localhost:8000", "must begin with http")])
def test_addresses_that_are_wrong(folder, url, message):
    with pytest.raises(InputError, match=message):
        make_engine(folder, EngineOptions(engine="server", server=ServerOptions(url=url)))
