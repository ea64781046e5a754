"""Tools: calls, their stream, and their results."""

import json

import pytest
from conftest import TIME_TOOL

QUESTION = [{"role": "user", "content": "Which time is it now in Cairo?"}]


def test_a_call_and_its_result(client, model):
    answer = client.chat.completions.create(model=model, messages=QUESTION, tools=[TIME_TOOL])
    assert answer.choices[0].finish_reason == "tool_calls"
    message = answer.choices[0].message
    [call] = message.tool_calls
    assert call.type == "function" and call.function.name == "get_time" and call.id
    assert json.loads(call.function.arguments) == {"city": "Cairo"}

    result = {"role": "tool", "tool_call_id": call.id, "content": '{"time": "12:00"}'}
    messages = [*QUESTION, message.model_dump(), result]
    answer = client.chat.completions.create(model=model, messages=messages, tools=[TIME_TOOL])
    assert "12:00" in answer.choices[0].message.content and answer.choices[0].finish_reason == "stop"


def test_without_tools_or_a_choice_there_are_no_calls(client, model):
    for options in ({}, {"tools": [TIME_TOOL], "tool_choice": "none"}):
        answer = client.chat.completions.create(model=model, messages=QUESTION, **options)
        assert not answer.choices[0].message.tool_calls and answer.choices[0].finish_reason != "tool_calls"


def test_a_streamed_call(client, model):
    calls = {}
    reasons = []
    for chunk in client.chat.completions.create(model=model, messages=QUESTION, tools=[TIME_TOOL], stream=True):
        choice = chunk.choices[0]
        reasons.append(choice.finish_reason)
        for delta in choice.delta.tool_calls or []:
            call = calls.setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
            call["id"] += delta.id or ""
            call["name"] += delta.function.name or ""
            call["arguments"] += delta.function.arguments or ""
    assert list(calls) == [0] and reasons[-1] == "tool_calls"
    assert calls[0]["name"] == "get_time" and calls[0]["id"]
    assert json.loads(calls[0]["arguments"]) == {"city": "Cairo"}


def test_the_stream_helper_sees_the_call(client, model):
    arguments = ""
    with client.chat.completions.stream(model=model, messages=QUESTION, tools=[TIME_TOOL]) as stream:
        for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                assert event.name == "get_time" and event.index == 0
                arguments += event.arguments_delta
            elif event.type == "tool_calls.function.arguments.done":
                assert event.arguments == arguments
        final = stream.get_final_completion()
    assert json.loads(arguments) == {"city": "Cairo"}
    assert final.choices[0].message.tool_calls[0].function.name == "get_time"


@pytest.mark.parametrize("tool", [
    {"type": "function"},
    {"type": "function", "function": {"description": "no name"}},
    {"type": "retrieval"},
    "get_time",
])
def test_broken_tools_are_refused(client, model, tool):
    import openai

    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=QUESTION, tools=[tool])
    assert caught.value.param.startswith("tools")
