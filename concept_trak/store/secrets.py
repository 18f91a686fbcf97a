"""Credentials, which must not be written down: in a configuration, in an address, in a text for people."""

import os
import re
from collections.abc import Mapping
from typing import Any

from concept_trak import UserError

SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
SHORTEST_SECRET = 7  # characters
CREDENTIAL = re.compile(
    r"(^|[_.-])(passwords?|passwd|secrets?|token|credentials?|(access|api|private|account|storage|signing|encryption)_?key)($|[_.-])",
    re.I,
)
# The parameters that sign a URL: X-Amz-Signature, X-Amz-Security-Token, X-Goog-Credential, AWSAccessKeyId, sig, ...
SIGNATURE = re.compile(
    r"([?&;](?:sig|[\w.-]*(?:signature|token|credential|secret|password|passwd|key|keyid))=)[^&;\s'\"]+", re.I
)


def refuse_secrets(config: Any, key: str = "") -> None:
    """Check that a configuration can be written down.

    Args:
        config: nested plain values.
        key: the dotted name of this value.

    Raises:
        UserError: a key looks like a credential, or an address carries one. The message has no value.
    """
    if isinstance(config, Mapping):
        for name, value in config.items():
            dotted = f"{key}.{name}" if key else str(name)
            if CREDENTIAL.search(str(name)):
                raise UserError(
                    f"{dotted} looks like a credential, and the configuration is written beside the results. Put it"
                    " into the environment (AWS_SECRET_ACCESS_KEY, …) and leave the key out."
                )
            refuse_secrets(value, dotted)
    elif isinstance(config, (list, tuple)):
        for index, value in enumerate(config):
            refuse_secrets(value, f"{key}[{index}]")
    elif isinstance(config, str):
        refuse_credentials(key, config)


def refuse_credentials(key: str, value: str) -> None:
    """Check an address.

    Raises:
        UserError: it has `user:password@` or is signed. The message has the key and not the value.
    """
    if re.search(r"://[^/\s:@]+:(?!\d+/)\S*@", value):  # a number there is a port; secret keys may contain "/"
        raise UserError(
            f"{key} carries credentials (user:password@) in its address, which would be written beside the results."
            " Put them into the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, …) and leave them out here."
        )
    if "://" in value and SIGNATURE.search(value):
        raise UserError(
            f"{key} is a signed URL, and its signature would be written beside the results. Give the address without"
            " it (s3://bucket/prefix), and credentials in the environment (AWS_ACCESS_KEY_ID, …)."
        )


def without_secrets(error: BaseException) -> str:
    """The first line of an error's text, with its secrets redacted."""
    if str(error) in ("", "None") and error.__cause__ is not None:  # S3 answered with a code and no text
        error = error.__cause__
    return redacted((str(error).splitlines() or [""])[0][:300])


def redacted(text: str) -> str:
    """The text with `***` for credentials and signatures in URLs, and for the values of credential variables."""
    for name, value in os.environ.items():
        # A shorter one, as of a test server, is a part of many words; a path, as of a file with a token, is no secret.
        hidden = name in SECRET_VARIABLES or (CREDENTIAL.search(name) and not value.startswith(("/", "~", ".")))
        text = text.replace(value, "***") if hidden and len(value) >= SHORTEST_SECRET else text
    return SIGNATURE.sub(r"\1***", re.sub(r"//\S*@", "//***@", text))
