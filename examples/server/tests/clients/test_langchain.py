"""LangChain's client, where it is installed."""

import pydantic
import pytest

langchain = pytest.importorskip("langchain_openai")

from conftest import TIME_TOOL  # noqa: E402


@pytest.fixture(scope="module")
def llm(server, model):
    return langchain.ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model=model, max_retries=0, max_tokens=64)


def test_invoke_stream_and_batch(llm):
    assert "Lima" in llm.invoke("What is the capital of Peru?").content
    assert "Lima" in "".join(chunk.content for chunk in llm.stream("What is the capital of Peru?"))
    answers = llm.batch(["What is 3 + 4?", "What is 5 + 6?"])
    assert "7" in answers[0].content and "11" in answers[1].content
    assert answers[0].usage_metadata["output_tokens"] > 0


def test_tools(llm):
    answer = llm.bind_tools([TIME_TOOL]).invoke("Which time is it now in Cairo?")
    assert answer.tool_calls[0]["name"] == "get_time" and answer.tool_calls[0]["args"] == {"city": "Cairo"}


def test_embeddings(server, model):
    embeddings = langchain.OpenAIEmbeddings(
        base_url=f"{server.url}/v1", api_key="none", model=model, check_embedding_ctx_length=False)
    first, second = embeddings.embed_documents(["A cat.", "A cat."])
    assert first == second and len(first) > 1


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output(llm, method):
    class Person(pydantic.BaseModel):
        name: str
        age: int
        city: str

    question = "Turn this into JSON: Anna is 31 years old and lives in Oslo."
    answer = llm.with_structured_output(Person, method=method).invoke(question)
    assert answer == Person(name="Anna", age=31, city="Oslo")
