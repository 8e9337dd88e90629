"""What a served model does with the fields of a request, through the whole server; `test_request_guard.py` has what is refused."""

import http.client
import json

import pytest
from transformers.utils.import_utils import is_serve_available

from model.prompt import CHAT_TEMPLATE
from tests.faults import soak

from .conftest import save_nf4_mixture

pytestmark = pytest.mark.skipif(not is_serve_available(), reason="model.serve needs pip install .[serve]")


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """Of a served mixture whose template writes the tools too."""
    folder = tmp_path_factory.mktemp("served")
    model = save_nf4_mixture(folder, "{% if tools %}{{ tools }}{% endif %}" + CHAT_TEMPLATE)
    with soak.server(model, folder / "log", "--enable-cors") as (_, port):
        yield port


def post(port: int, path: str, fields: dict) -> tuple[int, str]:
    status, data = soak.ask(port, "POST", path, json.dumps(fields).encode())
    return status, data.decode()


def complete(port: int, **fields) -> str:
    status, answer = post(port, "/v1/completions", {"prompt": "abc", "max_tokens": 12, **fields})
    assert status == 200, answer
    return json.loads(answer)["choices"][0]["text"]


def chat(port: int, **fields) -> str:
    messages = [{"role": "user", "content": "abc"}]
    status, answer = post(port, "/v1/chat/completions", {"messages": messages, "max_tokens": 12, **fields})
    assert status == 200, answer
    return json.loads(answer)["choices"][0]["message"]["content"]


@pytest.mark.parametrize("ask", [complete, chat])
def test_a_temperature_samples_and_a_seed_repeats(ask, port):
    drawn = [ask(port, temperature=1.9, seed=seed) for seed in range(4)]
    assert len(set(drawn)) > 1 and drawn == [ask(port, temperature=1.9, seed=seed) for seed in range(4)]
    greedy = ask(port)
    assert greedy == ask(port, temperature=0) == ask(port, temperature=1e-320) == ask(port, temperature=0, seed=3)
    assert ask(port, generation_config=json.dumps({"do_sample": True, "temperature": 1.9}), seed=2) == drawn[2]


def test_fields_have_their_effect(port):
    assert chat(port, logit_bias={"40": 100}, max_tokens=5) == "9" * 5 == chat(port, logit_bias={"40": 99.5}, max_tokens=5)
    assert chat(port, messages=[{"role": "user", "content": [{"type": "text", "text": "abc"}]}]) == chat(port)
    text = complete(port)
    assert complete(port, stop=[text[2]]) == text[: text.index(text[2]) + 1]


def test_tools_count_against_the_context(port):
    fields = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 9, "tools": [{"name": "a" * 300}]}
    status, answer = post(port, "/v1/chat/completions", fields)
    assert status == 400 and "do not fit into a context of 256" in answer


@pytest.mark.parametrize(("method", "status"), [("OPTIONS", 200), ("POST", 400)])
def test_cors_is_of_all_answers(method, status, port):
    """Also of the guard's own, which a page in a browser could not read without."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, "/v1/completions", b"{}", {"origin": "http://page", "access-control-request-method": "POST"})
    response = connection.getresponse()
    assert response.status == status and response.headers["access-control-allow-origin"] in ("*", "http://page")
    connection.close()
