"""The server under test, and clients of it.

QWEN_SERVER is the program, QWEN_MODEL the checkpoint (the demo model of this repository by default).
"""

import os
import pathlib
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import openai
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[4]
MODEL = os.environ.get("QWEN_MODEL", str(REPOSITORY / "examples/demo-model"))


class Server:
    """A server that ends with the test or the session that wanted it."""

    def __init__(self, *options):
        self.log = tempfile.TemporaryFile(mode="w+")
        command = [os.environ["QWEN_SERVER"], "--model", MODEL, "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        for line in self.process.stdout:
            if "listening on " in line:
                self.url = line.split("listening on ")[1].split()[0]
                break
        else:
            self.log.seek(0)
            raise RuntimeError(f"the server ended with {self.process.wait()}: {self.log.read()}")
        self.wait()

    def wait(self):
        """Until the model is loaded."""
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except urllib.error.HTTPError as error:
                assert error.code == 503, error.code
            time.sleep(0.1)
        raise RuntimeError("the model is not loaded after a minute")

    def client(self, **options):
        options = {"api_key": "none", "max_retries": 0, "timeout": 60, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **options)

    def stop(self):
        self.process.terminate()
        try:
            assert self.process.wait(timeout=60) == 0, "the server did not end well"
        finally:
            self.process.kill()
            self.process.stdout.close()
            self.log.close()


@pytest.fixture(scope="session")
def server():
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def start():
    """Starts further servers, with options of their own."""
    servers = []

    def start(*options):
        servers.append(Server(*options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def client(server):
    return server.client()


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id


@pytest.fixture(scope="session")
def chat(client, model):
    """`client.chat.completions.create` for one message of a user."""

    def chat(text, **options):
        return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **options)

    return chat


# The demo model always calls this one when it is asked for the time.
TIME_TOOL = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Current local time of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
