"""What each path answers, with a stand-in for the model; tests/jobs/test_ask.py compares with the real answers."""

import asyncio
import base64
import hashlib
import html
import io
import json
import re
import struct
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import pyarrow.parquet as pq
import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from concept_trak import UserError
from concept_trak.audit.layer_scores import JOINT
from serving.application import ANSWERING, application
from serving.question import Question
from tests.serving.stand_in import CAPTION, STRANGE, Stand, answering, picture

ROOT = Path(__file__).resolve().parents[2]
RED = {"prompt": "a red triangle", "without": "a triangle"}
PAGE = {"Accept": "text/html"}
TOKEN = "0123456789abcdef"


@pytest.fixture
def serve(tmp_path) -> Callable[..., None]:
    """Runs a conversation with a server of its own, whose links are kept in one folder of the test."""

    def run(talk: Callable[[Any], Awaitable[None]], questions: Any = None, most: int = 4, **more: Any) -> None:
        async def whole() -> None:
            app = application(answering(f"{tmp_path}/questions", questions, most), **more)
            async with TestClient(TestServer(app), cookie_jar=aiohttp.DummyCookieJar()) as client:
                await talk(client)

        asyncio.run(asyncio.wait_for(whole(), 30))

    return run


async def posted(client: Any, **question: Any) -> str:
    async with client.post("/questions", json=question) as response:
        assert response.status == 202, await response.text()
        return (await response.json())["id"]


async def ended(client: Any, key: str) -> dict[str, Any]:
    while (question := await (await client.get(f"/questions/{key}")).json())["state"] in ("queued", "running"):
        await asyncio.sleep(0.005)
    return question


def test_a_question_is_answered_and_an_equal_one_has_its_id(serve):
    questions = Stand()

    async def talk(client: Any) -> None:
        key = await posted(client, **RED)
        done = await ended(client, key)
        assert (done["state"], done["question"]["prompt"]) == ("done", "a red triangle")
        rows = done["result"]["rows"]
        assert [row["method"] for row in rows] == 4 * ["caption_trak"] + 4 * ["das"]
        assert {row["score"] for row in rows} == {0.5, None}, "JSON has no NaN"
        assert done["result"]["seconds"] == {"model": 0.5, "query": 1.0}
        same = await posted(client, **RED, method=["das", "caption_trak"], seed=0)
        assert same == key
        other = await posted(client, **RED, seed=1)
        assert other != key
        await ended(client, other)
        async with client.get(f"/questions/{key}.parquet") as response:
            assert response.content_type == "application/vnd.apache.parquet"
            table = pq.read_table(io.BytesIO(await response.read()))
        assert table["sample_id"].to_pylist()[0] == STRANGE

    serve(talk, questions)
    assert [concept.seed for concept in questions.asked] == [0, 1], "an equal question was computed again"
    assert (questions.asked[0].prompt, questions.asked[0].without_prompt) == ("a red triangle", "a triangle")


def test_links_are_permanent_and_a_question_that_was_left_is_answered_by_the_next_server(serve, tmp_path):
    left = answering(f"{tmp_path}/questions")
    key = left.archive.keep_question(Question(prompt="left").by(("caption_trak", "das")))
    again, keys = Stand(), [key]

    async def first(client: Any) -> None:
        keys.append(await posted(client, **RED))
        await ended(client, keys[1])

    async def second(client: Any) -> None:
        assert (await ended(client, keys[1]))["state"] == "done"
        assert again.asked == [], "an answer that is kept was computed again"
        assert (await ended(client, key))["state"] == "done"

    serve(first)
    serve(second, again)
    assert [concept.prompt for concept in again.asked] == ["left"]


def test_the_page_asks_waits_and_shows(serve):
    questions = Stand(wait=True)

    async def talk(client: Any) -> None:
        form = await (await client.get("/")).text()
        assert len(labels := re.findall(r'<label for="(\w+)"', form)) == 7
        assert set(labels) == set(re.findall(r'<input id="(\w+)"', form)), "a field has no label"
        assert "Keep" not in form, "no picture is asked about"
        fields = {
            "prompt": "a red triangle",
            "minus": "red",
            "without": "",
            "method": "das",
            "samples": "2",
            "top": "3",
        }
        async with client.post("/answers", data=fields, allow_redirects=False) as response:
            assert response.status == 303
            link = response.headers["Location"]
        await asyncio.to_thread(questions.begun.wait, 20)
        waiting = await (await client.get(link)).text()
        assert "Step 2 of 5" in waiting
        assert "<title>Computing: a red triangle" in waiting
        assert 'value="a red triangle"' in waiting
        questions.go.set()
        await ended(client, link.rpartition("/")[2])
        page = await (await client.get(link)).text()
        assert "what <q>a red triangle</q> has and <q>a triangle</q> does not" in page
        assert page.count("<h3") == 1, "one method was chosen"
        assert "a &lt;b&gt;red&lt;/b&gt; square" in page
        assert CAPTION not in page
        assert page.count("0.250 to 0.750") == page.count("</span>1 to 7</span>") == 1, "one interval is not known"
        assert "<b>Nothing &lt;stands&gt; out.</b>" in page
        assert "<script>" not in page, "an id is a script"
        (thumbnail,) = set(re.findall(r'src="(/samples/\.\.[^"]+)"', page))
        async with client.get(aiohttp.client.URL(thumbnail, encoded=True)) as response:
            assert (response.status, response.content_type) == (200, "image/png")
        assert (await client.get("/samples/unknown/thumbnail")).status == 404
        (groups,) = {html.unescape(value) for value in re.findall(r'data-groups="([^"]+)"', page)}
        assert json.loads(groups) == [["source", "0.parquet"], ["colour", "red"]]

    serve(talk, questions)
    assert (questions.asked[0].minus, questions.asked[0].samples) == ("red", 2)


def test_an_answer_says_through_which_layers_it_came_and_how_far_its_methods_agree(serve):
    """In JSON as its schema describes it, on the page, and as a table."""

    async def talk(client: Any) -> None:
        key = await posted(client, **RED)
        result = (await ended(client, key))["result"]
        schemas = (await (await client.get("/openapi.json")).json())["components"]["schemas"]
        jsonschema.Draft202012Validator(schemas["Result"]).validate(result)
        split = {(row["method"], row["form"], row["sample_id"]) for row in result["rows"] if row["through"]}
        assert split == {("caption_trak", "damped", STRANGE), ("caption_trak", "damped", "b")}
        assert [own["parts"] for own in result["through"]] == [[{"part": "<mid>", "score": 0.25, "share": 0.5}]]
        (overlap,) = result["comparisons"]
        assert (overlap["correlation"], overlap["only_first"]) == (-0.25, [STRANGE])
        page = await (await client.get(f"/answers/{key}")).text()
        assert page.count('<span class="unseen">through </span>&lt;mid&gt; 50 %') == 2, "the best and the worst sample"
        assert "Through which layers: most through &lt;mid&gt;" in page
        assert "The ranks of 1,000 samples correlate to −0.250 (Spearman)." in page
        assert "caption_trak and das, plain share 1 of their first 2" in page
        assert "By caption_trak alone: 1 of its first 2" in page
        assert "How far the rankings agree</summary>" in page, "half of the samples are shared"
        async with client.get(f"/questions/{key}/joint.parquet") as response:
            assert pq.read_table(io.BytesIO(await response.read())).column_names == list(JOINT)

    serve(talk)


def test_an_answer_that_an_earlier_version_kept_is_shown_without_them(serve, tmp_path):
    async def talk(client: Any) -> None:
        key = await posted(client, **RED)
        await ended(client, key)
        (kept,) = tmp_path.glob(f"questions/**/{key}/answer.json")
        beside = json.loads(kept.read_text())
        kept.write_text(
            json.dumps({n: v for n, v in beside.items() if n not in ("comparisons", "through", "strongest")})
        )
        kept.with_name("joint.parquet").unlink()
        result = (await ended(client, key))["result"]
        assert (result["comparisons"], result["through"], len(result["rows"])) == ([], [], 8)
        page = await (await client.get(f"/answers/{key}")).text()
        assert "Nothing &lt;stands&gt; out." in page
        assert "Through which layers" not in page
        assert "Spearman" not in page
        assert (await client.get(f"/questions/{key}/joint.parquet")).status == 404

    serve(talk)


def test_originals_are_shown_and_asked_about(serve):
    questions = Stand()
    place, blue = ("/data/train/0.parquet", 3), picture("blue")

    async def talk(client: Any) -> None:
        key = await posted(client, **RED)
        await ended(client, key)
        page = await (await client.get(f"/answers/{key}")).text()
        (address,) = set(re.findall(rf'href="(/questions/{key}/originals/\.\.[^"]+)"', page))
        original = aiohttp.client.URL(address, encoded=True)
        async with client.get(original) as response:
            assert (response.status, response.content_type, await response.read()) == (200, "image/png", blue)
        form = {"like": STRANGE, "of": key, "method": "caption_trak"}
        async with client.post("/answers", data=form, allow_redirects=False) as response:
            similar = await ended(client, response.headers["Location"][-20:])
        assert (similar["state"], similar["question"]["examples"]) == ("done", [hashlib.sha256(blue).hexdigest()])
        for wrong in ({"like": "unknown", "of": key}, {"like": STRANGE, "of": "0" * 20}, {"like": STRANGE}):
            assert (await client.post("/answers", data=wrong)).status == 422
        for path in (f"/questions/{key}/originals/unknown", f"/questions/{'0' * 20}/originals/b"):
            assert (await client.get(path)).status == 404
        for data, status in (
            (b"<svg onload=alert(1)>", 422),
            (picture(side=101), 422),
            (None, 404),
            (OSError("s3"), 503),
        ):
            questions.originals[place] = data
            assert (await client.get(original)).status == status, data
        questions.originals[place] = picture(kind="TIFF")
        async with client.get(original) as response:
            assert response.headers["Content-Disposition"] == "attachment", "no browser shows a TIFF"

    serve(talk, questions)


def test_samples_without_a_picture_are_named_in_its_place(serve):
    """Of a data set of latents: an address of a picture would be a broken image, and *Similar* would be refused."""
    questions = Stand()
    questions.unpictured = frozenset({STRANGE})

    async def talk(client: Any) -> None:
        key = await posted(client, **RED)
        await ended(client, key)
        page = await (await client.get(f"/answers/{key}")).text()
        blanks = re.findall(r'<div class="blank" title="([^"]+)">', page)
        assert {html.unescape(name) for name in blanks} == {STRANGE}
        assert set(re.findall(r'src="(/samples/[^"]+)"', page)) == {"/samples/b/thumbnail"}
        assert set(re.findall(r'href="(/questions/[^"]+/originals/[^"]+)"', page)) == {f"/questions/{key}/originals/b"}
        assert set(re.findall(r'name="like" value="([^"]+)"', page)) == {"b"}

    serve(talk, questions)


def test_two_answers_side_by_side(serve):
    questions = Stand()

    async def talk(client: Any) -> None:
        first = await posted(client, **RED)
        await ended(client, first)
        page = await (await client.get(f"/answers/{first}")).text()
        assert page.count('class="side"') == page.count(f'name="beside" value="{first}"') == 1
        questions.go.clear()
        fields = {"prompt": "a blue <triangle>", "beside": first}
        async with client.post("/answers", data=fields, allow_redirects=False) as response:
            link = response.headers["Location"]
        assert link.endswith(f"?beside={first}")
        waiting = await (await client.get(link)).text()
        assert waiting.count('id="waiting"') == waiting.count('class="side"') == 1
        questions.go.set()
        second = link.partition("?")[0][-20:]
        await ended(client, second)
        page = await (await client.get(link)).text()
        assert page.index(f"/questions/{second}.parquet") < page.index(f"/questions/{first}.parquet")
        assert "<q>a blue &lt;triangle&gt;</q>" in page
        assert page.count('class="side"') == 2
        ids = re.findall(r' id="([^"]+)"', page)
        assert len(ids) == len(set(ids)), "an id stands twice"
        assert set(re.findall(r' (?:form|aria-labelledby|for)="([^"]+)"', page)) <= set(ids)
        assert page.count(f'name="beside" value="{second}" checked') == 1
        alone = await (await client.get(f"/answers/{first}?beside={first}")).text()
        assert alone.count('class="side"') == 1
        for wrong in ("0" * 20, "../..", ""):
            assert (await client.get(f"/answers/{first}", params={"beside": wrong})).status == 404
        for chosen in (f"http://localhost/answers/{second}?beside={first}", f" a blue triangle · {second} "):
            async with client.get(f"/answers/{first}", params={"beside": chosen}, allow_redirects=False) as response:
                assert (response.status, response.headers["Location"]) == (303, f"/answers/{first}?beside={second}")
        assert f'action="/answers/{first}" method="get"' in alone
        assert 'data-words="a red triangle, not a triangle"' in alone

    serve(talk, questions)


def test_pictures_are_decoded_first_and_then_asked_about(serve):
    questions = Stand()

    async def talk(client: Any) -> None:
        sent = await (await client.post("/pictures", data=picture("green", 50))).json()
        key = await posted(client, **RED, image=sent["id"])
        assert (await ended(client, key))["state"] == "done"
        page = await (await client.get(f"/answers/{key}")).text()
        assert page.count("Keep the picture") == page.count(f'name="image" value="{sent["id"]}"') == 1
        form = aiohttp.FormData({"prompt": ""})
        form.add_field("picture", picture("green", 60), filename="a.png")
        async with client.post("/answers", data=form, allow_redirects=False) as response:
            assert response.status == 303, await response.text()
            assert (await ended(client, response.headers["Location"][-20:]))["question"]["examples"]
        for data, message in ((b"no picture", "no image format"), (picture("red", 101), "more than data.most_pixels")):
            async with client.post("/pictures", data=data) as response:
                assert response.status == 422
                assert message in (await response.json())["error"]
        async with client.post("/questions", json={**RED, "image": "0" * 64}) as response:
            assert "send it with `POST /pictures` first" in (await response.json())["error"]
        assert (await client.post("/pictures", data=b"0" * 20_001)).status == 413

    serve(talk, questions, most_bytes=20_000)
    assert [(c.scope, len(c.examples)) for c in questions.asked] == [("local", 0), ("global", 1)]


def bomb(side: int) -> bytes:
    """A PNG that states side x side pixels (ISO/IEC 15948, 5.3 and 11.2.2) and has a line of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(3 * side)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def test_bombs_are_refused_before_they_are_decoded(serve):
    async def talk(client: Any) -> None:
        async with client.post("/pictures", data=bomb(60_000)) as response:
            assert response.status == 422
            assert "has 60000 x 60000 pixels" in (await response.json())["error"]
        packed = zlib.compress(bytes(5_000_000))
        assert len(packed) < 10_000
        for path in ("/pictures", "/questions"):
            async with client.post(path, data=packed, headers={"Content-Encoding": "deflate"}) as response:
                assert response.status == 413

    serve(talk, Stand(), most_bytes=200_000)


@pytest.mark.soak
def test_a_picture_of_50_mb_is_refused(serve):
    async def talk(client: Any) -> None:
        for body, headers in (
            (zlib.compress(bytes(50_000_000)), {"Content-Encoding": "deflate"}),
            (bytes(50_000_000), {}),
        ):
            async with client.post("/pictures", data=io.BytesIO(body), headers=headers) as response:
                assert response.status == 413
        assert (await client.get("/health")).status == 200

    serve(talk)


def test_a_method_whose_features_are_all_zero_ranks_nothing_on_the_page(serve):
    questions = Stand()
    questions.unranked = frozenset({"das"})

    async def talk(client: Any) -> None:
        key = await posted(client, **RED)
        assert {row["method"] for row in (await ended(client, key))["result"]["rows"]} == {"caption_trak"}
        page = await (await client.get(f"/answers/{key}")).text()
        assert page.count("<article") == 2
        assert page.count("No image is ranked.") == 1
        assert page.index("<code>das</code></h3>") < page.index("No image is ranked.")

    serve(talk, questions)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[[", "the body is no JSON"),
        ("[" * 50_000, "the body is no JSON"),
        ("[]", "expected a JSON object"),
        ('{"promt": "a"}', "did you mean prompt?"),
        ('{"prompt": 3}', "prompt is no text"),
        ("{}", "give either prompt or labels"),
        (json.dumps({"prompt": "a" * 1001}), "prompt has 1001 characters; expected at most 1000"),
        ('{"prompt": "a", "top": 201}', "top=201; expected 1 to 200"),
        ('{"prompt": "a", "samples": 0}', "samples=0; expected 1 to 64"),
        ('{"prompt": "a", "method": ["trak"]}', "audit first has caption_trak, das"),
        ('{"prompt": "a", "image": "/etc/passwd"}', "is no id of a picture"),
        ('{"prompt": "a", "examples": ["../../x"]}', "is no id of a picture"),
    ],
)
def test_what_is_wrong_is_said_at_once(serve, body, message):
    async def talk(client: Any) -> None:
        async with client.post("/questions", data=body) as response:
            assert response.status == 422
            assert message in (await response.json())["error"]

    questions = Stand()
    serve(talk, questions)
    assert not questions.asked


def test_a_form_that_is_refused_keeps_its_words(serve):
    async def talk(client: Any) -> None:
        async with client.post("/answers", data={"prompt": "a cat", "top": "many"}, headers=PAGE) as response:
            page = await response.text()
            assert response.status == 422
            assert "expected whole numbers" in page
            assert 'value="a cat"' in page

    serve(talk)


def test_a_full_queue_says_when_to_come_again(serve):
    questions = Stand(wait=True)

    async def talk(client: Any) -> None:
        running = await posted(client, prompt="0")
        await asyncio.to_thread(questions.begun.wait, 20)
        waiting = [await posted(client, prompt=str(i)) for i in (1, 2)]
        states = [await (await client.get(f"/questions/{key}")).json() for key in (running, *waiting)]
        assert [(s["state"], s["step"], s["ahead"]) for s in states] == [
            ("running", 2, 0),
            ("queued", 0, 1),
            ("queued", 0, 2),
        ]
        for path, headers in (("/questions", {}), ("/pictures", {}), ("/answers", PAGE)):
            async with client.post(path, data="{}", headers=headers) as response:
                assert response.status == 429
                assert int(response.headers["Retry-After"]) >= 1
        assert (await client.get(f"/questions/{running}.parquet")).status == 409
        questions.go.set()
        assert [(await ended(client, key))["state"] for key in (running, *waiting)] == ["done"] * 3

    serve(talk, questions, most=2)
    assert [concept.prompt for concept in questions.asked] == ["0", "1", "2"]


def test_a_body_that_comes_after_its_refusal_is_read(serve):
    """A connection that was closed in between would be reset, and its sender might never see why."""
    questions, body = Stand(wait=True), b'{"prompt": "late"}'
    head = f"POST /questions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    async def talk(client: Any) -> None:
        await posted(client, prompt="0")
        await asyncio.to_thread(questions.begun.wait, 20)
        await posted(client, prompt="1")
        reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
        for _ in range(2):  # the second request would be read as the body of the first, if that were not read
            writer.write(head)
            refusal = await reader.readuntil(b"\r\n\r\n")
            assert refusal.startswith(b"HTTP/1.1 429 "), refusal
            await reader.readexactly(int(re.findall(rb"Content-Length: (\d+)", refusal)[0]))
            writer.write(body)
        writer.write(b"GET /health HTTP/1.0\r\n\r\n")
        assert (await reader.read()).endswith(b"ok\n")
        writer.close()
        questions.go.set()

    serve(talk, questions, most=1)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("the model takes labels"), "the model takes labels"),
        (OSError("s3: down"), "storage failed, ask again: s3: down"),
        (ValueError("a bug"), "the server has failed at this question; its log has the reason"),
    ],
)
def test_a_question_that_fails_says_why_and_may_be_asked_again(serve, error, message):
    questions = Stand()
    questions.fails.append(error)

    async def talk(client: Any) -> None:
        failed = await ended(client, key := await posted(client, **RED))
        assert (failed["state"], failed["error"]) == ("failed", message)
        assert message in await (await client.get(f"/answers/{key}")).text()
        assert (await ended(client, await posted(client, **RED)))["state"] == "done"

    serve(talk, questions)


def test_unknown_addresses_are_404(serve):
    async def talk(client: Any) -> None:
        for path in ("/questions/" + "0" * 20, "/answers/" + "0" * 20, "/questions/..%2f..%2fx", "/nowhere"):
            assert (await client.get(path)).status == 404
        assert (await (await client.get("/questions/" + "0" * 20)).json())["error"] == "no question has this address"

    serve(talk)


def test_without_the_token_nothing_is_said(serve):
    def basic(password: str) -> str:
        return f"Basic {base64.b64encode(f'anybody:{password}'.encode()).decode()}"

    async def talk(client: Any) -> None:
        wrong = ("", "Bearer", f"Bearer {TOKEN}0", f"Digest {TOKEN}", "Basic !", basic("x"), basic(""), "Bearer é")
        for path in ("/", "/questions/" + "0" * 20, "/script.js", "/openapi.json", "/nowhere"):
            for header in wrong:
                async with client.get(path, headers={"Authorization": header}) as response:
                    assert (response.status, await response.read()) == (401, b"")
                    assert response.headers["Server"] == "concept-trak"
        for header in (f"Bearer {TOKEN}", f"bearer {TOKEN}", basic(TOKEN)):
            assert (await client.get("/", headers={"Authorization": header, "Host": "audits.example"})).status == 200
        assert await (await client.get("/health")).text() == "ok\n"

    serve(talk, token=TOKEN)


def test_prometheus_reads_what_the_server_has_done(serve):
    questions = Stand()
    questions.fails.append(UserError("no"))

    async def talk(client: Any) -> None:
        await ended(client, await posted(client, **RED))
        key = await posted(client, **RED)
        await ended(client, key)
        assert (await client.get("/nowhere")).status == 404
        async with client.get("/metrics") as response:
            assert response.content_type == "text/plain"
            families = {f.name: f for f in text_string_to_metric_families(await response.text())}
        documented = re.findall(
            r"^\| `(concept_trak_\w+?)(?:_total)?` \|", (ROOT / "docs/serving.md").read_text(), re.M
        )
        own = {name for name in families if name.startswith("concept_trak_") and not name.endswith("_created")}
        assert own == set(documented), "docs/serving.md lists other metrics"
        ends = {s.labels["state"]: s.value for s in families["concept_trak_questions"].samples}
        assert ends == {"done": 1, "failed": 1}
        statuses = {s.labels["status"]: s.value for s in families["concept_trak_requests"].samples}
        assert statuses.pop("200") >= 2
        assert statuses == {"202": 2, "404": 1}
        gauges = {name: [(s.labels, s.value) for s in families[f"concept_trak_{name}"].samples]
                  for name in ("question_queue_depth", "questions_running", "audit_info")}  # fmt: skip
        assert gauges == {
            "question_queue_depth": [({}, 0)],
            "questions_running": [({}, 0)],
            "audit_info": [({"audit": "first"}, 1)],
        }
        (memory,) = families["process_resident_memory_bytes"].samples
        assert 1e6 < memory.value < 1e12

    serve(talk, questions)


def test_a_server_that_answers_no_more_is_not_healthy(serve):
    async def talk(client: Any) -> None:
        assert (await client.get("/health")).status == 200
        await asyncio.to_thread(client.app[ANSWERING].stop)
        async with client.get("/health") as response:
            assert response.status == 503
            assert "start the server again" in (await response.json())["error"]

    serve(talk)


def test_other_sites_cannot_ask_through_a_browser_on_this_machine(serve):
    async def talk(client: Any) -> None:
        own = f"127.0.0.1:{client.port}"
        for host, status in (("evil.example", 403), (f"127.0.0.1@evil.example:{client.port}", 403), ("", 403),
                             (f"localhost:{client.port}", 200), (f"[::1]:{client.port}", 200)):  # fmt: skip
            assert (await client.get("/", headers={"Host": host})).status == status, host
        for origin, status in (("https://evil.example", 403), ("null", 403), (f"http://{own}", 202)):
            async with client.post("/questions", json=RED, headers={"Origin": origin}) as response:
                assert response.status == status, origin
        policy = (await client.get("/")).headers["Content-Security-Policy"]
        assert "unsafe-eval" not in policy
        assert "script-src 'self';" in policy

    serve(talk)


def test_the_description_has_every_path_and_every_field(serve):
    async def talk(client: Any) -> None:
        described = await (await client.get("/openapi.json")).json()
        assert set(described["components"]["schemas"]["Question"]["properties"]) == set(Question.__dataclass_fields__)
        routes = {r.resource.canonical for r in client.app.router.routes() if r.resource is not None}
        pages = {"/", "/answers", "/answers/{key}", "/script.js", "/openapi.json"}
        assert set(described["paths"]) == routes - pages

    serve(talk)
