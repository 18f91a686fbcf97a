"""The systems of a finished audit, (K + lambda I) z = phi_q: its own K, and the damping that it was solved with."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from concept_trak.attribution.damping import DampingChoice
from concept_trak.attribution.fisher import Gram
from concept_trak.audit.damping import damping_file, read_choice
from concept_trak.audit.finished_audit import FinishedAudit
from concept_trak.audit.gram import DampedSystem, SolveResult, damped_system
from concept_trak.audit.query_features import MethodQuery
from concept_trak.audit.worker import StoreWorker
from concept_trak.store.audit_files import ListedFile
from concept_trak.store.grams import decode_gram
from concept_trak.store.manifest import gram_file
from concept_trak.store.records import Record


class AuditSystems:
    """Solves new queries with the systems of an audit. It keeps the factors of K + lambda I.

    Args:
        results: the audit.
        damping: its setting; text is a choice that each method has a file of.
        reader: reads the features, for a method with fewer samples than features.
        records: by method, of its parts.
    """

    def __init__(
        self,
        results: FinishedAudit,
        damping: float | str,
        reader: StoreWorker,
        records: Mapping[str, Sequence[Record]],
    ) -> None:
        self._results, self._damping, self._reader, self._records = results, damping, reader, records
        self._systems = dict[str, DampedSystem]()

    def load(self, method: str) -> DampedSystem:
        """The system of a method, with its factor.

        Raises:
            UserError: the audit has no such file.
            Damaged: a file is gone, or was altered since the audit finished.
        """
        if method not in self._systems:
            self._systems[method] = self._system(method)
        return self._systems[method]

    def solve(self, method: str, queries: Sequence[MethodQuery]) -> SolveResult:
        """z = (K + lambda I)^-1 phi_q for some queries of one method. Raises as `load` does."""
        groups = tuple(query.groups for query in queries)
        return self.load(method).solve(np.stack([query.phi for query in queries]), groups)

    def _system(self, method: str) -> DampedSystem:
        name = gram_file(method)
        matrix, count = decode_gram(self._results.file(name))
        file = ListedFile(name, **self._results.manifest["files"][name])

        def phi() -> torch.Tensor:
            return torch.cat([phi for _, _, phi in self._reader.features(*self._records[method])])

        return damped_system(method, Gram(torch.from_numpy(matrix), count), self._choice(method), file, phi)

    def _choice(self, method: str) -> DampingChoice:
        """The audit's damping. A chosen one has its curve, without the values for the audit's own concepts."""
        if not isinstance(self._damping, str):
            return DampingChoice(self._damping)
        self._results.file(damping_file(method))
        choice = read_choice(self._results.audit, method)
        assert choice is not None, "it was just read"
        return choice._replace(curve=tuple(point._replace(own=()) for point in choice.curve))
