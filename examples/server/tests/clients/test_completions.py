"""Texts that go on, vectors, and token ids."""

import base64
import math
import struct

import openai
import pytest


@pytest.fixture(scope="module")
def complete(client, model):
    return lambda prompt, **options: client.completions.create(model=model, prompt=prompt, **options)


def test_goes_on_with_a_text(complete, model):
    answer = complete("The capital of Peru", max_tokens=8)
    assert answer.object == "text_completion" and answer.model == model
    assert answer.choices[0].text and answer.choices[0].finish_reason in ("stop", "length")
    assert 0 < answer.usage.completion_tokens <= 8


def test_streams(complete):
    options = {"max_tokens": 12, "extra_body": {"ignore_eos": True}}
    whole = complete("Hello", **options)
    chunks = list(complete("Hello", stream=True, stream_options={"include_usage": True}, **options))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12


def test_several_prompts_and_token_ids(client, complete):
    ids = client.post("/../tokenize", body={"prompt": "Hello"}, cast_to=object)["tokens"]
    answer = complete(["Hello", "Good"], max_tokens=6)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].text == complete("Hello", max_tokens=6).choices[0].text
    assert answer.choices[0].text == complete(ids, max_tokens=6).choices[0].text
    assert answer.choices[0].text == complete([ids], max_tokens=6).choices[0].text


def test_logprobs(complete):
    answer = complete("Hello", max_tokens=6, logprobs=3, extra_body={"ignore_eos": True})
    logprobs = answer.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 6
    assert len(logprobs.text_offset) == 6 and logprobs.text_offset == sorted(logprobs.text_offset)
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        assert logprob <= 0 and 3 <= len(top) <= 4
        assert math.isclose(top[token], logprob)


def test_echo_scores_a_text(complete):
    text = "What is the capital of Peru?"
    answer = complete(text, max_tokens=0, echo=True, logprobs=1)
    assert answer.choices[0].text == text and answer.usage.completion_tokens == 0
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == text
    assert logprobs.token_logprobs[0] is None and all(value <= 0 for value in logprobs.token_logprobs[1:])


def test_vectors_as_floats_and_base64(client, model):
    texts = ["A cat.", "A dog.", "A cat."]
    # Unless it is told a format, the client asks for base64 and decodes it.
    first = client.embeddings.create(model=model, input=texts)
    assert [item.index for item in first.data] == [0, 1, 2]
    vectors = [item.embedding for item in first.data]
    assert vectors[0] == vectors[2] != vectors[1]
    assert first.usage.prompt_tokens == first.usage.total_tokens > 0
    floats = client.embeddings.create(model=model, input=texts, encoding_format="float")
    assert all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-7) for a, b in zip(floats.data[0].embedding, vectors[0]))
    packed = client.embeddings.create(model=model, input=texts[0], encoding_format="base64").data[0].embedding
    raw = base64.b64decode(packed)
    assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == [struct.unpack("<f", struct.pack("<f", x))[0] for x in vectors[0]]


def test_vectors_of_token_ids(client, model):
    ids = client.post("/../tokenize", body={"prompt": "A cat."}, cast_to=object)["tokens"]
    by_text, by_ids = (client.embeddings.create(model=model, input=given).data[0].embedding for given in ("A cat.", ids))
    assert by_text == by_ids
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=model, input=[100257, 5])
    assert caught.value.param.startswith("input")


def test_tokens_there_and_back(client):
    text = "Grüße, 東京 🙂!"
    ids = client.post("/../tokenize", body={"prompt": text}, cast_to=object)["tokens"]
    assert client.post("/../detokenize", body={"tokens": ids}, cast_to=object)["prompt"] == text
