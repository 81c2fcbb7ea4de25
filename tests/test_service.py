"""The model over HTTP: answers, refusals, load, and how it ends."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest
import uvicorn

from mtl_helpers import TASKS, service
from mtl_helpers.serving import ServedModel

ROOT = Path(service.__file__).resolve().parent.parent
TEXTS = ["Could Ana Duarte send the minutes?", "Behold!", "👩\u200d👧 met José in 東京.", ""]


def start_server(folder: Path, *options: str) -> tuple[subprocess.Popen, str]:
    """A server in a process of its own, and its address."""
    command = [sys.executable, "-m", "mtl_helpers.service", str(folder), "--port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return server, re.search(r"http://\S+", server.stderr.readline()).group().replace("localhost", "127.0.0.1")


def stop(server: subprocess.Popen) -> str:
    """End it as a container would; returns its log."""
    server.send_signal(signal.SIGTERM)
    log, _ = server.communicate(timeout=60)
    return log


@pytest.fixture(scope="module")
def running(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server: its process, its address, a client for it."""
    server, url = start_server(exported("bert"))
    drain = threading.Thread(target=server.stdout.read, daemon=True)
    drain.start()
    with httpx.Client(base_url=url, timeout=30) as client:
        yield SimpleNamespace(process=server, url=url, client=client)
    server.send_signal(signal.SIGTERM)
    assert server.wait(30) == 0


def test_answers_are_those_of_the_model(running: SimpleNamespace, exported: Callable[[str], Path]):
    answer = running.client.post("/predict", json={"texts": TEXTS})
    assert answer.status_code == 200
    predictions, truncated = ServedModel(exported("bert")).predict(TEXTS)
    assert answer.json() == {"predictions": predictions, "truncated": truncated}
    for text, prediction in zip(TEXTS, predictions, strict=True):
        assert list(prediction) == ["topic", "sentence_type", "sentiment", "entities"]
        for span in prediction["entities"]:
            assert text[span["start"] : span["end"]] == span["surface"]


def test_machines_are_told_how_it_is(running: SimpleNamespace):
    health = running.client.get("/health").json()
    assert health["status"] == "ok" and health["precision"] == "fp32" and "topic" in health["tasks"]
    assert running.client.get("/ready").json() == {"status": "ready"}

    def number(line: str) -> float:
        return float(re.search(rf"^{re.escape(line)} (\S+)$", running.client.get("/metrics").text, re.M).group(1))

    before = number("mtl_texts_total"), number("mtl_errors_total")
    running.client.post("/predict", json={"texts": ["Behold!", "Ana " * 900]})
    running.client.post("/predict", json={"texts": []})
    assert (number("mtl_texts_total"), number("mtl_errors_total")) == (before[0] + 2, before[1] + 1)
    assert number("mtl_truncated_texts_total") >= 1
    assert number('mtl_unsure_predictions_total{task="topic"}') <= number('mtl_predictions_total{task="topic"}')
    assert number('mtl_requests_total{path="/predict",status="422"}') >= 1
    assert number("mtl_queue_texts") == 0 and number("mtl_predict_seconds_count") >= 2


def test_the_description_has_limits_and_an_example(running: SimpleNamespace):
    body = running.client.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert schema["properties"]["texts"]["maxItems"] == 256 and schema["example"]["texts"]


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_nothing_from_elsewhere(running: SimpleNamespace, path: str):
    page = running.client.get(path)
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//|@import|url\(", page.text)


# ----------------------------------------------------------------------------------------------- bad input

JSON = {"content-type": "application/json"}
BAD = {
    "empty body": (b"", JSON, 422),
    "empty list": (b'{"texts": []}', JSON, 422),
    "no texts": (b'{"text": ["SECRET"]}', JSON, 422),
    "a string": (b'{"texts": "SECRET"}', JSON, 422),
    "numbers": (b'{"texts": [1, 2.5]}', JSON, 422),
    "null": (b'{"texts": [null]}', JSON, 422),
    "null at the top": (b"null", JSON, 422),
    "not a number": (b'{"texts": [NaN]}', JSON, 422),
    "infinity at the top": (b"Infinity", JSON, 422),
    "a list at the top": (b'["SECRET"]', JSON, 422),
    "lists in lists": (b'{"texts": [["SECRET"]]}', JSON, 422),
    "broken JSON": (b'{"texts": ["SECRET"', JSON, 422),
    "invalid UTF-8": (b'{"texts": ["SECRET\xff\xfe"]}', JSON, 422),
    "UTF-16": ('{"texts": ["SECRET"]}'.encode("utf-16"), JSON, 422),
    "a lone surrogate": (rb'{"texts": ["SECRET\ud83d"]}', JSON, 422),
    "surrogates the wrong way round": (rb'{"texts": ["SECRET\udc00\ud83d"]}', JSON, 422),
    "deep JSON": (b'{"texts": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", JSON, 422),
    "a number of 100,000 digits": (b'{"texts": [' + b"9" * 100_000 + b"]}", JSON, 422),
    "too many texts": (json.dumps({"texts": ["SECRET"] * 257}).encode(), JSON, 422),
    "10,000 texts": (json.dumps({"texts": ["SECRET"] * 10_000}).encode(), JSON, 422),
    "a text too long": (json.dumps({"texts": ["S" * 10_001]}).encode(), JSON, 422),
    "a megabyte": (json.dumps({"texts": ["SECRET" * 170_000]}).encode(), JSON, 422),
    "three megabytes": (json.dumps({"texts": ["SECRET" * 500_000]}).encode(), JSON, 413),
    "five megabytes of nothing": (b" " * 5_000_000, JSON, 413),
    "a form": (b"texts=SECRET", {"content-type": "application/x-www-form-urlencoded"}, 415),
    "plain text": (b'{"texts": ["SECRET"]}', {"content-type": "text/plain"}, 415),
    "no content type": (b'{"texts": ["SECRET"]}', {}, 415),
}
GOOD = {
    "NUL": (["a\0b"], JSON),
    "one empty text": ([""], JSON),
    "white space": ([" \t\r\n\u3000"], JSON),
    "the longest": (["a" * 10_000], JSON),
    "as many as can be": (["Behold!"] * 256, JSON),
    "control characters and noncharacters": (["\x01\x7f\u202e\ufffe\U0010ffff"], JSON),
    "a content type with a charset": (["Behold!"], {"content-type": "Application/JSON; charset=utf-8"}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_not_repeated(running: SimpleNamespace, name: str):
    body, headers, status = BAD[name]
    answer = running.client.post("/predict", content=body, headers=headers)
    assert answer.status_code == status
    assert "SECRET" not in answer.text and len(answer.content) < 1500
    assert running.client.post("/predict", json={"texts": ["Behold!"]}).status_code == 200


@pytest.mark.parametrize("name", GOOD)
def test_odd_input_is_answered(running: SimpleNamespace, name: str):
    texts, headers = GOOD[name]
    answer = running.client.post("/predict", content=json.dumps({"texts": texts}), headers=headers)
    assert answer.status_code == 200 and len(answer.json()["predictions"]) == len(texts)


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/predict", 405), ("POST", "/health", 405), ("GET", "/x/../etc", 404)]
)
def test_other_addresses_and_methods(running: SimpleNamespace, method: str, path: str, status: int):
    assert running.client.request(method, path).status_code == status


def test_bad_input_leaves_nothing_behind(running: SimpleNamespace):
    def attack() -> None:
        for body, headers, _ in BAD.values():
            running.client.post("/predict", content=body, headers=headers)

    attack()
    process = psutil.Process(running.process.pid)
    memory, files = process.memory_info().rss, process.num_fds()
    for _ in range(4):
        attack()
    assert process.memory_info().rss < memory + 30e6 and process.num_fds() <= files + 2


def raw(url: str, data: bytes) -> socket.socket:
    """A connection over which only this has been sent."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=5)
    connection.sendall(data)
    return connection


HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 22\r\n\r\n"


def test_slow_broken_and_vanished_clients_hold_nobody_up(running: SimpleNamespace):
    slow = [raw(running.url, HEAD + b'{"texts"') for _ in range(20)] + [raw(running.url, HEAD[:30]) for _ in range(20)]
    for _ in range(20):
        raw(running.url, HEAD + b'{"texts"').close()  # gone before its request is whole
        raw(running.url, HEAD + b'{"texts": ["Behold!"]}').close()  # gone before the answer
    start = time.perf_counter()
    assert running.client.post("/predict", json={"texts": ["Behold!"]}).status_code == 200
    assert time.perf_counter() - start < 5
    slow[0].sendall(b': ["Behold!"]}')
    assert slow[0].recv(1000).startswith(b"HTTP/1.1 200")
    for connection in slow:
        connection.close()
    for nonsense in (b"\x16\x03\x01 no HTTP at all\r\n\r\n", HEAD.replace(b"22", b"-1"), HEAD.replace(b"22", b"many")):
        assert raw(running.url, nonsense).recv(100).startswith(b"HTTP/1.1 400")


def test_answers_over_one_connection_do_not_wait_for_acknowledgements(running: SimpleNamespace):
    took = []
    for _ in range(40):
        start = time.perf_counter()
        running.client.post("/predict", json={"texts": ["Behold!"]})
        took.append(time.perf_counter() - start)
    assert sorted(took[10:])[8] < 0.035  # with Nagle's algorithm all take 0.04 or more


def test_requests_after_the_description_are_answered_as_described(running: SimpleNamespace):
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = ["-m", "schemathesis.cli", "run", f"{running.url}/openapi.json", "--max-examples", "25", "--seed", "1"]
    more = ["--checks", f"{checks},negative_data_rejection,positive_data_acceptance", "--no-color"]
    done = subprocess.run([sys.executable, *command, *more], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


# ------------------------------------------------------------------------------------- load, start and end


class Slow:
    """A model that takes its time."""

    tasks, version, precision = TASKS[:1], "x", "fp32"

    def __init__(self, seconds: float) -> None:
        self.seconds, self.running, self.most = seconds, 0, 0

    def predict(self, texts: list[str]) -> tuple[list[dict], list[bool]]:
        self.running += 1
        self.most = max(self.most, self.running)
        time.sleep(self.seconds)
        self.running -= 1
        return [{"topic": {"label": "sports", "probability": 1.0}} for _ in texts], [False for _ in texts]


@pytest.fixture
def slow() -> Iterator[tuple[Slow, str]]:
    """A server in a thread with a slow model and two cores."""
    model, listener = Slow(0.3), socket.create_server(("127.0.0.1", 0))
    app = service.make_app(service.Service(model, workers=2))
    server = uvicorn.Server(uvicorn.Config(app, http=service.Impatient, log_config=None))
    thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[listener]),), daemon=True)
    thread.start()
    yield model, f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


def test_one_inference_a_core_a_bounded_queue_then_503(slow: tuple[Slow, str], monkeypatch: pytest.MonkeyPatch):
    model, url = slow
    monkeypatch.setattr(service, "MOST_WAITING", 4)
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: httpx.post(f"{url}/predict", json={"texts": ["a"]}, timeout=30), range(24)))
    statuses = sorted(answer.status_code for answer in answers)
    assert model.most == 2 and set(statuses) == {200, 503} and statuses.count(200) >= 6
    busy = next(answer for answer in answers if answer.status_code == 503)
    assert busy.headers["retry-after"] == "1" and "again" in busy.json()["detail"]
    assert httpx.post(f"{url}/predict", json={"texts": ["a"] * 200}, timeout=30).status_code == 200  # nobody waits


def test_a_queue_of_single_texts_ends_before_the_connections_do(exported: Callable[[str], Path], monkeypatch):
    configs: list[uvicorn.Config] = []
    stand_in = SimpleNamespace(run=lambda sockets: sockets[0].close())
    monkeypatch.setattr(service, "cores", lambda: 200)
    monkeypatch.setattr(service.signal, "signal", lambda *_: None)
    monkeypatch.setattr(service.uvicorn, "Server", lambda config: configs.append(config) or stand_in)
    service.run(SimpleNamespace(model=exported("bert"), host="127.0.0.1", port=0, precision="auto", log_texts=False))
    assert configs[0].limit_concurrency > service.MOST_WAITING + 200  # else a client isn't told when to try again


def test_a_body_or_head_that_never_comes_is_given_up(slow: tuple[Slow, str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(service, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(service, "HEAD_SECONDS", 0.2)
    assert raw(slow[1], HEAD + b'{"texts"').recv(1000).startswith(b"HTTP/1.1 408")
    assert raw(slow[1], HEAD[:20]).recv(1000) == b""


def test_it_is_ready_soon_small_and_lets_requests_finish(exported: Callable[[str], Path]):
    start = time.perf_counter()
    server, url = start_server(exported("bert"))
    process = psutil.Process(server.pid)
    used = process.cpu_times()
    assert used.user + used.system < 2.5 and time.perf_counter() - start < 20  # seconds of a core; machines are busy
    assert process.memory_info().rss < 300e6
    before, body = sum(process.cpu_times()[:2]), {"texts": ["Ana Duarte " * 900] * 60}
    with ThreadPoolExecutor(3) as pool:
        requests = [pool.submit(httpx.post, f"{url}/predict", json=body, timeout=60) for _ in range(3)]
        while sum(process.cpu_times()[:2]) < before + 0.1:
            time.sleep(0.02)
        log = stop(server)
    finished = [request.result().status_code for request in requests if not request.exception()]
    served = [row for row in map(json.loads, log.splitlines()) if row.get("path") == "/predict"]
    assert server.returncode == 0 and finished and set(finished) == {200}
    assert [row["status"] for row in served] == finished  # none was taken and not finished


@pytest.mark.parametrize("option", [[], ["--log-texts"]])
def test_the_log_has_no_texts_unless_asked(exported: Callable[[str], Path], option: list[str]):
    server, url = start_server(exported("bert"), *option)
    httpx.post(f"{url}/predict?HIDDEN", json={"texts": ["SECRET"]})
    httpx.get(f"{url}/HIDDEN")
    log = stop(server)
    rows = [json.loads(line) for line in log.splitlines()]
    assert [row.get("texts") for row in rows if row.get("path") == "/predict"] == [["SECRET"] if option else 1]
    assert "HIDDEN" not in log and ("SECRET" in log) == bool(option)


def test_an_address_in_use_is_one_message(running: SimpleNamespace, exported: Callable[[str], Path]):
    port = running.url.rpartition(":")[2]
    with pytest.raises(OSError, match="in use"):
        service.run(
            SimpleNamespace(model=exported("bert"), host="127.0.0.1", port=int(port), precision="auto", log_texts=False)
        )
