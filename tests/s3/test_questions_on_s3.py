"""The folder of a server's questions on S3: what one server keeps, another one shows."""

import asyncio
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from serving.application import application
from tests.serving.stand_in import STRANGE, Stand, answering, picture

pytestmark = pytest.mark.soak


def test_servers_share_a_folder_on_s3(address: str):
    first, second = Stand(), Stand()

    async def ask(client: Any) -> str:
        sent = await (await client.post("/pictures", data=picture("green"))).json()
        body = {"prompt": "a red triangle", "minus": "red", "image": sent["id"]}
        return (await (await client.post("/questions", json=body)).json())["id"]

    async def talk() -> None:
        async with TestClient(TestServer(application(answering(address, first)))) as client:
            key = await ask(client)
            while (await (await client.get(f"/questions/{key}")).json())["state"] in ("queued", "running"):
                await asyncio.sleep(0.05)
            table = await (await client.get(f"/questions/{key}.parquet")).read()
        async with TestClient(TestServer(application(answering(address, second)))) as client:
            assert await ask(client) == key
            assert (await (await client.get(f"/questions/{key}")).json())["state"] == "done"
            assert await (await client.get(f"/questions/{key}.parquet")).read() == table
            assert STRANGE not in await (await client.get(f"/answers/{key}")).text(), "an id is a script"
            assert (await client.get("/samples/b/thumbnail")).status == 200

    asyncio.run(asyncio.wait_for(talk(), 100))
    assert (len(first.asked), len(second.asked)) == (1, 0)
