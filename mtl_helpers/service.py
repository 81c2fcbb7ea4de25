"""The model over HTTP: POST /predict; pages for people at / and /docs; /health, /ready and /metrics for machines.

Needs fastapi, uvicorn, prometheus_client and what `serving` needs: no torch. Where nothing else of the package is
installed, `python -m mtl_helpers.service DIR` does what `python -m mtl_helpers serve DIR` does.
"""

import argparse
import asyncio
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import prometheus_client as prometheus
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from .serving import ServedModel, cores

MOST_TEXTS, MOST_CHARACTERS, MOST_BYTES = 256, 10_000, 2_621_440  # of a request, of a text, of a body
MOST_WAITING = 200  # texts in the queue: a request that finds more is sent away
HEAD_SECONDS, BODY_SECONDS = 10, 10  # for the head and for the body of a request to arrive
UNSURE = 0.6  # answers of a lower probability are counted
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)  # of the latency histogram
BUSY = {"status_code": 503, "detail": "too many texts are waiting; try again", "headers": {"Retry-After": "1"}}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
}
ABOUT = """Serve a model that `export` wrote over HTTP, on as many cores as the machine or container has.

Examples:
  python -m mtl_helpers serve model
  curl -s localhost:8000/predict -H 'content-type: application/json' -d '{"texts": ["Behold!"]}'"""


class Texts(BaseModel):
    """What is to be labelled."""

    texts: Annotated[
        list[Annotated[str, Field(max_length=MOST_CHARACTERS)]], Field(min_length=1, max_length=MOST_TEXTS)
    ]
    model_config = {"json_schema_extra": {"example": {"texts": ["Could Ana Duarte send the minutes?", "Behold!"]}}}


class Label(BaseModel):
    """The answer of a sentence task."""

    label: str
    probability: float


class Span(Label):
    """One answer of a token task, in characters of the text. Its probability is the lowest of its tokens'."""

    start: int
    end: int
    surface: str


class Predictions(BaseModel):
    """For each text {task: answer}, and whether it was longer than what the model reads."""

    predictions: list[dict[str, Label | list[Span]]]
    truncated: list[bool]


class Problem(BaseModel):
    """What was wrong with a request. Nothing of the request is repeated."""

    detail: str | list[dict[str, Any]]


class Service:
    """The answers to requests, and what is counted about them.

    Args:
        model: on each core one inference of it runs at a time; what else comes waits.
        workers: cores to use (default: all that this process may use).
        log_texts: write the texts into the log, not only their number.
    """

    def __init__(self, model: ServedModel, workers: int | None = None, log_texts: bool = False) -> None:
        self.model, self.log_texts, self.workers, self.waiting = model, log_texts, workers or cores(), 0
        self.pool, self.free = ThreadPoolExecutor(self.workers), asyncio.Semaphore(self.workers)
        self.registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        queue = prometheus.Gauge("mtl_queue_texts", "Texts that wait for a core", registry=registry)
        queue.set_function(lambda: self.waiting)
        about, name = "Seconds until /predict had answered", "mtl_predict_seconds"
        self.seconds = prometheus.Histogram(name, about, buckets=SECONDS, registry=registry)

        def counter(name: str, about: str, *labels: str) -> prometheus.Counter:
            return prometheus.Counter(f"mtl_{name}", about, labels, registry=registry)

        self.requests = counter("requests", "Requests", "path", "status")
        self.errors = counter("errors", "Requests answered with a status of 400 or more")
        self.texts = counter("texts", "Texts labelled")
        self.truncated = counter("truncated_texts", "Texts longer than what the model reads")
        self.answers = counter("predictions", "Labels and spans given", "task")
        self.unsure = counter("unsure_predictions", f"Labels and spans of a probability below {UNSURE}", "task")

    async def predict(self, request: Request) -> Response:
        """Label up to 256 texts of at most 10,000 characters each."""
        try:
            texts = await read_texts(request)
        except ClientDisconnect:
            return Response(status_code=499)
        request.state.texts = texts if self.log_texts else len(texts)
        if self.waiting and self.waiting + len(texts) > MOST_WAITING:
            raise HTTPException(**BUSY)  # 503, try again
        self.waiting += len(texts)
        try:
            await self.free.acquire()  # a permit for each core
        finally:
            self.waiting -= len(texts)
        try:
            work = asyncio.get_running_loop().run_in_executor(self.pool, self.model.predict, texts)
            answers, truncated = await work
        finally:
            self.free.release()
        self.count(answers, truncated)
        return JSONResponse({"predictions": answers, "truncated": truncated})

    def count(self, answers: list[dict], truncated: list[bool]) -> None:
        """Take note of the answers to a request."""
        self.texts.inc(len(answers))
        self.truncated.inc(sum(truncated))
        for task in self.model.tasks:
            values = [answer[task.name] for answer in answers]
            given = [v["probability"] for value in values for v in (value if isinstance(value, list) else [value])]
            self.answers.labels(task.name).inc(len(given))
            self.unsure.labels(task.name).inc(sum(probability < UNSURE for probability in given))

    async def health(self) -> dict[str, Any]:
        """The process is alive and its model is loaded."""
        about = {"model": self.model.version, "precision": self.model.precision, "cores": self.workers}
        return {"status": "ok", **about, "tasks": [task.name for task in self.model.tasks]}

    async def ready(self) -> dict[str, str]:
        """There is room in the queue: send requests here."""
        if self.waiting >= MOST_WAITING:
            raise HTTPException(**BUSY)
        return {"status": "ready"}

    async def metrics(self) -> Response:
        """Numbers for Prometheus."""
        return Response(prometheus.generate_latest(self.registry), media_type=prometheus.CONTENT_TYPE_LATEST)


async def read_texts(request: Request) -> list[str]:
    """The texts of a request. HTTPException with 408, 413, 415 or 422, which repeats nothing of the body."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "expected the content-type application/json")
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                body += chunk if size <= MOST_BYTES else b""
                if size > 8 * MOST_BYTES:  # till then it is read and dropped: who is still sending sees no answer
                    break
    except TimeoutError as error:
        raise HTTPException(408, f"the body took more than {BODY_SECONDS} seconds") from error
    if size > MOST_BYTES:
        raise HTTPException(413, f"the body has more than {MOST_BYTES} bytes")
    try:
        return Texts.model_validate_json(bytes(body)).texts
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[:5]
        raise HTTPException(422, [{**problem, "loc": ["body", *problem["loc"]]} for problem in first]) from error


def make_app(service: Service) -> FastAPI:
    """The application: what answers which address."""
    model = service.model
    about = f"Labels texts: {', '.join(task.name for task in model.tasks)}. Model {model.version}, {model.precision}."
    app = FastAPI(title="mtl_helpers", description=about, docs_url=None, redoc_url=None)
    problems = {
        408: f"The body took more than {BODY_SECONDS} seconds",
        413: f"The body has more than {MOST_BYTES} bytes",
        415: "The content-type is not application/json",
        422: f"Not 1 to {MOST_TEXTS} texts of at most {MOST_CHARACTERS} characters",
        503: "Too many texts are waiting; try again",
    }
    responses = {code: {"model": Problem, "description": text} for code, text in problems.items()}
    body = {"required": True, "content": {"application/json": {"schema": Texts.model_json_schema()}}}
    more = {"response_model": Predictions, "responses": responses, "openapi_extra": {"requestBody": body}}
    app.post("/predict", **more)(service.predict)
    app.get("/health")(service.health)
    app.get("/ready", responses={503: responses[503]})(service.ready)
    app.get("/metrics", response_class=PlainTextResponse)(service.metrics)
    for name, path in (("page", "/"), ("docs", "/docs")):
        page = HTMLResponse(Path(__file__).with_name(f"{name}.html").read_bytes(), headers=PAGE_HEADERS)
        app.add_route(path, lambda _, page=page: page, include_in_schema=False)
    app.add_middleware(Watch, service=service, known={route.path for route in app.routes})
    return app


class Watch:
    """Around the application: counts each request and writes a line about it into the log."""

    def __init__(self, app: Callable, service: Service, known: set[str]) -> None:
        self.app, self.service, self.known = app, service, known

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        start, status, path = time.perf_counter(), 500, scope.get("path")

        async def note(message: dict) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            if scope["type"] == "http":
                path, seconds = path if path in self.known else "other", time.perf_counter() - start
                self.service.requests.labels(path, status).inc()
                self.service.errors.inc(status >= 400)
                if path == "/predict":
                    self.service.seconds.observe(seconds)
                row = {"method": scope["method"], "path": path, "status": status, "ms": round(1000 * seconds, 2)}
                logging.getLogger("mtl_helpers").info("request", extra={"row": row | scope.get("state", {})})


class JsonLines(logging.Formatter):
    """One JSON object per line of the log."""

    def format(self, record: logging.LogRecord) -> str:
        row = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname}
        row |= {"message": record.getMessage(), **getattr(record, "row", {})}
        return json.dumps(row | ({"error": self.formatException(record.exc_info)} if record.exc_info else {}))


class Impatient(H11Protocol):
    """HTTP that hangs up on who has not sent the head of a first request after HEAD_SECONDS."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.loop.call_later(HEAD_SECONDS, lambda: self.cycle is None and transport.close())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command `serve`."""
    add = parser.add_argument
    add("model", metavar="DIR", help="folder that export wrote")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, for this machine alone)")
    add("--port", type=port, default=8000, help="0: any that is free (default: %(default)s)")
    add("--precision", choices=["auto", "fp32", "int8"], default="auto", help="auto: int8 if the folder has it")
    add("--log-texts", action="store_true", help="write the texts of requests into the log (default: their number)")


def port(text: str) -> int:
    """A number that a port can have. ValueError if it can't."""
    number = int(text)
    if not 0 <= number < 65536:
        raise ValueError(number)
    return number


def run(options: argparse.Namespace) -> None:
    """The command `serve`: until SIGTERM or Ctrl-C, which let requests in flight finish."""
    model = ServedModel(options.model, options.precision)
    service = Service(model, log_texts=options.log_texts)
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, force=True)
    logging.getLogger().handlers[0].setFormatter(JsonLines())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn ends by itself and then raises the signal again
    listener = socket.create_server((options.host, options.port), backlog=512)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else head and body of an answer wait 40 ms apart
    host = "localhost" if options.host in ("127.0.0.1", "0.0.0.0") else options.host
    where = f"http://{host}:{listener.getsockname()[1]}"
    print(f"serving {options.model} ({model.precision}) at {where} (Ctrl-C stops)", file=sys.stderr, flush=True)
    more = {"access_log": False, "server_header": False, "timeout_graceful_shutdown": 25}
    more["limit_concurrency"] = MOST_WAITING + service.workers + 32  # the queue ends first, with Retry-After
    uvicorn.Server(uvicorn.Config(make_app(service), http=Impatient, log_config=None, **more)).run(sockets=[listener])


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m mtl_helpers.service", description=ABOUT)
    add_arguments(parser)
    run(parser.parse_args())
