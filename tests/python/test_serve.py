"""`uniattn serve` through the official client and through raw sockets, and `uniattn chat`."""

import json
import signal
import socket
import subprocess
import threading
import time

import pytest
import uniattn
from support.models import write_base
from support.runs import VOCAB, write_tokenizer

openai = pytest.importorskip("openai")
PROMPT = "the model shares one"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = write_base(tmp_path_factory.mktemp("served") / "tiny", vocab_size=VOCAB)
    write_tokenizer(path)
    return path


class Server:
    def __init__(self, run_uniattn, path, *options):
        command = [str(run_uniattn.binary), "serve", "--model", str(path), "--port", "0", *map(str, options)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=run_uniattn.environment)
        for line in self.process.stderr:
            if "http://" in line:
                self.port = int(line.split("http://")[1].split("/")[0].split(":")[1])
                break
        else:
            raise AssertionError(f"the server ended with {self.process.wait()}")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0)

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(timeout=20)

    def raw(self, data, wait=True):
        """What the server answers to the bytes, until it closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(data)
            received = b""
            while wait and (part := connection.recv(65536)):
                received += part
            return received

    def post(self, path, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        received = self.raw(head.encode() + data)
        return int(received.split()[1]), received

    def health(self):
        answer = self.raw(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return json.loads(answer.split(b"\r\n\r\n", 1)[1])

    def wait_until_idle(self):
        for _ in range(200):
            status = self.health()
            if status["running"] == status["waiting"] == 0:
                return status
            time.sleep(0.05)
        raise AssertionError(f"still busy: {status}")


@pytest.fixture(scope="module")
def server(run_uniattn, model):
    server = Server(run_uniattn, model, "--max-length", 400, "--max-waiting", 4, "--max-batch", 4, "--max-request-bytes", 20000)
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def expected(model):
    return uniattn.load(model).generate(PROMPT, max_new_tokens=24)


def test_models(server):
    assert [m.id for m in server.client.models.list()] == ["tiny"]


def test_completion(server, model, expected):
    answer = server.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=24, temperature=0)
    assert answer.choices[0].text == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage.completion_tokens == len(expected.ids)
    assert answer.usage.prompt_tokens == len(uniattn.load(model).encode(PROMPT))
    both = server.client.completions.create(model="tiny", prompt=[PROMPT, "between"], max_tokens=24, temperature=0)
    assert [c.index for c in both.choices] == [0, 1] and both.choices[0].text == expected.text
    ids = uniattn.load(model).encode(PROMPT)
    assert server.client.completions.create(model="tiny", prompt=ids, max_tokens=24, temperature=0).choices[0].text == expected.text


def test_streamed_completion(server, expected):
    stream = server.client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=24, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].text for c in chunks[:-1]) == expected.text
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == expected.finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == len(expected.ids)


def test_stop_strings_and_seeds(server, expected):
    stop = expected.text[6:9]
    complete = lambda **options: server.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=24, **options).choices[0]
    stopped = complete(temperature=0, stop=[stop])
    assert stopped.text == expected.text[: expected.text.index(stop)] and stopped.finish_reason == "stop"
    assert complete(seed=4).text == complete(seed=4).text != complete(seed=5).text


def test_chat(server, model):
    messages = [{"role": "user", "content": "one attention pattern"}]
    answer = server.client.chat.completions.create(model="tiny", messages=messages, max_tokens=20, temperature=0)
    assert answer.choices[0].message.role == "assistant"
    stream = server.client.chat.completions.create(model="tiny", messages=messages, max_tokens=20, temperature=0, stream=True)
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == answer.choices[0].message.content
    rendered = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    rendered += "\n\n### Instruction:\none attention pattern\n\n### Response:"
    assert uniattn.load(model).generate(rendered, max_new_tokens=20).text == answer.choices[0].message.content


BAD = {
    "not JSON": (b"{", 400, "JSON"),
    "not UTF-8": (b'{"prompt": "\xff"}', 400, ""),
    "no prompt": ({}, 400, "prompt"),
    "empty prompt": ({"prompt": []}, 400, "prompt"),
    "ids beyond the vocabulary": ({"prompt": [VOCAB]}, 400, "vocabulary"),
    "too long": ({"prompt": PROMPT, "max_tokens": 400}, 400, "context_length_exceeded"),
    "temperature": ({"prompt": PROMPT, "temperature": -1}, 400, "temperature"),
    "type": ({"prompt": PROMPT, "max_tokens": "many"}, 400, "max_tokens"),
    "several choices": ({"prompt": PROMPT, "n": 2}, 400, "`n`"),
    "stop": ({"prompt": PROMPT, "stop": [""]}, 400, "stop"),
    "large": (b" " * 30000, 413, "large"),
}


@pytest.mark.parametrize("body, status, naming", BAD.values(), ids=BAD)
def test_bad_requests_are_refused(server, body, status, naming):
    found, answer = server.post("/v1/completions", body)
    assert found == status and naming in answer.decode()
    assert b'"error"' in answer


def test_bad_messages_are_refused(server):
    for messages in ([], [{"role": "user"}], [{"role": "nobody", "content": "x"}], "hello"):
        assert server.post("/v1/chat/completions", {"messages": messages})[0] == 400
    assert server.post("/v1/nothing", {})[0] == 404


@pytest.mark.parametrize("data", [b"\r\n\r\n", b"GARBAGE\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n", b"\x00" * 100 + b"\r\n\r\n"])
def test_raw_garbage_does_no_harm(server, data):
    server.raw(data + b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n", wait=False)
    assert server.health()["status"] == "ok"


def test_cancelled_requests_free_their_place(server):
    for stream in (True, False):
        body = json.dumps({"prompt": PROMPT, "max_tokens": 380, "stream": stream}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        for _ in range(6):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(head + body)
    server.wait_until_idle()


def test_a_full_queue_refuses(server):
    body = {"prompt": [PROMPT] * 9, "max_tokens": 300, "temperature": 0}
    status, answer = server.post("/v1/completions", body)
    assert status == 429 and b"Retry-After" in answer
    assert server.post("/v1/completions", body | {"prompt": [PROMPT] * 8})[0] == 200


def test_many_clients_at_once(server, expected):
    texts = []

    def ask():
        while True:
            try:
                texts.append(server.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=24, temperature=0).choices[0].text)
                return
            except openai.RateLimitError:
                time.sleep(0.02)

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [expected.text] * 16


def test_answers_end_at_their_time(run_uniattn, model):
    server = Server(run_uniattn, model, "--timeout", 1, "--max-length", 100000)
    answer = server.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=90000, temperature=0.01)
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert 0 < answer.usage.completion_tokens < 90000
    assert server.stop(signal.SIGINT) == 0


def test_shutdown_ends_answers(run_uniattn, model):
    server = Server(run_uniattn, model, "--max-length", 100000)
    stream = server.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=90000, stream=True)
    next(iter(stream))
    assert server.stop() == 0


def test_a_port_that_is_taken(server, run_uniattn, model):
    run_uniattn.fails(1, "serve", "--model", model, "--port", server.port, naming=[server.port])


def test_chat_at_a_terminal(run_uniattn, model, server):
    command = [str(run_uniattn.binary), "chat", "--model", str(model), "--temperature", "0", "--max-new-tokens", "20"]
    done = subprocess.run(command, input="one attention pattern\n\n", capture_output=True, text=True, env=run_uniattn.environment, timeout=60)
    assert done.returncode == 0, done.stderr
    messages = [{"role": "user", "content": "one attention pattern"}]
    answer = server.client.chat.completions.create(model="tiny", messages=messages, max_tokens=20, temperature=0)
    assert done.stdout == answer.choices[0].message.content + "\n"
