"""Encryption of the environment variables that a job carries through Ray's Jobs API.

Ray writes the environment of a job into its logs, shows it on its dashboard and returns it from its API. The submitter,
the driver and the workers all have the cluster's token. The key is derived from this token, and Ray's copies are
useless without it. A job starts with `python -m cluster.sealed COMMAND`; workers decrypt the variables themselves.
"""

import base64
import json
import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from cluster.executor import UserError

VARIABLE = "CONCEPT_TRAK_SEALED"


def seal(variables: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """One variable that contains all the others, encrypted.

    Raises:
        UserError: there is no token in the environment.
    """
    token = _token(environment)
    if not token:
        raise UserError(
            f"{', '.join(variables)}: variables travel encrypted with the cluster's token, because Ray writes the "
            "environment of a job into its logs, and there is no token here. Set RAY_AUTH_TOKEN to the cluster's, or "
            "set the variables on its nodes and take them out of env=[...]"
        )
    return {VARIABLE: _cipher(token).encrypt(json.dumps(dict(variables)).encode()).decode()}


def open_sealed(environment: MutableMapping[str, str] = os.environ) -> None:
    """Decrypt and set the variables that were sealed for this job, if there are any.

    Raises:
        UserError: they were sealed with another token.
    """
    if VARIABLE not in environment:
        return
    from cryptography.fernet import InvalidToken

    try:
        variables = json.loads(_cipher(_token(environment)).decrypt(environment[VARIABLE].encode()))
    except InvalidToken:
        raise UserError(
            "the variables of env=[...] were encrypted with a token that this node does not have: set RAY_AUTH_TOKEN "
            "on every node, and where the job is submitted, to the cluster's own"
        ) from None
    environment.update(variables)


def _token(environment: Mapping[str, str]) -> str:
    """The cluster's token, read from the same variables and file as Ray does; "" if there is none."""
    if token := environment.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray/auth_token")
    return path.read_text().strip() if path.is_file() else ""


def _cipher(token: str):
    from cryptography.fernet import Fernet
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    derived = HKDF(SHA256(), length=32, salt=None, info=b"concept-trak: environment of a job")
    return Fernet(base64.urlsafe_b64encode(derived.derive(token.encode())))


if __name__ == "__main__":
    open_sealed()
    os.execvp(sys.argv[1], sys.argv[1:])
