"""Chats, whole and streamed."""

import math

import openai
import pytest


def test_answers(chat, model):
    answer = chat("What is the capital of Peru?")
    assert answer.object == "chat.completion" and answer.model == model and answer.id
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and "Lima" in choice.message.content
    assert choice.finish_reason == "stop" and choice.index == 0
    usage = answer.usage
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_remembers_earlier_messages(client, model):
    messages = [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": [{"type": "text", "text": "My name is Anna and I live in Oslo."}]},
        {"role": "assistant", "content": "Nice to meet you, Anna."},
        {"role": "user", "content": "What is my name?"},
    ]
    answer = client.chat.completions.create(model=model, messages=messages)
    assert "Anna" in answer.choices[0].message.content


def test_developer_messages_are_system_messages(client, model):
    def ask(role):
        messages = [{"role": role, "content": "Your name is Bob."}, {"role": "user", "content": "Who are you?"}]
        return client.chat.completions.create(model=model, messages=messages).choices[0].message.content

    assert ask("developer") == ask("system")


def test_length_ends_an_answer(chat):
    for option in ("max_tokens", "max_completion_tokens"):
        answer = chat("What can you do?", **{option: 3})
        assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 3


def test_stop_strings(chat):
    whole = chat("What is 47 + 38?").choices[0].message.content
    middle = whole.split()[1]
    for stop in (middle, ["absent", middle]):
        answer = chat("What is 47 + 38?", stop=stop)
        assert answer.choices[0].message.content == whole[: whole.index(middle)]
        assert answer.choices[0].finish_reason == "stop"


def test_seed_repeats_and_temperature_varies(chat):
    def ask(seed):
        return chat("Hello!", temperature=2, seed=seed, max_tokens=24).choices[0].message.content

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(8)}) > 1


def test_n_answers(chat):
    answer = chat("Hello!", n=4, temperature=2, seed=3, max_tokens=24)
    assert sorted(choice.index for choice in answer.choices) == [0, 1, 2, 3]
    assert len({choice.message.content for choice in answer.choices}) > 1
    # The first one is what would come alone.
    alone = chat("Hello!", temperature=2, seed=3, max_tokens=24)
    first = next(choice for choice in answer.choices if choice.index == 0)
    assert first.message.content == alone.choices[0].message.content


@pytest.mark.parametrize("top", [None, 0, 5, 20])
def test_logprobs(chat, top):
    options = {} if top is None else {"top_logprobs": top}
    answer = chat("What is 3 + 4?", logprobs=True, **options)
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode().startswith(answer.choices[0].message.content)
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == (top or 0)
        alternatives = [other.logprob for other in token.top_logprobs]
        assert alternatives == sorted(alternatives, reverse=True)
        assert sum(math.exp(value) for value in alternatives) < 1.0001
        if alternatives:
            # Greedy: the token is the best one.
            assert token.token == token.top_logprobs[0].token


def test_no_logprobs_unless_asked(chat):
    assert chat("Hello!").choices[0].logprobs is None


def test_logit_bias_forbids_a_token(client, server, chat):
    whole = chat("What is 3 + 4?", logprobs=True, top_logprobs=1)
    ids = client.post("/../tokenize", body={"prompt": whole.choices[0].logprobs.content[0].token}, cast_to=object)["tokens"]
    assert len(ids) == 1
    other = chat("What is 3 + 4?", logit_bias={str(ids[0]): -100}, logprobs=True)
    assert other.choices[0].logprobs.content[0].token != whole.choices[0].logprobs.content[0].token


def test_extensions_by_their_usual_names(chat):
    answer = chat("Hello!", temperature=2, extra_body={"top_k": 1})
    assert answer.choices[0].message.content == chat("Hello!").choices[0].message.content
    answer = chat("Hello!", max_tokens=40, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 40


def test_a_repeated_prompt_comes_from_the_cache(chat):
    text = "What is the capital of Norway? " * 12
    chat(text, max_tokens=1)
    usage = chat(text, max_tokens=1).usage
    assert usage.prompt_tokens_details.cached_tokens > usage.prompt_tokens // 2


def test_stream_is_the_answer_in_pieces(chat):
    whole = chat("What can you do?")
    chunks = list(chat("What can you do?", stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    *pieces, last = chunks
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in pieces]
    assert reasons[-1] == "stop" and not any(reasons[:-1])
    assert len([chunk for chunk in pieces if chunk.choices[0].delta.content]) > 1
    assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in pieces)


def test_stream_without_usage(chat):
    assert all(chunk.usage is None for chunk in chat("Hello!", stream=True))


def test_stream_of_several_answers(chat):
    whole = chat("Hello!", n=3, temperature=2, seed=5, max_tokens=24)
    texts = {0: "", 1: "", 2: ""}
    for chunk in chat("Hello!", n=3, temperature=2, seed=5, max_tokens=24, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {choice.index: choice.message.content for choice in whole.choices}


def test_streamed_logprobs_are_those_of_the_whole_answer(chat):
    options = {"logprobs": True, "top_logprobs": 2}
    whole = chat("What is 3 + 4?", **options).choices[0].logprobs.content
    streamed = []
    for chunk in chat("What is 3 + 4?", stream=True, **options):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content or []
    assert [token.model_dump() for token in streamed] == [token.model_dump() for token in whole]


def test_stream_helper(client, model):
    messages = [{"role": "user", "content": "What is the capital of Peru?"}]
    kinds = []
    with client.chat.completions.stream(model=model, messages=messages, logprobs=True) as stream:
        for event in stream:
            kinds.append(event.type)
        final = stream.get_final_completion()
    assert "content.delta" in kinds and "content.done" in kinds and "logprobs.content.delta" in kinds
    assert "Lima" in final.choices[0].message.content


@pytest.mark.parametrize("option", [{}, {"max_retries": 2}])
def test_a_stream_that_is_left_early_does_no_harm(server, model, option):
    client = server.client(**option)
    for _ in range(20):
        messages = [{"role": "user", "content": "What can you do?"}]
        stream = client.chat.completions.create(
            model=model, messages=messages, stream=True, max_tokens=400, extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()
    # What was left no longer takes time.
    answer = client.with_options(timeout=20).chat.completions.create(
        model=model, messages=[{"role": "user", "content": "What is 3 + 4?"}])
    assert "7" in answer.choices[0].message.content


def test_many_at_once_are_answered_as_alone(server, model):
    import asyncio

    questions = [f"What is {a} + {a + 3}?" for a in range(2, 26)]

    async def all_at_once():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120) as client:
            async def ask(question):
                answer = await client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": question}])
                return answer.choices[0].message.content

            return await asyncio.gather(*map(ask, questions))

    together = asyncio.run(all_at_once())
    client = server.client()
    for question, answer in zip(questions[::6], together[::6]):
        alone = client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}])
        assert alone.choices[0].message.content == answer
