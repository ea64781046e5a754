"""Errors as the client sorts them, and what it does about them."""

import threading
import time

import openai
import pytest

MESSAGES = [{"role": "user", "content": "Hello!"}]


def test_models(client, model):
    [first, *_] = client.models.list().data
    assert first.object == "model" and first.owned_by
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("absent")
    assert caught.value.code == "model_not_found"


def test_a_model_that_is_not_there(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="absent", messages=MESSAGES)
    assert caught.value.code == "model_not_found" and "absent" in caught.value.message


def test_keys(start):
    server = start("--api-key", "a long secret")
    server.client(api_key="a long secret").models.list()
    for key in ("a long secre", "another"):
        with pytest.raises(openai.AuthenticationError) as caught:
            server.client(api_key=key).models.list()
        assert caught.value.code == "invalid_api_key" and "a long secret" not in str(caught.value)


@pytest.mark.parametrize(("wrong", "param"), [
    ({"temperature": -1}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"n": 0}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"seed": 2**63}, "seed"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": "yes"}, "stream"),
    ({"tool_choice": "sometimes"}, "tool_choice"),
    ({"response_format": {"type": "poem"}}, "response_format"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "king", "content": "Hello!"}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]}, "messages"),
    ({"hat": "black"}, "hat"),
])
def test_wrong_fields_are_named(client, model, wrong, param):
    with pytest.raises(openai.BadRequestError) as caught:
        body = {"model": model, "messages": MESSAGES, **wrong}
        client.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.param and caught.value.param.startswith(param)
    assert caught.value.type == "invalid_request_error" and caught.value.message
    assert caught.value.request_id


def test_a_prompt_that_is_too_long(client, model):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello! " * 3000}])
    assert caught.value.code == "context_length_exceeded"


def test_requests_have_ids(client, model):
    raw = client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES)
    assert raw.headers["x-request-id"] and raw.parse()._request_id == raw.headers["x-request-id"]


def test_a_full_queue_is_a_polite_refusal_that_the_client_waits_out(start):
    server = start("--max-queue", "1", "--batch", "1")
    model = server.client().models.list().data[0].id
    long = {"model": model, "messages": MESSAGES, "max_tokens": 700, "extra_body": {"ignore_eos": True}}
    outcomes = []

    def ask(client):
        try:
            outcomes.append(client.chat.completions.create(**long).choices[0].finish_reason)
        except openai.RateLimitError as error:
            assert error.code == "rate_limit_exceeded" and int(error.response.headers["retry-after"]) >= 1
            outcomes.append("refused")

    threads = [threading.Thread(target=ask, args=(server.client(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(outcomes)) == ["length", "refused"], outcomes

    # With retries everybody gets an answer.
    outcomes.clear()
    threads = [threading.Thread(target=ask, args=(server.client(max_retries=20),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["length"] * 4


def test_a_client_that_gives_up_frees_its_place(server, model):
    client = server.client(timeout=0.02)
    for _ in range(3):
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(
                model=model, messages=MESSAGES, n=16, max_tokens=900, extra_body={"ignore_eos": True})
    begin = time.monotonic()
    server.client().chat.completions.create(model=model, messages=MESSAGES)
    assert time.monotonic() - begin < 10


