"""Credentials are refused where they would be written down, and redacted where text is shown."""

import pytest

from concept_trak import UserError
from concept_trak.store.secrets import redacted, refuse_secrets

SIGNED = [
    "https://host/a.parquet?X-Amz-Algorithm=AWS4&X-Amz-Credential=AKIA%2Fx&X-Amz-Signature=hunter2",
    "https://host/a.parquet?AWSAccessKeyId=hunter2&Expires=1",
    "https://host/a.parquet?sv=2024&se=2026-01-01&sig=hunter2%3D",
    "https://host/a.parquet?Expires=1&Key-Pair-Id=K2&Signature=hunter2",
    "https://host/a.parquet?X-Goog-Signature=hunter2",
    "https://host/a.parquet?access_token=hunter2",
]


@pytest.mark.parametrize("url", [*SIGNED, "s3://key:hunter2@bucket/x", "s3://key:hun/ter2@bucket/x"])
def test_an_address_with_a_secret_is_refused_and_not_repeated(url):
    with pytest.raises(UserError, match=r"^data\.uri\[0\] ") as raised:
        refuse_secrets({"data": {"uri": [url]}})
    assert "hunter2" not in str(raised.value)
    assert "ter2" not in str(raised.value)


@pytest.mark.parametrize(
    "value",
    [
        "s3://bucket/prefix", "https://host/a.parquet?design=1&keyword=x", "https://host:8080/a", "hf://datasets/a/b@main/x",
        "is this a key=value or a token=x?", "why? token=none",
    ],
)  # fmt: skip
def test_other_values_are_let_through(value):
    refuse_secrets({"data": {"uri": value}})


@pytest.mark.parametrize("url", SIGNED)
def test_a_signature_is_redacted_and_the_address_stays(url):
    text = redacted(f"cannot read '{url}', nor {url} again")
    assert "hunter2" not in text
    assert text.count("https://host/a.parquet?") == 2
    assert text.endswith(" again")


def test_credentials_and_the_values_of_variables_are_redacted(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    assert redacted("s3://key:pass/word@bucket: hunter2 is wrong") == "s3://***@bucket: *** is wrong"
    assert redacted("a line\nwith no secret? none") == "a line\nwith no secret? none"


@pytest.mark.parametrize("name", ["HF_TOKEN", "RAY_AUTH_TOKEN", "STORAGE_ACCOUNT_KEY", "WANDB_API_KEY", "PASSWORD"])
def test_the_value_of_any_variable_that_names_a_secret_is_redacted(monkeypatch, name):
    monkeypatch.setenv(name, "hunter2-and-more")
    assert redacted("401 for hunter2-and-more") == "401 for ***"
    monkeypatch.setenv(f"{name}_PATH", "/run/secrets/x")
    assert redacted("/run/secrets/x is not there") == "/run/secrets/x is not there"
