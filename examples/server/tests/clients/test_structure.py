"""Answers that fit a schema."""

import json
from typing import Literal

import openai
import pydantic
import pytest

QUESTION = [{"role": "user", "content": "Turn this into JSON: Anna is 31 years old and lives in Oslo."}]


class Person(pydantic.BaseModel):
    name: str
    age: int
    city: str


class Feeling(pydantic.BaseModel):
    kind: Literal["good", "bad"]
    score: int


def test_parse(client, model):
    answer = client.chat.completions.parse(model=model, messages=QUESTION, response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="Anna", age=31, city="Oslo")


def test_a_schema_holds_whatever_the_model_would_say(client, model):
    for seed in range(10):
        answer = client.chat.completions.parse(
            model=model, messages=[{"role": "user", "content": "Hello!"}], response_format=Feeling,
            temperature=2, seed=seed, max_tokens=200)
        assert answer.choices[0].message.parsed.kind in ("good", "bad")


def test_json_object(client, model):
    answer = client.chat.completions.create(model=model, messages=QUESTION, response_format={"type": "json_object"})
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_the_stream_helper_parses(client, model):
    with client.chat.completions.stream(model=model, messages=QUESTION, response_format=Person) as stream:
        stream.until_done()
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed.city == "Oslo"


@pytest.mark.parametrize("schema", [
    {"type": "object", "properties": {"a": {"type": "no such type"}}},
    {"type": "string", "pattern": "(?=look)ahead"},
    "no schema",
])
def test_what_cannot_be_kept_is_refused(client, model, schema):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=model, messages=QUESTION,
            response_format={"type": "json_schema", "json_schema": {"name": "wrong", "schema": schema, "strict": True}})
    assert caught.value.param.startswith("response_format")


def test_a_tool_that_must_be_called(client, model):
    from conftest import TIME_TOOL

    for choice in ("required", {"type": "function", "function": {"name": "get_time"}}):
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Hello!"}], tools=[TIME_TOOL], tool_choice=choice)
        [call] = answer.choices[0].message.tool_calls
        assert call.function.name == "get_time" and isinstance(json.loads(call.function.arguments)["city"], str)


class GetTime(pydantic.BaseModel):
    """Current local time of a city"""

    city: str


def parse_call(client, model, **options):
    # The helper makes them strict, and needs that.
    tool = openai.pydantic_function_tool(GetTime, name="get_time")
    question = [{"role": "user", "content": "Which time is it now in Cairo?"}]
    answer = client.chat.completions.parse(model=model, messages=question, tools=[tool], **options)
    [call] = answer.choices[0].message.tool_calls
    assert call.function.parsed_arguments == GetTime(city="Cairo")


def test_parse_of_calls(client, model):
    parse_call(client, model, tool_choice="required")


def test_parse_of_calls_that_are_not_required(client, model):
    parse_call(client, model)


def test_parse_of_responses(client, model):
    answer = client.responses.parse(model=model, input=QUESTION, text_format=Person)
    assert answer.output_parsed == Person(name="Anna", age=31, city="Oslo")
