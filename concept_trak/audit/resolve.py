"""Resolves the configuration of an audit to absolute addresses and a name, before anything is opened."""

from dataclasses import replace
from datetime import UTC, datetime
from itertools import product

from concept_trak import UserError
from concept_trak.attribution.query import require_query_direction
from concept_trak.config import AuditConfig, ModelConfig, absolute, plain_values
from concept_trak.data.files import canonical_uri
from concept_trak.models.location import is_hub_id
from concept_trak.store.secrets import refuse_secrets
from concept_trak.store.store import FOLDERS


def resolve(config: AuditConfig) -> AuditConfig:
    """The configuration with absolute addresses and a name, checked to be complete and without secrets.

    Raises:
        UserError: a key is not set or looks like a credential, or a concept does not fit a method.
    """
    config = config.complete()
    refuse_secrets(plain_values(config))  # first, so that no message and no file shows one
    for concept, method in product(config.concepts, config.methods.values()):
        require_query_direction(method, concept)
    now = datetime.now(UTC)
    return replace(
        config,
        audit=tick(config.audit, now) or now.strftime("%Y%m%dT%H%M%SZ"),
        store=absolute(config.store),
        model=absolute_model(config.model),
        data=replace(config.data, uri=canonical_uri(config.data.uri)),
    )


def require_apart(store: str, model: ModelConfig, data: str = "") -> None:
    """Check that the store is not among the data or the model's files, and that none of them is in a folder of results.

    Addresses are compared without `file://` and slashes at their ends, and links are followed. Data or a model beside
    the store's own folders are no problem: the store lists, reads and removes nothing outside of those.

    Args:
        store, model: their addresses.
        data: the address of the data; "" if there are none.

    Raises:
        UserError: an address is inside another one, so that results would be read as data or removed with results.
    """
    weights = [("model.weights", model.weights), ("model.lora", model.lora)]
    named = [("data.uri", data), ("model.path", model.path), *weights]
    named += [("model.embeddings", address) for address in model.embeddings]
    for key, address in named:
        if not address or (key != "data.uri" and is_hub_id(address)):
            continue
        if _is_inside(store, address):
            why = "where results would be read as data" if key == "data.uri" else "which has the model's files alone"
            raise UserError(
                f"store={store} is in the folder of {key}={address}, {why}; put the store elsewhere"
                + ", or set data.uri to the folder of the samples alone" * (key == "data.uri")
            )
        if folder := next((name for name in FOLDERS if _is_inside(address, f"{store.rstrip('/')}/{name}")), ""):
            raise UserError(
                f"{key}={address} is in {folder}/ of store={store}, where files that no audit needs are removed; move "
                "one of the two"
            )


def _is_inside(address: str, folder: str) -> bool:
    """Whether an address is a folder, or is below it, however the two are written."""
    inner, outer = (canonical_uri(text).replace("s3a://", "s3://").rstrip("/") for text in (address, folder))
    return f"{inner}/".startswith(f"{outer}/")


# By cron's word for a schedule, the name of one of its periods, for `strftime`. Names sort by time.
TICKS = {"@hourly": "%Y-%m-%dT%H", "@daily": "%Y-%m-%d", "@weekly": "%G-W%V", "@monthly": "%Y-%m"}


def tick(audit: str, now: datetime) -> str:
    """The name of an audit: for a schedule such as `@weekly`, the period of `now` (UTC), such as 2026-W48.

    Any other name is returned unchanged. All runs of one period are one audit.

    Raises:
        UserError: the schedule is not in `TICKS`.
    """
    if not audit.startswith("@"):
        return audit
    if audit not in TICKS:
        raise UserError(f"audit={audit!r} is not a schedule; expected one of: {', '.join(TICKS)}, or a name")
    return now.strftime(TICKS[audit])


def absolute_model(model: ModelConfig) -> ModelConfig:
    """The model's settings with absolute paths; Hub ids and URLs are unchanged."""

    def absolute_or_hub(address: str) -> str:
        return address if not address or is_hub_id(address) else absolute(address)

    return replace(
        model,
        path=absolute_or_hub(model.path),
        weights=absolute_or_hub(model.weights),
        lora=absolute_or_hub(model.lora),
        embeddings=tuple(map(absolute_or_hub, model.embeddings)),
    )
