"""A concept's query on storage: its mean feature phi, and (K + lambda I)^-1 phi. k projected dimensions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from concept_trak import UserError
from concept_trak.store.manifest import Audit, query_file, write_table
from concept_trak.store.part import Damaged
from concept_trak.store.tables import from_rows, read_parquet

SAME_LAMBDA = 5e-3
"""Relative tolerance of lambda, a multiple of tr(K), which rounding changes if a part is computed again."""
COLUMNS = {"concept": "string", "method": "string", "phi": "vector", "solved": "vector", "residual": "float64",
           "lambda": "float64", "spread_solved": "float64", "spread_phi": "float64", "groups": "vector"}  # fmt: skip


@dataclass(frozen=True)
class StoredQuery:
    """The content of `<method>/queries/<concept>.parquet`.

    Attributes:
        phi: the mean feature of the concept's own samples; plain scores are products with it.
        solved: (K + lambda I)^-1 phi; damped scores are products with it.
        residual: of the solve, relative to the norm of phi.
        lam: the lambda of the solve.
        spread_solved, spread_phi: the root mean square over all samples of the damped and of the plain scores.
        groups: (K + lambda I)^-1 phi of each of g groups of the concept's samples; None if they were not divided.
    """

    concept: str
    method: str
    phi: Float32[np.ndarray, " k"]
    solved: Float32[np.ndarray, " k"]
    residual: float
    lam: float
    spread_solved: float
    spread_phi: float
    groups: Float32[np.ndarray, "g k"] | None = None

    def vector(self, form: str) -> Float32[np.ndarray, " k"]:
        """The vector that a sample's feature is multiplied by, for `damped` or `plain` scores."""
        return {"damped": self.solved, "plain": self.phi}[form]


def write_query(audit: Audit, query: StoredQuery) -> bool:
    """Put the query if absent; False if another driver's exists, which is kept."""
    row = {name: getattr(query, "lam" if name == "lambda" else name) for name in COLUMNS}
    row["groups"] = None if query.groups is None else query.groups.reshape(-1)
    return write_table(audit, query_file(query.method, query.concept), from_rows(COLUMNS, [row]))


def read_query(audit: Audit, method: str, concept: str) -> StoredQuery:
    """The query of one concept for one method.

    Raises:
        FileNotFoundError: the audit has not solved it yet.
        Damaged: the file cannot be read, is another query's, or has numbers that are not finite.
    """
    name = audit.name(query_file(method, concept))
    data = audit.store.read(name)
    try:
        (row,) = read_parquet(data).to_pylist()
        query = StoredQuery(
            concept=row["concept"],
            method=row["method"],
            phi=np.asarray(row["phi"], np.float32),
            solved=np.asarray(row["solved"], np.float32),
            residual=float(row["residual"]),
            lam=float(row["lambda"]),
            spread_solved=float(row["spread_solved"]),
            spread_phi=float(row["spread_phi"]),
            groups=_groups(row),
        )
        _require_sound(query, method, concept)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise Damaged(f"{audit.store.uri}/{name} is damaged: {type(error).__name__}: {error}") from error
    return query


def _groups(row: Mapping[str, Any]) -> Float32[np.ndarray, "g k"] | None:
    """The solutions of the groups of samples; None in the file of an earlier version, too."""
    values = row.get("groups")
    return np.asarray(values, np.float32).reshape(-1, len(row["phi"])) if values else None


def require_alike(query: StoredQuery, others: Sequence[StoredQuery]) -> None:
    """Check that a query was solved with the same system as the other queries of its method. Raises Damaged."""
    for other in others:
        if query.phi.shape != other.phi.shape or not math.isclose(query.lam, other.lam, rel_tol=SAME_LAMBDA):
            raise Damaged(
                f"the queries {query_file(query.method, query.concept)} and {query_file(other.method, other.concept)} "
                f"have {len(query.phi)} and {len(other.phi)} numbers, and were solved with lambda {query.lam:.6g} and "
                f"{other.lam:.6g}; expected one system. Run `python -m jobs.verify repair=true`, then the audit again."
            )


def query_of_file(audit: Audit, name: str) -> tuple[str, str] | None:
    """The method and the concept of a query's file, by its name in the store; None for any other file."""
    match name.removeprefix(audit.name("")).split("/"):
        case [method, "queries", file] if file.endswith(".parquet"):
            return method, file.removesuffix(".parquet")
    return None


def _require_sound(query: StoredQuery, method: str, concept: str) -> None:
    if (query.method, query.concept) != (method, concept):
        raise UserError(f"it is the query of {query.concept} by {query.method}")
    if query.phi.shape != query.solved.shape:
        raise UserError(f"phi has {len(query.phi)} numbers and solved has {len(query.solved)}")
    if not all(np.isfinite(x).all() for x in (query.phi, query.solved, query.lam, query.spread_solved)) or (
        query.groups is not None and not np.isfinite(query.groups).all()
    ):
        raise UserError("it holds numbers that are not finite")
