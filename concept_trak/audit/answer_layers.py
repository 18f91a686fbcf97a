"""The scores at the ends of an answer, split by layer, with the features that answered it.

Each process with a share of the features splits the scores of its own samples.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from concept_trak.attribution.by_layer import SPLIT, LayerColumns, layer_columns
from concept_trak.attribution.projector import Projector
from concept_trak.audit.kept_features import KeptFeatures
from concept_trak.audit.layer_scores import LayerScores, Parts, SplitKey, end_keys, split_scores
from concept_trak.audit.results import Tally
from concept_trak.audit.shared_pass import SolvedQuestion
from concept_trak.store.queries import StoredQuery
from concept_trak.store.records import Record


@dataclass(frozen=True)
class AnswerSplit:
    """The scores of an answer by one method that are split.

    Attributes:
        method: its name.
        queries: its queries, with different names.
        keys: by shard, the scores of its samples.
        layers: the layer of each column of the features.
    """

    method: str
    queries: tuple[StoredQuery, ...]
    keys: dict[str, tuple[SplitKey, ...]]
    layers: LayerColumns


def split_answer(features: KeptFeatures, records: Sequence[Record], task: AnswerSplit) -> Parts:
    """The split scores of the samples in some parts.

    Args:
        features, records: the features of the method, or a share of them.
        task: the scores; those of samples in other shares are left out.

    Raises:
        Damaged: a part that was not kept is not the one of its record.
    """
    own = [record for record in records if record.shard in task.keys]
    keys = [key for record in own for key in task.keys[record.shard]]
    queries = {query.concept: query for query in task.queries}
    with closing(features.blocks(own)) as blocks:
        return split_scores(task.layers, task.method, keys, blocks, queries.__getitem__)


class AnswerSplitter:
    """Splits the scores of answers by one model. It keeps the layers of the columns.

    Args:
        projector: of the features.
        split: splits the scores of one method, wherever its features are.
    """

    def __init__(self, projector: Projector, split: Callable[[AnswerSplit], Parts]) -> None:
        self._projector, self._split = projector, split
        self._layers: LayerColumns | None = None

    def __call__(self, question: SolvedQuestion, tally: Tally) -> LayerScores:
        """Every score at an end of an answer; empty if the projector mixes layers."""
        if self._projector.kind not in SPLIT:
            return LayerScores()
        if self._layers is None:
            self._layers = layer_columns(self._projector, question.run.prepared.sizes)
        parts = Parts()
        for task in _tasks(question, tally, self._layers):
            parts |= self._split(task)
        return LayerScores(self._layers.names, parts)


def _tasks(question: SolvedQuestion, tally: Tally, layers: LayerColumns) -> Iterator[AnswerSplit]:
    keys = defaultdict[str, dict[str, tuple[SplitKey, ...]]](dict)
    for (method, shard), own in end_keys(question.run.prepared.config, tally).items():
        keys[method][shard] = own
    for method, by_shard in keys.items():
        yield AnswerSplit(method, tuple(question.columns(method)), by_shard, layers)
