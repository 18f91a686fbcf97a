"""What the two roles may do at S3, asked of a server that checks policies: moto stands in for AWS's IAM.

It evaluates actions and resources, not the condition on prefixes, which is compared as text.
"""

import json
import urllib.request
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from concept_trak.store.manifest import GIVEN_UP
from concept_trak.store.store import Store
from tests.infra.manifests import ROOT

ROLES = {name: json.loads((ROOT / f"infra/s3/{name}.json").read_text()) for name in ("auditor", "janitor")}


def checked_from_now_on(server: str, unchecked: str) -> None:
    """How many more requests the server lets pass without looking who asks."""
    plain = {"Content-Type": "text/plain"}
    asked = urllib.request.Request(f"{server}/moto-api/reset-auth", unchecked.encode(), plain, method="POST")
    urllib.request.urlopen(asked).close()


@pytest.fixture(scope="module")
def keys() -> Iterator[dict[str, tuple[str, str]]]:
    """The keys of one user for each role, at a server with a bucket that holds some training data."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    server = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "root")
        patch.setenv("AWS_ENDPOINT_URL", server)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        storage, iam = boto3.Session().client("s3"), boto3.Session().client("iam")
        storage.create_bucket(Bucket="bucket")
        storage.put_object(Bucket="bucket", Key="train/0.parquet", Body=b"pictures")
        storage.put_object(Bucket="bucket", Key="results/features/a/parts/b.parquet", Body=b"a part")
        found = {name: user(iam, name, policy) for name, policy in ROLES.items()}
        checked_from_now_on(server, "0")
        yield found
        checked_from_now_on(server, "inf")
        storage.close()
        iam.close()
        moto.stop()


def user(iam, name: str, policy: dict) -> tuple[str, str]:
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


@pytest.fixture
def role(request, keys, monkeypatch) -> None:
    key, secret = keys[request.param]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)


@pytest.mark.parametrize("role", ["auditor"], indirect=True)
def test_who_audits_can_do_what_an_audit_does(role):
    store, data = Store("s3://bucket/results"), Store("s3://bucket/train")
    store.probe()  # creates, is refused a second create, and takes it back
    assert data.read("0.parquet") == b"pictures"
    assert data.names("") == ["0.parquet"]
    assert store.create("features/a/parts/c.parquet", b"another part")
    assert not store.create("features/a/parts/c.parquet", b"a late twin")
    store.replace("audits/week-1/progress.json", b"{}")
    assert store.names("features") == ["features/a/parts/b.parquet", "features/a/parts/c.parquet"]
    store.delete(f"audits/week-1/{GIVEN_UP}")  # whoever begins an audit again wants it


@pytest.mark.parametrize("role", ["auditor"], indirect=True)
def test_who_audits_can_neither_remove_results_nor_touch_the_data(role):
    store, data = Store("s3://bucket/results"), Store("s3://bucket/train")
    for forbidden in (
        lambda: store.delete("features/a/parts/b.parquet"),
        lambda: data.delete("0.parquet"),
        lambda: data.create("1.parquet", b"a forged picture"),
        lambda: Store("s3://bucket/elsewhere").create("x", b""),
    ):
        with pytest.raises(PermissionError):
            forbidden()
    assert store.read("features/a/parts/b.parquet") == b"a part"


@pytest.mark.parametrize("role", ["janitor"], indirect=True)
def test_who_cleans_up_removes_results_and_sees_no_data(role):
    store = Store("s3://bucket/results")
    assert store.create("features/a/parts/old.parquet", b"waste")
    store.delete("features/a/parts/old.parquet")
    assert "features/a/parts/old.parquet" not in store.names("features")
    with pytest.raises(PermissionError):
        Store("s3://bucket/train").read("0.parquet")


@pytest.mark.parametrize("policy", ROLES.values(), ids=ROLES)
def test_no_role_reaches_beyond_its_prefixes(policy):
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        assert not [action for action in statement["Action"] if "*" in action]
        if statement["Action"] == ["s3:ListBucket"]:
            prefixes = statement["Condition"]["StringLike"]["s3:prefix"]
            assert all(prefix.split("/")[0] in ("train", "results") for prefix in prefixes)
        else:
            assert all(name.startswith("arn:aws:s3:::bucket/") and name[-2:] != ":*" for name in statement["Resource"])
