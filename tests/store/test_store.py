"""Put-if-absent: one winner whatever the race, and any error decided by reading back."""

import errno
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from concept_trak import UserError
from concept_trak.store.store import Store
from tests.store import faults  # its schemes: lossy, dead, forgetful


@pytest.fixture
def eager_switches() -> Iterator[None]:
    """Threads change places after a microsecond instead of five milliseconds, so that races happen."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path):
    if request.param == "folder":
        yield Store(f"file://{tmp_path}/deep/store")
    else:
        yield Store(f"memory://{request.node.name}")
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]


def test_a_store_returns_what_was_put(store: Store):
    assert store.names("parts") == []
    assert store.size("parts/b") is None
    assert store.create("parts/b", b"0123456789")
    assert store.create("parts/a/deep", b"")
    assert store.read("parts/b") == b"0123456789"
    assert (store.read("parts/b", 2, 5), store.read("parts/b", 7), store.read("parts/b", end=2)) == (
        b"234",
        b"789",
        b"01",
    )
    assert (store.size("parts/b"), store.size("parts/a/deep"), store.size("parts")) == (10, 0, None)
    assert store.names("parts") == ["parts/a/deep", "parts/b"]
    store.replace("hint", b"1")
    store.replace("hint", b"2")
    assert store.read("hint") == b"2"
    assert store.names("") == ["hint", "parts/a/deep", "parts/b"]
    store.delete("parts/b")
    store.delete("parts/b")
    assert store.names("parts") == ["parts/a/deep"]
    for read in (store.read, store.read_buffer):
        with pytest.raises(FileNotFoundError):
            read("parts/b")


def test_a_buffer_has_the_bytes_of_its_file_and_keeps_them(store: Store):
    contents = {"empty": b"", "small": b"0123456789", "large": bytes(range(256)) * 20_000}
    for name, data in contents.items():
        store.create(name, data)
    buffers = {name: store.read_buffer(name) for name in contents}
    assert {name: buffer.to_pybytes() for name, buffer in buffers.items()} == contents


def test_a_buffer_of_a_file_that_is_shorter_than_it_was_has_what_is_left(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    store.create("short", b"0123456789")
    size = os.fstat

    def longer(descriptor: int) -> os.stat_result:
        status = size(descriptor)
        return os.stat_result((*status[:6], status.st_size + 7, *status[7:10]))

    monkeypatch.setattr(os, "fstat", longer)
    assert store.read_buffer("short").to_pybytes() == b"0123456789"


def test_the_first_create_stands(store: Store):
    assert store.create("name", b"first")
    assert store.create("name", b"first"), "a retry that meets its own bytes has succeeded"
    assert not store.create("name", b"second")
    assert store.read("name") == b"first"


def test_large_files_are_read_as_ranges_and_come_back_whole():
    store = Store("memory://large")
    data = bytes(range(256)) * (40 * 4096)  # 40 MiB: two whole ranges and a rest
    store.create("name", data)
    assert store.read("name") == data
    store.delete("name")


def test_probe_passes_and_leaves_nothing(store: Store):
    store.probe()
    assert store.names("") == []


def probe_and_write(case: tuple[str, int]) -> bool:
    store = Store(case[0])
    store.probe()
    return store.create(f"name-{case[1]}", b"data")


@pytest.mark.parametrize("there", ["", "a", "a/b/store", "a/b/store/audits"])
def test_a_probe_leaves_the_folders_as_they_were(tmp_path, there):
    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    before = set(tmp_path.rglob("*"))
    Store(f"{tmp_path}/a/b/store").probe()
    assert set(tmp_path.rglob("*")) == before


def test_a_probe_removes_no_folder_that_another_process_uses(tmp_path, monkeypatch):
    """The other one writes when the first one's probe is over and its folder is not removed yet."""
    ours, other = Store(f"{tmp_path}/a/store"), Store(f"{tmp_path}/a/store")
    rmdir = os.rmdir

    def late(folder):
        other.create("audits/x/plan.parquet", b"plan")
        rmdir(folder)

    monkeypatch.setattr(os, "rmdir", late)
    ours.probe()
    assert other.read("audits/x/plan.parquet") == b"plan"


def test_a_write_survives_the_removal_of_its_empty_folder(tmp_path, monkeypatch):
    """Another process's probe removes the folder between its making and the file's."""
    store, makedirs, left = Store(f"{tmp_path}/a/store"), os.makedirs, [3]

    def fragile(folder, exist_ok):
        makedirs(folder, exist_ok=exist_ok)
        if left[0]:
            left[0] -= 1
            os.rmdir(folder)

    monkeypatch.setattr(os, "makedirs", fragile)
    assert store.create("plan", b"first")
    assert left == [0]
    assert store.read("plan") == b"first"


def test_a_write_survives_the_removal_of_its_folder_while_it_is_made(tmp_path, monkeypatch):
    """`os.makedirs` raises if its folder was there for `mkdir` and is gone when it looks for it."""
    store, isdir, left = Store(f"{tmp_path}/store"), os.path.isdir, [2]

    def vanishing(folder):
        if left[0]:
            left[0] -= 1
            return False
        return isdir(folder)

    assert store.create("plan", b"first")
    monkeypatch.setattr(os.path, "isdir", vanishing)
    assert store.create("other", b"second")
    assert left == [0]
    assert store.read("other") == b"second"


def test_processes_that_probe_and_write_at_once_all_succeed(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(
            probe_and_write, [(f"{tmp_path}/a/{turn}", worker) for turn in range(100) for worker in (0, 1)], 1
        )
    assert len(list(tmp_path.glob("a/*/*"))) == 200


@pytest.mark.usefixtures("eager_switches")
def test_sixteen_threads_have_one_winner(store: Store):
    start = threading.Barrier(16)

    def race(worker: int) -> list[bool]:
        won = []
        for turn in range(10):
            start.wait()
            won.append(store.create(f"name-{turn}", f"worker {worker}".encode()))
        return won

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(race, range(16)))
    for turn in range(10):
        winners = [worker for worker in range(16) if outcomes[worker][turn]]
        assert len(winners) == 1, "put-if-absent must be one operation, not a look and a write"
        assert store.read(f"name-{turn}") == f"worker {winners[0]}".encode()
    assert len(store.names("")) == 10, "a loser left a temporary file that is listed as a result"


def test_processes_have_one_winner_and_leave_no_temporary_file(tmp_path):
    store = Store(str(tmp_path))
    tasks = [(store, f"name-{turn}", f"worker {worker}".encode()) for turn in range(40) for worker in range(4)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        won = pool.starmap(Store.create, tasks, chunksize=1)
    assert [sum(won[turn * 4 : turn * 4 + 4]) for turn in range(40)] == [1] * 40
    assert len(list(tmp_path.iterdir())) == 40


def test_what_a_killed_writer_leaves_is_no_file(tmp_path):
    script = (
        "import os, signal; from concept_trak.store.store import Store\n"
        "os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"Store({str(tmp_path)!r}).create('name', b'bytes')"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1, "the kill came before the bytes were written: it proves nothing"
    store = Store(str(tmp_path))
    assert store.names("") == []
    assert store.create("name", b"other")


def test_a_store_travels_as_its_address(store: Store):
    store.create("name", b"bytes")
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.uri, copy.scheme, copy.read("name")) == (store.uri, store.scheme, b"bytes")


faults.register()


def test_a_lost_answer_is_decided_by_reading_back():
    store = Store("lossy://place")
    assert store.create("name", b"mine"), "the bytes stand there: the create has succeeded whatever the client heard"
    assert not store.create("name", b"other")
    store.delete("name")


def test_an_error_with_nothing_written_is_raised_as_an_oserror_without_secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter3")
    with pytest.raises(OSError, match=r"create dead://place/name: RuntimeError: no route to //\*\*\*@host for \*\*\*$"):
        Store("dead://place").create("name", b"mine")


def test_probe_refuses_a_store_that_overwrites():
    store = Store("forgetful://place")
    with pytest.raises(ValueError, match=r"a second create .* overwrote the first\. Expected .* Use a store with"):
        store.probe()
    assert store.names("") == []


def test_probe_turns_failures_into_one_message(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot be used: .* Expected a folder, or nothing"):
        Store(f"{tmp_path}/file/store").probe()
    with pytest.raises(ValueError, match=r"could not create dead://.* Expected storage that answers"):
        Store("dead://place").probe()
    with pytest.raises(ValueError, match=r"nosuch://place: .*Expected file, s3, memory or another scheme"):
        Store("nosuch://place").probe()


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("results", "relative path.*absolute"),
        ("file://results", "relative path.*absolute"),
        ("s3://", "names no place"),
        ("s3://key:hunter2@bucket/x", "store carries credentials.*environment"),
        ("s3://key:hunter2/with/slashes@bucket/x", "store carries credentials.*environment"),
    ],
)
def test_addresses_that_are_refused(uri: str, says: str):
    with pytest.raises(ValueError, match=says) as error:
        Store(uri)
    assert "hunter2" not in str(error.value)


def test_another_file_under_a_name_has_another_version(store: Store):
    assert store.versions("parts") == {}
    for name in ("parts/a", "parts/deep/b"):
        store.create(name, name.encode())
    first = store.versions("parts")
    assert list(first) == store.names("parts")
    assert all(first.values())
    assert store.versions("parts") == first
    store.delete("parts/a")
    store.create("parts/a", b"parts/a")
    again = store.versions("parts")
    assert again["parts/a"] != first["parts/a"], "of the same bytes, but another file"
    assert again["parts/deep/b"] == first["parts/deep/b"]


def test_children_are_only_what_is_directly_in_a_folder(store: Store):
    for name in ("audits/a/plan", "audits/a/deep/er", "audits/b/plan", "audits/latest.json"):
        store.create(name, b"")
    assert store.children("audits") == ["a/", "b/", "latest.json"]
    assert store.children("audits/a") == ["deep/", "plan"]
    assert store.children("nothing") == []


def test_names_outside_the_store_are_our_mistake(store: Store):
    for name in ("", "/abs", "../up", "a/../../b"):
        with pytest.raises(AssertionError, match="not a name inside the store"):
            store.create(name, b"")


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_hard_links_is_named_so(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(UserError, match="Expected a file system with hard links, as exclusive create needs"):
        Store(str(tmp_path / "store")).probe()
