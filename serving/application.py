"""The HTTP interface: what each path answers."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import quote

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from concept_trak import UserError
from concept_trak.data.decode import decode_image, image_format
from concept_trak.data.text import escaped
from concept_trak.store.secrets import redacted, without_secrets
from concept_trak.store.tables import read_parquet
from serving.answering import Answering, Progress, QueueFull
from serving.guard import guard, set_headers
from serving.openapi import openapi
from serving.page import SCRIPT, Pages, Side, sample_places
from serving.question import ID, Question, id_in, is_id, question_from
from serving.result import json_result

MOST_JSON = 100_000
"""Bytes of a question. Pictures are sent by themselves."""
MOST_PICTURE_PIXELS = 40_000_000
"""Of a picture that is sent; decoding takes up to 9 bytes for each."""
UPLOADS, PATIENCE = 4, 60.0
"""Bodies that are read at the same time, and seconds that each of them may take."""
TEXTS = web.RequestKey("texts", dict)
"""The fields of a form, which its page shows again when they are refused."""
ANSWERING = web.AppKey("answering", Answering)
"""The queue of an application."""
KEY = f"{{key:{ID}}}"
SHOWN = {kind: f"image/{kind}" for kind in ("jpeg", "png", "gif", "webp", "avif", "bmp")} | {"mpo": "image/jpeg"}
"""The types of originals that browsers show; others are saved as files."""
WEEK = "private, max-age=604800, immutable"


def application(answering: Answering, token: str = "", most_bytes: int = 10_000_000) -> web.Application:
    """The whole server as an aiohttp application. The queue starts and stops with it.

    Args:
        answering: the queue of questions.
        token: what requests must have; empty on loopback.
        most_bytes: of the body of a request.
    """

    async def running(app: web.Application) -> AsyncIterator[None]:
        answering.start()
        yield
        await asyncio.to_thread(answering.stop)

    async def count(request: web.Request, response: web.StreamResponse) -> None:
        answering.meter.add_request(response.status)

    handlers = Handlers(answering)
    app = web.Application(middlewares=[guard(token), handlers.errors], client_max_size=most_bytes)
    app.on_response_prepare.append(set_headers)
    app.on_response_prepare.append(count)
    app.cleanup_ctx.append(running)
    app[ANSWERING] = answering
    app.add_routes(routes(handlers))
    return app


def routes(handlers: "Handlers") -> list[web.RouteDef]:
    """The paths of the server."""
    return [
        web.get("/", handlers.form),
        web.post("/answers", handlers.post_form),
        web.get(f"/answers/{KEY}", handlers.page),
        web.get("/script.js", handlers.script),
        web.post("/pictures", handlers.post_picture),
        web.post("/questions", handlers.post_question),
        web.get(f"/questions/{KEY}", handlers.question),
        web.get(f"/questions/{KEY}.parquet", handlers.table),
        web.get(f"/questions/{KEY}/joint.parquet", handlers.layers),
        web.get(f"/questions/{KEY}/originals/{{sample:.+}}", handlers.original),
        web.get("/samples/{sample:.+}/thumbnail", handlers.thumbnail),
        web.get("/openapi.json", handlers.openapi),
        web.get("/health", handlers.health),
        web.get("/metrics", handlers.metrics),
    ]


class Handlers:
    """What each path answers. Storage and pictures are read in threads, so that no request waits for another's."""

    def __init__(self, answering: Answering) -> None:
        self.answering, self.archive, self.pages = answering, answering.archive, Pages(answering.questions)
        self._uploads, self._decoding = asyncio.Semaphore(UPLOADS), asyncio.Lock()

    @web.middleware
    async def errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Errors as JSON for programs, and as a page for browsers."""
        try:
            return await handler(request)
        except QueueFull as error:
            return self._refusal(request, 429, str(error), {"Retry-After": str(error.seconds)})
        except UserError as error:
            return self._refusal(request, 422, str(error))
        except TimeoutError:
            return self._refusal(request, 408, f"the request took more than {PATIENCE:.0f} s")
        except web.HTTPRequestEntityTooLarge as error:
            return self._refusal(request, 413, error.text or "the request is too large")
        except ConnectionError:
            raise  # the client is gone
        except OSError as error:
            message = without_secrets(error) or type(error).__name__
            return self._refusal(request, 503, f"storage failed, ask again: {escaped(redacted(message))}")
        except web.HTTPException as error:
            if error.status < 400:
                raise
            return self._refusal(request, error.status, error.reason)

    def _refusal(
        self, request: web.Request, status: int, message: str, headers: dict[str, str] | None = None
    ) -> web.Response:
        if "text/html" in request.headers.get("Accept", ""):
            text = self.pages.form(request.get(TEXTS), message)
            return web.Response(status=status, text=text, content_type="text/html", headers=headers)
        return web.json_response({"error": message}, status=status, headers=headers)

    async def health(self, request: web.Request) -> web.Response:
        if not self.answering.is_alive:
            raise web.HTTPServiceUnavailable(reason="no question is answered any more; start the server again")
        return web.Response(text="ok\n")

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.answering.meter.text(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def openapi(self, request: web.Request) -> web.Response:
        return web.json_response(openapi())

    async def script(self, request: web.Request) -> web.Response:
        return web.Response(text=SCRIPT, content_type="text/javascript")

    async def form(self, request: web.Request) -> web.Response:
        return web.Response(text=self.pages.form(), content_type="text/html")

    async def post_form(self, request: web.Request) -> web.Response:
        """A question from the page, then the page of its answer."""
        self.answering.require_space()
        fields = await self._patiently(request.post())
        several = {name: [str(value) for value in fields.getall(name, [])] for name in ("method", "examples")}
        texts = {name: value for name, value in fields.items() if isinstance(value, str) and name not in several}
        request[TEXTS] = texts | several
        sample, answer, beside = (texts.pop(name, "") for name in ("like", "of", "beside"))
        question = question_from(_whole_numbers(texts) | several)
        if sample:
            question = replace(question, examples=(await self._picture_of(answer, sample),))
        file = fields.get("picture")
        if isinstance(file, web.FileField) and (data := await asyncio.to_thread(file.file.read)):
            picture = await self._keep_picture(data)
            about = (
                {"image": picture}
                if question.prompt or question.labels
                else {"examples": (*question.examples, picture)}
            )
            question = question_from(asdict(question) | about)
        key = await asyncio.to_thread(self.answering.submit, question)
        raise web.HTTPSeeOther(f"/answers/{key}" + (f"?beside={quote(beside)}" if beside else ""))

    async def _picture_of(self, answer: str, sample: str) -> str:
        """The id of the picture of a sample that an answer shows."""
        if (original := await self._original(answer, sample)) is None:
            raise UserError("this answer shows no picture of this sample; choose one that it shows")
        return await self._keep_picture(original)

    async def post_picture(self, request: web.Request) -> web.Response:
        self.answering.require_space()
        key = await self._keep_picture(await self._patiently(request.read()))
        return web.json_response({"id": key}, status=201)

    async def post_question(self, request: web.Request) -> web.Response:
        self.answering.require_space()
        body = await self._patiently(request.read())
        if len(body) > MOST_JSON:
            raise web.HTTPRequestEntityTooLarge(MOST_JSON, len(body))
        try:
            values = json.loads(body)
        except (ValueError, RecursionError):
            raise UserError("the body is no JSON; GET /openapi.json describes it") from None
        key = await asyncio.to_thread(self.answering.submit, question_from(values))
        return web.json_response({"id": key, "url": f"/questions/{key}", "page": f"/answers/{key}"}, status=202)

    async def question(self, request: web.Request) -> web.Response:
        """The state of a question, and its answer once there is one."""
        key, question, progress = await self._known(request.match_info["key"])
        state = {"id": key, "question": asdict(question), **asdict(progress)}
        if progress.state == "done":
            state["result"] = json_result(*await asyncio.to_thread(self._answer, key))
        return web.json_response(state)

    async def table(self, request: web.Request) -> web.Response:
        return await self._parquet(request, self.archive.table, "")

    async def layers(self, request: web.Request) -> web.Response:
        return await self._parquet(request, self.archive.layers, "-joint")

    async def _parquet(self, request: web.Request, read: Callable[[str], bytes | None], which: str) -> web.Response:
        """A table of an answer."""
        key, _, progress = await self._known(request.match_info["key"])
        if progress.state != "done":
            raise web.HTTPConflict(reason=f"the question is {progress.state}")
        if (data := await asyncio.to_thread(read, key)) is None:
            raise web.HTTPNotFound(reason="the scores of this answer are not split: the features mix the layers")
        name = f'attachment; filename="{key}{which}.parquet"'
        kind = "application/vnd.apache.parquet"
        return web.Response(body=data, content_type=kind, headers={"Content-Disposition": name, "Cache-Control": WEEK})

    async def page(self, request: web.Request) -> web.Response:
        """The page of a question, with its progress or its answer, and with the answer of the one beside it."""
        own = request.match_info["key"]
        beside = request.query.get("beside", own)
        if (other := id_in(beside)) != beside:
            raise web.HTTPSeeOther(f"/answers/{own}?beside={other}")
        keys = dict.fromkeys((own, beside))
        sides = [await self._side(key) for key in keys]
        text = await asyncio.to_thread(self.pages.answer, sides)
        return web.Response(text=text, content_type="text/html")

    async def _side(self, key: str) -> Side:
        _, question, progress = await self._known(key)
        answer = await asyncio.to_thread(self._answer, key) if progress.state == "done" else None
        return Side(key, question, progress, answer)

    async def original(self, request: web.Request) -> web.Response:
        """A training image that an answer shows, as it lies in the data."""
        data = await self._original(request.match_info["key"], request.match_info["sample"])
        if data is None:
            raise web.HTTPNotFound(reason="this answer shows no picture of this sample")
        kind = image_format(data)
        headers = {"Cache-Control": WEEK} | ({} if kind in SHOWN else {"Content-Disposition": "attachment"})
        return web.Response(body=data, content_type=SHOWN.get(kind, "application/octet-stream"), headers=headers)

    async def _original(self, key: str, sample: str) -> bytes | None:
        """The file of a training image that an answer shows; None where there is none. It is a picture."""
        table = await asyncio.to_thread(self.archive.table, key) if is_id(key) else None
        places = sample_places(table) if table else {}
        if sample not in places:
            return None
        async with self._decoding:
            data = await asyncio.to_thread(self.answering.questions.original, *places[sample])
            if data is not None:
                await asyncio.to_thread(decode_image, data, *self._picture_limits)
        return data

    async def thumbnail(self, request: web.Request) -> web.Response:
        thumbnail = await asyncio.to_thread(self.archive.thumbnail, request.match_info["sample"])
        if thumbnail is None:
            raise web.HTTPNotFound(reason="no answer shows this sample")
        return web.Response(body=thumbnail[0], content_type=thumbnail[1], headers={"Cache-Control": WEEK})

    async def _known(self, key: str) -> tuple[str, Question, Progress]:
        """The id, the question and its progress; 404 for an id that nobody has."""
        question = await asyncio.to_thread(self.archive.question, key) if is_id(key) else None
        progress = await asyncio.to_thread(self.answering.progress, key) if question is not None else None
        if question is None or progress is None:
            raise web.HTTPNotFound(reason="no question has this address")
        return key, question, progress

    def _answer(self, key: str) -> tuple[dict[str, Any], Any]:
        beside, table = self.archive.answer(key), self.archive.table(key)
        assert beside is not None, "the answer is kept before the question is done"
        assert table is not None, "the table is kept before what the page shows beside it"
        return beside, read_parquet(table)

    async def _patiently(self, reading: Any) -> Any:
        """A body, of which few are read at a time; its sender must not let the others wait for ever."""
        async with self._uploads, asyncio.timeout(PATIENCE):
            return await reading

    async def _keep_picture(self, data: bytes) -> str:
        async with self._decoding:
            return await asyncio.to_thread(self.archive.keep_picture, data, *self._picture_limits)

    @property
    def _picture_limits(self) -> tuple[str, int]:
        """How transparent pixels are filled, and the most pixels of a picture that is decoded."""
        config = self.answering.questions.config.data
        return config.transparency, min(config.most_pixels, MOST_PICTURE_PIXELS)


def _whole_numbers(texts: dict[str, str]) -> dict[str, Any]:
    """The fields of a form, where numbers are text, and a field that is empty is not given."""
    numbers = {name: texts[name] for name in ("samples", "seed", "top") if texts.get(name)}
    try:
        return {name: text for name, text in texts.items() if text} | {n: int(text) for n, text in numbers.items()}
    except ValueError:
        raise UserError(f"{' '.join(map(repr, numbers.values()))[:200]}: expected whole numbers") from None
