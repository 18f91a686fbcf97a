"""Through which layers the ends of every ranking came, split on the workers while an audit ends."""

from collections.abc import Sequence
from dataclasses import dataclass

from concept_trak.joint import SPLIT, block_of, names_of
from concept_trak.joint_table import Asked, Parting, Parts
from concept_trak.report.page import Through
from concept_trak.results import FORMS, Tally, column
from jobs.run import Run

STRONGEST = 3  # parts of the network that a single image is shown with


@dataclass(frozen=True)
class Shares:
    """The layers' names in the model's order, and every split score; both empty where the projector mixes layers."""

    names: tuple[str, ...] = ()
    parts: Parts | None = None

    def through(self, method: str, concept: str, form: str, samples: Sequence[str]) -> tuple[Through, ...]:
        """Of the samples' scores together, by part of the network."""
        if self.parts is None:
            return ()
        total = dict.fromkeys(map(block_of, self.names), 0.0)
        for sample in samples:
            for name, score in zip(self.names, self.parts[method, concept, form, sample], strict=True):
                total[block_of(name)] += score
        whole = sum(total.values())
        return tuple(Through(name, score, score / whole if whole else 0.0) for name, score in total.items())

    def strongest(self, method: str, concept: str, form: str, sample: str) -> tuple[Through, ...]:
        """The parts that a single score is largest in, whatever their sign."""
        found = self.through(method, concept, form, [sample])
        return tuple(sorted(found, key=lambda one: -abs(one.score))[:STRONGEST])


def shares(run: Run, tally: Tally) -> Shares:
    """Every score at an end of a ranking, split; nothing where the projector mixes layers."""
    p = run.prepared
    if p.config.projector.kind not in SPLIT:
        return Shares()
    wanted = dict[tuple[str, str], list[Asked]]()
    for method in p.config.methods:
        for concept in p.config.concepts:
            for form in FORMS:
                ends = tally.ends[method, column(concept.name, form)]
                for _, sample, shard in (*ends.top, *ends.bottom):
                    wanted.setdefault((method, shard), []).append((concept.name, form, sample))
    sizes = tuple(p.sizes.items())
    items = [Parting(*place, tuple(dict.fromkeys(asked)), sizes) for place, asked in wanted.items()]
    made = Parts()
    for item, split in run.map("joint", "concept_trak.joint_table:Split", items):
        made.update({(item.method, *asked): row for asked, row in zip(item.wanted, split, strict=True)})
    return Shares(names_of(p.sizes), made)
