"""The HTTP side: OpenAI's chat and text completions, streamed or whole, over a ``Batcher``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from decoding.generation import check_ids
from decoding.models.chat import render
from decoding.models.lm import LM
from decoding.models.settings import stop_strings
from decoding.serving.batcher import Batcher, Busy
from decoding.serving.bodies import SEEDS, Body, ChatBody, CompletionBody
from decoding.serving.jobs import Job, Part
from decoding.serving.record import Record, Records
from decoding.serving.writers import Writers

POLL = 0.2
"""seconds after which a client that went away is noticed"""


@dataclass(frozen=True)
class Served:
    """The models, the writers and the batch behind an app, and its name in requests."""

    name: str
    large: LM
    writers: Writers
    batcher: Batcher
    model_names: Sequence[str]
    """of the decoder's models: small, large"""
    records: Records


class Refused(HTTPException):
    """A request that is not served, with the sentence that says why."""


def build_app(served: Served) -> FastAPI:
    """The app. It closes the batcher when it ends."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(served.batcher.close)

    app = FastAPI(title="two-model-decoding", lifespan=lifespan)
    app.add_exception_handler(RequestValidationError, lambda _, error: failure(400, *_sentence(error)))
    app.add_exception_handler(HTTPException, lambda _, error: failure(error.status_code, str(error.detail)))

    @app.get("/health")
    def health() -> dict:
        return {"status": "ok", "running": served.batcher.running, "waiting": len(served.batcher.waiting)}

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> str:
        return served.records.metrics()

    @app.get("/v1/models")
    def models() -> dict:
        return {"object": "list", "data": [{"id": served.name, "object": "model", "owned_by": "local"}]}

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request):
        return await answer(served, CHAT, body, chat_ids(served.large, body), request)

    @app.post("/v1/completions")
    async def complete(body: CompletionBody, request: Request):
        return await answer(served, TEXT, body, text_ids(served.large, body), request)

    return app


@dataclass(frozen=True)
class Shape:
    """The JSON of an answer in one of the two APIs."""

    prefix: str
    whole: str
    chunk: str
    choice: Callable[[str], dict]
    piece: Callable[[str], dict]


CHAT = Shape(
    "chatcmpl",
    "chat.completion",
    "chat.completion.chunk",
    lambda text: {"message": {"role": "assistant", "content": text}},
    lambda text: {"delta": {"content": text} if text else {}},
)
TEXT = Shape("cmpl", "text_completion", "text_completion", lambda text: {"text": text}, lambda text: {"text": text})


async def answer(served: Served, shape: Shape, body: Body, ids: list[int], request: Request):
    """The response to a request with the prompt ``ids``. Refused for what cannot be served."""
    if not ids:
        raise Refused(400, "the tokenizer makes no token of the prompt; write some text it knows")
    if body.model not in (None, served.name):
        raise Refused(404, f"there is no model {body.model!r} here; this server has {served.name!r}")
    loop, parts = asyncio.get_running_loop(), asyncio.Queue()
    began = time.time()
    try:
        job = Job(
            ids,
            served.batcher.length - len(ids) if body.limit is None else body.limit,
            served.writers.mode(body),
            int(torch.randint(SEEDS, ())) if body.seed is None else body.seed,
            (*body.stops, *stop_strings(served.large)),
            lambda part: _send(loop, parts, part),
            served.large.tokenizer,
        )
        if job.most < 1:
            raise ValueError(f"the prompt has {len(ids)} tokens; this server has room for {served.batcher.length}")
        served.batcher.submit(job)
    except Busy as error:
        raise Refused(429, str(error)) from error
    except ValueError as error:
        raise Refused(400, str(error)) from error
    reply = Reply(served, shape, job, parts, began)
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        return StreamingResponse(reply.events(usage), media_type="text/event-stream")
    return await reply.whole(request)


class Reply:
    """The answer to one request, whole or as events."""

    def __init__(self, served: Served, shape: Shape, job: Job, parts: asyncio.Queue[Part], began: float):
        self.served, self.shape, self.job, self.parts, self.began = served, shape, job, parts, began
        self.id = f"{shape.prefix}-{uuid.uuid4().hex}"
        self.first: float | None = None
        self.last = Part("", "cancelled")

    async def whole(self, request: Request) -> JSONResponse:
        """One JSON body, when the answer is complete. A client that goes away frees its row."""
        gone = asyncio.create_task(self._watch(request))
        try:
            parts = [part async for part in self._received()]
        finally:
            gone.cancel()
            self._leave()
        if parts[-1].error is not None:
            return failure(500, parts[-1].error)
        text = "".join(part.text for part in parts)
        choice = {"index": 0} | self.shape.choice(text) | {"finish_reason": parts[-1].finish, "logprobs": None}
        return JSONResponse(self._body(self.shape.whole, [choice]) | {"usage": self.usage()})

    async def events(self, include_usage: bool) -> AsyncIterator[str]:
        """Server-sent events. A client that goes away ends this generator, which frees its row."""
        try:
            if self.shape is CHAT:
                yield self._event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
            async for part in self._received():
                if part.error is not None:
                    yield f"data: {json.dumps(_error(part.error, 500))}\n\n"
                    return
                choice = {"index": 0} | self.shape.piece(part.text) | {"finish_reason": part.finish}
                yield self._event([choice])
            if include_usage:
                yield self._event([], usage=self.usage())
            yield "data: [DONE]\n\n"
        finally:
            self._leave()

    def usage(self) -> dict:
        """Tokens of the prompt and the answer, and beside OpenAI's fields who wrote them, at which threshold."""
        job, mode = self.job, self.job.mode
        threshold = self.served.writers.threshold if mode.threshold is None else mode.threshold
        return {
            "prompt_tokens": len(job.prompt),
            "completion_tokens": job.tokens,
            "total_tokens": len(job.prompt) + job.tokens,
            "written_by": self._written_by(),
            "policy": {"threshold": None if mode.alone else threshold},
        }

    def _written_by(self) -> dict[str, int]:
        if self.job.mode.alone:
            return {self.served.model_names[-1]: self.job.tokens}
        return {name: self.job.written[i] for i, name in enumerate(self.served.model_names)}

    async def _received(self) -> AsyncIterator[Part]:
        """The parts until the last one."""
        while True:
            part = await self.parts.get()
            if self.first is None and part.text:
                self.first = time.time()
            if part.finish is not None or part.error is not None:
                self.last = part
                yield part
                return
            yield part

    def _leave(self) -> None:
        """Record the request; its row is free if it is not at its end."""
        self.job.cancelled = True
        self.served.records.add(
            Record(
                id=self.id,
                began=self.began,
                seconds=time.time() - self.began,
                first_token_seconds=None if self.first is None else self.first - self.began,
                finish_reason=self.last.finish,
                error=self.last.error,
                **self.usage(),
            )
        )

    async def _watch(self, request: Request) -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(POLL)
        self.job.cancelled = True

    def _body(self, kind: str, choices: list[dict]) -> dict:
        created = int(self.began)
        return {"id": self.id, "object": kind, "created": created, "model": self.served.name, "choices": choices}

    def _event(self, choices: list[dict], **more) -> str:
        return f"data: {json.dumps(self._body(self.shape.chunk, choices) | more)}\n\n"


def _send(loop: asyncio.AbstractEventLoop, parts: asyncio.Queue[Part], part: Part) -> None:
    """Hand ``part`` to the loop that serves; nobody waits for it once that has ended."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(parts.put_nowait, part)


def chat_ids(lm: LM, body: ChatBody) -> list[int]:
    """Token ids of the messages in the model's chat template. Refused where that refuses them."""
    if lm.tokenizer.chat_template is None:
        raise Refused(400, f"{lm.name} has no chat template; ask /v1/completions")
    try:
        text = render(lm.tokenizer, [message.plain() for message in body.messages], extra=body.chat_template_kwargs)
    except ValueError as error:
        raise Refused(400, str(error)) from error
    return lm.tokenizer(text, add_special_tokens=False)["input_ids"]


def text_ids(lm: LM, body: CompletionBody) -> list[int]:
    """Token ids of the prompt. Refused for ids that are none."""
    if isinstance(body.prompt, str):
        return lm.tokenizer(body.prompt)["input_ids"]
    try:
        check_ids(lm, torch.tensor(body.prompt))
    except ValueError as error:
        raise Refused(400, str(error)) from error
    return body.prompt


def failure(status: int, sentence: str, param: str | None = None) -> JSONResponse:
    """An error as OpenAI's API has it."""
    return JSONResponse(_error(sentence, status, param), status)


def _error(sentence: str, status: int, param: str | None = None) -> dict:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": sentence, "type": kind, "param": param, "code": status}}


def _sentence(error: RequestValidationError) -> tuple[str, str]:
    """One sentence on the first thing that is wrong with a body, and the field."""
    errors = error.errors()  # of a union, those of every alternative: a sentence of ours says most
    first = next((one for one in errors if one["type"] == "value_error"), errors[0])
    field = ".".join(str(part) for part in first["loc"][1:]) or "the body"
    if first["type"] == "extra_forbidden":
        return f"{field} is not known here; leave it out", field
    return f"{field}: {first['msg'].removeprefix('Value error, ')}", field
