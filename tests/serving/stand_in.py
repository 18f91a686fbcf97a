"""A stand-in for the questions of an audit: it answers at once, or when a test lets it, and needs no model."""

import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

from PIL import Image

from concept_trak import UserError
from concept_trak.attribution.concept import Concept
from concept_trak.attribution.method import METHODS
from concept_trak.audit.comparison import Overlap
from concept_trak.audit.layer_scores import JOINT
from concept_trak.audit.questions import STEPS
from concept_trak.store.tables import from_rows
from serving.answering import Answering
from serving.archive import QuestionArchive

RESULTS: Any = SimpleNamespace(
    manifest={"files": {"audit.yaml": {"sha256": "a"}, "plan.parquet": {"sha256": "b"}}},
    audit=SimpleNamespace(id="first"),
)
STRANGE = '../a/"><script>1</script>'
"""An id that is a path, and would be a script."""
CAPTION = "a <b>red</b> square"


def picture(colour: str = "red", side: int = 4, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(out, kind)
    return out.getvalue()


class Stand:
    """As `Questions`. `wait` holds every answer back until it is set; `fails` is raised in place of an answer.

    `batches` has the numbers of questions that were ranked together; `fails_at` what is raised there, by prompt. No
    pass ends unless `ranked` is set.
    """

    def __init__(self, wait: bool = False) -> None:
        data = SimpleNamespace(transparency="white", most_pixels=10_000, uri="/data/train")
        methods = {method: METHODS[method] for method in ("caption_trak", "das")}
        self.config = SimpleNamespace(audit="first", methods=methods, concepts=(), data=data)
        self.records = {"caption_trak": [SimpleNamespace(rows=9)]}
        self.asked, self.go, self.fails = list[Concept](), threading.Event(), list[Exception]()
        self.begun, self.ranked = threading.Event(), threading.Event()
        self.batches, self.fails_at = list[int](), dict[str, Exception]()
        self.ranked.set()
        self.originals: dict[tuple[str, int], bytes | OSError | None] = {("/data/train/0.parquet", 3): picture("blue")}
        self.unranked = frozenset[str]()
        """Methods whose features are all zero."""
        self.unpictured = frozenset[str]()
        """Samples without a picture."""
        if not wait:
            self.go.set()

    def configuration(self, concepts: Sequence[Concept], methods: Sequence[str], top: int, pictured: int) -> Any:
        if unknown := set(methods) - set(self.config.methods):
            raise UserError(f"method={unknown.pop()!r}: audit first has caption_trak, das")
        return SimpleNamespace(concept=concepts[0], methods=methods)

    def solve_question(self, config: Any, progress: Callable[[str], None]) -> Any:
        self.asked.append(config.concept)
        progress(STEPS[0])
        progress(STEPS[1])
        self.begun.set()
        assert self.go.wait(20)
        if self.fails:
            raise self.fails.pop()
        return config

    def rank(self, questions: Sequence[Any], progress: Callable[[str], None]) -> list[None]:
        self.batches.append(len(questions))
        assert self.ranked.wait(20)
        if error := next((error for q in questions if (error := self.fails_at.get(q.concept.prompt))), None):
            raise error
        return [None] * len(questions)

    def answer(self, question: Any, tally: None, progress: Callable[[str], None]) -> Any:
        return answer(question.concept, question.methods, self.unranked, self.unpictured)

    def original(self, source: str, row: int) -> bytes | None:
        data = self.originals[source, row]
        if isinstance(data, OSError):
            raise data
        return data


def answer(
    concept: Concept,
    methods: Sequence[str],
    unranked: frozenset[str] = frozenset(),
    unpictured: frozenset[str] = frozenset(),
) -> Any:
    kinds = {"concept": "string", "method": "string", "form": "string", "end": "string", "rank": "int64",
             "sample_id": "string", "score": "float64", "percentile": "float64", "caption": "string",
             "low": "float32", "high": "float32", "rank_low": "int64", "rank_high": "int64",
             "source": "string", "row": "int64", "duplicate_of": "string", "colour": "string"}  # fmt: skip
    rows = [
        {"concept": "question", "method": method, "form": form, "end": end, "rank": 1, "sample_id": sample,
         "score": float("nan") if form == "plain" else 0.5, "percentile": 100.0, "caption": CAPTION,
         "low": 0.25 if end == "top" else None, "high": 0.75, "rank_low": 1, "rank_high": 7,
         "source": "/data/train/0.parquet", "row": 3, "duplicate_of": "", "colour": "red"}
        for method in methods if method not in unranked for form in ("damped", "plain")
        for end, sample in (("top", STRANGE), ("bottom", "b"))
    ]  # fmt: skip
    config = SimpleNamespace(concepts=(concept,), methods=dict.fromkeys(methods))
    return SimpleNamespace(
        table=from_rows(kinds, rows),
        seconds={"model": 0.5, "query": 1.0},
        run=SimpleNamespace(prepared=SimpleNamespace(config=config, resolution=16)),
        results=SimpleNamespace(
            samples={
                s: SimpleNamespace(sample_id=s, png=b"" if s in unpictured else picture()) for s in (STRANGE, "b")
            },
            queries={(method, concept.name): SimpleNamespace(pictures=(picture("blue"),)) for method in methods},
            solutions={method: SimpleNamespace(count=9) for method in methods},
            layers=SimpleNamespace(parts={}),
        ),
        layers=from_rows(JOINT, []),
    )


class Kept(QuestionArchive):
    """What is kept beside the table is made of results that the stand-in does not have."""

    def _beside_table(self, answer: Any) -> dict[str, Any]:
        methods, part = list(answer.run.prepared.config.methods), {"part": "<mid>", "score": 0.25, "share": 0.5}
        overlap = Overlap(methods[0], f"{methods[-1]}, plain", 1, 2, -0.25, 1000, (STRANGE,), ())
        return {
            "words": {method: {"text": "Nothing <stands> out.", "stands_out": False} for method in methods},
            "comparisons": [asdict(overlap)],
            "through": [{"method": methods[0], "form": "damped", "parts": [part]}],
            "strongest": [{"method": methods[0], "form": "damped", "samples": {STRANGE: [part], "b": [part]}}],
        }


def answering(folder: str, questions: Any = None, most: int = 4) -> Answering:
    return Answering(questions or Stand(), Kept(folder, RESULTS), most)
