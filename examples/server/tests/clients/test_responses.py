"""The responses endpoint: a chat by other names, without a memory of earlier ones."""

import json

import openai
import pytest


def test_answers(client, model):
    answer = client.responses.create(model=model, input="What is the capital of Peru?")
    assert answer.object == "response" and answer.status == "completed"
    assert "Lima" in answer.output_text
    assert answer.usage.input_tokens > 0 and answer.usage.output_tokens > 0
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_says_what_chat_says(client, model, chat):
    whole = chat("What can you do?").choices[0].message.content
    assert client.responses.create(model=model, input="What can you do?").output_text == whole
    messages = [{"role": "user", "content": [{"type": "input_text", "text": "What can you do?"}]}]
    assert client.responses.create(model=model, input=messages).output_text == whole


def test_instructions_are_a_system_message(client, model):
    answer = client.responses.create(model=model, instructions="Your name is Bob.", input="Who are you?")
    chat = client.chat.completions.create(
        model=model, messages=[{"role": "system", "content": "Your name is Bob."}, {"role": "user", "content": "Who are you?"}])
    assert answer.output_text == chat.choices[0].message.content


def test_streams(client, model):
    whole = client.responses.create(model=model, input="What can you do?").output_text
    events = list(client.responses.create(model=model, input="What can you do?", stream=True))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole
    assert events[-1].response.output_text == whole


def test_the_stream_helper(client, model):
    with client.responses.stream(model=model, input="What is the capital of Peru?") as stream:
        for _ in stream:
            pass
        assert "Lima" in stream.get_final_response().output_text


def test_tools(client, model):
    tool = {
        "type": "function", "name": "get_time", "description": "Current local time of a city", "strict": False,
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
    question = {"role": "user", "content": "Which time is it now in Cairo?"}
    answer = client.responses.create(model=model, input=[question], tools=[tool])
    [call] = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "get_time" and json.loads(call.arguments) == {"city": "Cairo"}

    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"time": "12:00"}'}
    given = [question, call.model_dump(exclude_none=True), result]
    assert "12:00" in client.responses.create(model=model, input=given, tools=[tool]).output_text


def test_length(client, model):
    answer = client.responses.create(model=model, input="What can you do?", max_output_tokens=2)
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize("wrong", [{"previous_response_id": "resp_1"}, {"background": True}, {"hat": "black"}])
def test_what_needs_a_memory_is_refused(client, model, wrong):
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/responses", body={"model": model, "input": "Hello!", **wrong}, cast_to=object)
    assert caught.value.param == next(iter(wrong))
