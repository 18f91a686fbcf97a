"""Storage that fails: lost answers, refusals, resets, and a server that dies under the writers."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from concept_trak.store.store import Store
from tests.s3.proxy import Proxy
from tests.s3.server import Server

MEGABYTE = 1 << 20


def content(name: str, size: int = MEGABYTE) -> bytes:
    """Bytes that differ by name."""
    return (f"{name} ".encode() * (size // len(name) + 1))[:size]


def test_a_lost_answer_of_a_create_is_our_success(proxy: Proxy, address: str):
    proxy.at_put("/mine", fault="lost")
    assert Store(address).create("mine", b"mine"), "the retry met our own bytes: that is no lost race"
    assert proxy.faults == {"lost": 1}
    assert proxy.seen["PUT"] == 2, "the client did not try again: this proves nothing"
    assert Store(address).read("mine") == b"mine"


def test_a_lost_answer_of_a_lost_race_is_no_success(proxy: Proxy, address: str):
    proxy.at_put("/name", before=lambda: Store(address).create("name", b"theirs"), nth=1, fault="lost")
    assert not Store(address).create("name", b"ours")
    assert Store(address).read("name") == b"theirs"


def test_half_an_upload_is_no_object(proxy: Proxy, address: str):
    store, seen = Store(address), []
    proxy.at_put("/name", fault="half", after=lambda: seen.append(Store(address).size("name")))
    assert store.create("name", content("name"))
    assert seen == [None], "half of an upload stood under the name of the whole"
    assert store.read("name") == content("name")


def test_five_percent_of_faults_change_nothing(proxy: Proxy, address: str):
    proxy.trouble(0.05, seed=1)
    store, names = Store(address), [f"folder/{number:03d}" for number in range(60)]

    def life(name: str) -> tuple[bool, bool, bytes, int | None]:
        return store.create(name, name.encode()), store.create(name, b"other"), store.read(name), store.size(name)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(life, names)) == [(True, False, name.encode(), len(name)) for name in names]
        assert store.names("folder") == names
        list(pool.map(store.delete, names[::2]))
        assert store.names("folder") == names[1::2]
    assert min(proxy.faults[kind] for kind in ("slow_down", "reset", "lost")) > 0, f"too few faults: {proxy.faults}"


def test_a_power_cut_leaves_whole_objects_or_none(server: Server, address: str, monkeypatch: pytest.MonkeyPatch):
    ceph = server.real("a server that is killed: moto keeps everything in memory")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # so that clients give up while the server is down
    told: dict[str, str] = {}
    done = threading.Event()

    def write(worker: int) -> None:
        store, turn = Store(address), 0
        while not done.is_set() or turn < 3:
            name, turn = f"worker-{worker}-{turn:03d}", turn + 1
            try:
                told[name] = "created" if store.create(name, content(name)) else "refused"
            except OSError:
                told[name] = "failed"

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, worker) for worker in range(4)]
        _until(lambda: len(told) >= 8)
        ceph.power_cut()
        before = len(told)
        _until(lambda: "failed" in list(told.values()))
        ceph.start()
        after = len(told)
        _until(lambda: list(told.values())[after:].count("created") >= 4)
        done.set()
        wait(writers)
        for writer in writers:
            writer.result()
    assert before < len(told), "the writers had ended before the cut"
    assert "refused" not in told.values(), "each name has one writer: only its own bytes can stand there"
    _require_whole(Store(address), told)


def test_operations_go_on_when_the_gateway_comes_back(server: Server, address: str):
    ceph = server.real("a server that is killed: moto keeps everything in memory")
    store, names = Store(address), [f"name-{number:02d}" for number in range(24)]
    with ThreadPoolExecutor(4) as pool:
        creates = [pool.submit(store.create, name, content(name)) for name in names]
        _until(lambda: sum(create.done() for create in creates) >= 4)
        ceph.kill_gateway()
        time.sleep(1)
        ceph.start()
        assert all(create.result() for create in creates), "a second without a server is bridged by retries"
    _require_whole(store, dict.fromkeys(names, "created"))


def _require_whole(store: Store, told: dict[str, str]) -> None:
    """Every object stands with all its bytes, and every create that was told to have succeeded has one."""
    standing = store.names("")
    assert not {name for name, outcome in told.items() if outcome == "created"} - set(standing), "an object was lost"
    for name in standing:
        assert store.read(name) == content(name), f"{name} is not what its writer sent"


def _until(true) -> None:
    """Wait; the time-out of the test ends what never comes."""
    while not true():
        time.sleep(0.02)
