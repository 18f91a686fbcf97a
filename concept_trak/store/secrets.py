"""What must not be written down: credentials in a configuration, in an address, in the text of an error."""

import os
import re
from collections.abc import Mapping
from typing import Any

SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
CREDENTIAL = re.compile(
    r"(^|[_.-])(passwords?|passwd|secrets?|token|credentials?|(access|api|private)_?key)($|[_.-])", re.I
)


def refuse_secrets(config: Any, key: str = "") -> None:
    """ValueError for a key that looks like a credential, or an address with user:password@; no value is printed."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            dotted = f"{key}.{name}" if key else str(name)
            if CREDENTIAL.search(str(name)):
                raise ValueError(
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
    """ValueError if an address carries `user:password@`; the message names the key and never the value."""
    if re.search(r"://[^/\s:@]+:(?!\d+/)\S*@", value):  # a number there is a port; secret keys may contain "/"
        raise ValueError(
            f"{key} carries credentials (user:password@) in its address, which would be written beside the results."
            " Put them into the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, …) and leave them out here."
        )


def without_secrets(error: BaseException) -> str:
    """The first line of an error's text, with credentials in URLs and values of credential variables blanked."""
    if str(error) in ("", "None") and error.__cause__ is not None:  # S3 answered with a code and no words
        error = error.__cause__
    text = (str(error).splitlines() or [""])[0][:300]
    for value in filter(None, map(os.environ.get, SECRET_VARIABLES)):
        text = text.replace(value, "***")
    return re.sub(r"//\S*@", "//***@", text)
