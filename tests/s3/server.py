"""The S3 server of these tests: Ceph where `make s3` has installed it, else moto, of which less can be asked."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

SCRIPT = Path(__file__).resolve().parents[2] / "infra/s3/ceph.sh"
BINARIES = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "curl", "monmaptool", "radosgw", "radosgw-admin")
KEY, SECRET, BUCKET = "a-test-key", "a-secret-that-nothing-may-repeat", "audits"


class Ceph:
    """One gateway, one monitor, one disk. What it holds outlives its processes."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.port = folder, _free_port()
        self.start()

    def start(self) -> None:
        """Start what does not run, and wait until S3 answers."""
        self._run("start", self._folder, str(self.port))

    def power_cut(self) -> None:
        """Kill every process: nothing is flushed."""
        self._run("stop", self._folder, "-9")

    def kill_gateway(self) -> None:
        """Kill only what speaks S3; it is back a moment after `start`."""
        self._run("stop", self._folder, "-9", "rgw")

    def _run(self, *arguments: str | Path) -> None:
        keys = {"S3_KEY": KEY, "S3_SECRET": SECRET}
        ended = subprocess.run([SCRIPT, *arguments], env=os.environ | keys, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, f"ceph.sh {arguments[0]}: {ended.stderr}"


@dataclass(frozen=True)
class Server:
    """Where S3 answers, and Ceph itself if it is Ceph."""

    port: int
    ceph: Ceph | None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def real(self, check: str) -> Ceph:
        """Ceph, or the test is skipped; `check` says what moto cannot show."""
        if self.ceph is None:
            pytest.skip(f"not checked without a real S3 server, which `make s3` installs: {check}")
        return self.ceph


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with no buckets, started once."""
    if all(map(shutil.which, BINARIES)):
        folder = tmp_path_factory.mktemp("ceph")
        ceph = Ceph(folder)
        yield Server(ceph.port, ceph)
        ceph.power_cut()  # an orderly end takes five seconds, and nobody reads this disk again
        shutil.rmtree(folder, ignore_errors=True)  # what is killed ends a moment later
    else:
        moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        moto.start()
        yield Server(moto.get_host_and_port()[1], None)
        moto.stop()


@pytest.fixture(scope="package", autouse=True)
def environment(server: Server) -> Iterator[None]:
    """The environment of a user of this server and of no other, and the bucket."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_PROFILE", raising=False)
        for file in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(file, os.devnull)
        # Newer clients send checksums in a trailer, which Ceph and other servers of its age do not know.
        for when in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
            patch.setenv(when, "when_required")
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        client = boto3.Session().client("s3")
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield


@pytest.fixture
def address(request: pytest.FixtureRequest) -> str:
    """A prefix of the bucket that no other test uses."""
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').strip(']')}"


def _free_port() -> int:
    """A port that is free together with the next, which Ceph's monitor takes."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            try:
                second.bind(("127.0.0.1", first.getsockname()[1] + 1))
            except (OSError, OverflowError):
                continue
            return first.getsockname()[1]
