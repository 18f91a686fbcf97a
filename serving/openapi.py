"""The description of the interface for programs, as OpenAPI 3.1."""

from typing import Any

from concept_trak import __version__
from concept_trak.audit.questions import STEPS
from serving.question import question_schema
from serving.result import RESULT

STATE = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "question": {"$ref": "#/components/schemas/Question"},
        "state": {"enum": ["queued", "running", "done", "failed"]},
        "step": {"type": "integer", "description": f"running: how many of these have begun: {', '.join(STEPS)}"},
        "ahead": {"type": "integer", "description": "queued: how many questions are answered before it"},
        "error": {"type": "string", "description": "failed: why"},
        "result": {"$ref": "#/components/schemas/Result"},
    },
}
ACCEPTED = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("id", "url", "page")},
    "required": ["id", "url", "page"],
}


REFUSALS = {
    "413": "the body is too large",
    "422": "the question or the picture cannot be used; `error` has the reason",
    "429": "too many questions wait; Retry-After has the seconds",
}


def openapi() -> dict[str, Any]:
    """The document of `GET /openapi.json`."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "concept-trak", "version": __version__, "description": "Questions to a finished audit."},
        "components": {
            "schemas": {"Question": question_schema(), "Result": RESULT},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
        "paths": {**_writes(), **_reads()},
    }


def _writes() -> dict[str, Any]:
    """The paths that take something."""
    question, picture = {"$ref": "#/components/schemas/Question"}, {"content": {"image/*": {}}, "required": True}
    return {
        "/questions": _post(
            "Ask. An equal question has the same id, and is not computed again.",
            _json(question) | {"required": True},
            {"202": _json(ACCEPTED, "the question's id")},
        ),
        "/pictures": _post(
            "Send a picture, which a question then names by its id.",
            picture,
            {"201": _json({"type": "object"}, "`id`, its sha256")},
        ),
    }


def _reads() -> dict[str, Any]:
    """The paths that change nothing."""
    key = _path("key", "the id of a question", "^[0-9a-f]{20}$")
    sample = _path("sample", "the id of a sample")
    return {
        "/questions/{key}": _get("How far a question is, and its answer.", key, _json(STATE, "its state")),
        "/questions/{key}.parquet": _get("The answer as a table.", key, {"description": "a Parquet file"}),
        "/questions/{key}/joint.parquet": _get(
            "The scores of the answer split over the layers, where the features keep them apart.",
            key,
            {"description": "a Parquet file"},
        ),
        "/questions/{key}/originals/{sample}": _get(
            "A training image that the answer shows, as it lies in the data.",
            key,
            {"description": "an image file"},
            sample,
        ),
        "/samples/{sample}/thumbnail": _get(
            "The thumbnail of a sample that an answer shows.", sample, {"description": "a PNG or JPEG file"}
        ),
        "/metrics": {
            "get": {"summary": "Numbers for Prometheus.", "responses": _described({"200": "its text format"})},
        },
        "/health": {
            "get": {
                "summary": "Whether the server answers questions.",
                "security": [],
                "responses": _described({"200": "ok", "503": "it must be started again"}),
            }
        },
    }


def _post(summary: str, body: dict[str, Any], responses: dict[str, Any]) -> dict[str, Any]:
    return {"post": {"summary": summary, "requestBody": body, "responses": {**responses, **_described(REFUSALS)}}}


def _path(name: str, description: str, pattern: str = "") -> dict[str, Any]:
    schema = {"type": "string", **({"pattern": pattern} if pattern else {})}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def _get(summary: str, parameter: dict[str, Any], response: dict[str, Any], *more: dict[str, Any]) -> dict[str, Any]:
    responses = {"200": response, "404": {"description": "there is none"}}
    return {"get": {"summary": summary, "parameters": [parameter, *more], "responses": responses}}


def _json(schema: dict[str, Any], description: str = "") -> dict[str, Any]:
    described = {"description": description} if description else {}
    return {"content": {"application/json": {"schema": schema}}, **described}


def _described(statuses: dict[str, str]) -> dict[str, Any]:
    return {status: {"description": text} for status, text in statuses.items()}
