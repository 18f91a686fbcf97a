"""What a server keeps, so that links to its answers are permanent: questions, pictures, answers and thumbnails.

    <folder>/<audit>/<settings>/questions/<id>/question.json · top.parquet · joint.parquet · answer.json (written last)
    <folder>/<audit>/<settings>/pictures/<sha256>
    <folder>/<audit>/<settings>/thumbnails/<sample>.png | .jpg

`<settings>` is a digest of the audit's settings and plan: another audit of the same name has other answers. Every file
is created once and never replaced, so several servers may share a folder.
"""

import base64
import hashlib
import json
from dataclasses import asdict
from typing import Any

from concept_trak import UserError
from concept_trak.audit.answer import Answer
from concept_trak.audit.finished_audit import FinishedAudit
from concept_trak.audit.layer_scores import FILE as JOINT_FILE
from concept_trak.audit.shown_samples import SIDE
from concept_trak.data.decode import decode_image
from concept_trak.data.image import to_tensor, to_thumbnail
from concept_trak.report.build_audit_page import page
from concept_trak.store.store import Store
from concept_trak.store.tables import to_parquet
from serving.question import Question, question_from
from serving.result import beside_table

KINDS = {"png": "image/png", "jpg": "image/jpeg"}
"""The types of thumbnails by the endings of their files."""


def audit_digest(audit: FinishedAudit) -> str:
    """A digest of the settings and the plan of an audit."""
    files = audit.manifest["files"]
    listed = "".join(files[name]["sha256"] for name in ("audit.yaml", "plan.parquet"))
    return hashlib.sha256(listed.encode()).hexdigest()[:12]


class QuestionArchive:
    """The questions to one audit, with their answers.

    Args:
        folder: an absolute path or a URL.
        audit: the audit that is asked.
    """

    def __init__(self, folder: str, audit: FinishedAudit) -> None:
        self.settings = audit_digest(audit)
        self._store, self._folder = Store(folder), f"{audit.audit.id}/{self.settings}"

    @property
    def pictures(self) -> str:
        """The address of the folder of the pictures."""
        return f"{self._store.uri}/{self._folder}/pictures"

    def keep_question(self, question: Question) -> str:
        """Write the question; returns its id."""
        key = question.id(self.settings)
        self._store.create(self._name(key, "question.json"), json.dumps(asdict(question)).encode())
        return key

    def question(self, key: str) -> Question | None:
        """The question of an id; None if nobody has asked it."""
        data = self._read(self._name(key, "question.json"))
        return None if data is None else question_from(json.loads(data))

    def require_pictures(self, question: Question) -> None:
        """Check that the pictures of a question are here.

        Raises:
            UserError: one is not.
        """
        for picture in (*question.examples, *filter(None, [question.image])):
            if self._store.size(f"{self._folder}/pictures/{picture}") is None:
                raise UserError(f"picture {picture} is not known here; send it with `POST /pictures` first")

    def keep_picture(self, data: bytes, transparency: str, most_pixels: int) -> str:
        """Write the bytes of a picture that can be decoded; returns its id.

        Raises:
            UserError: they are no picture, or it is too large.
        """
        try:
            decode_image(data, transparency, most_pixels)
        except UserError as error:
            raise UserError(f"the picture cannot be read ({error}); expected a file such as JPEG or PNG") from None
        key = hashlib.sha256(data).hexdigest()
        self._store.create(f"{self._folder}/pictures/{key}", data)
        return key

    def keep_answer(self, key: str, answer: Answer) -> None:
        """Write the thumbnails, the table and last what the page shows beside it."""
        samples = answer.results.samples.values()
        for sample in samples:
            if sample.png:
                thumbnail, ending = _thumbnail(sample.png)
                self._store.create(self._thumbnail_name(sample.sample_id, ending), thumbnail)
        prepared = answer.run.prepared
        (concept,) = prepared.config.concepts
        queries = answer.results.queries
        drawn = queries[next(iter(prepared.config.methods)), concept.name].pictures
        beside = {
            **self._beside_table(answer),
            "seconds": dict(answer.seconds),
            "without": concept.without,
            "ranked": {method: solution.count for method, solution in answer.results.solutions.items()},
            "resolution": prepared.resolution,
            "unpictured": [sample.sample_id for sample in samples if not sample.png],
            "drawn": [base64.b64encode(_thumbnail(png)[0]).decode() for png in drawn],
        }
        self._store.create(self._name(key, "top.parquet"), to_parquet(answer.table))
        if answer.results.layers.parts is not None:
            self._store.create(self._name(key, JOINT_FILE), to_parquet(answer.layers))
        self._store.create(self._name(key, "answer.json"), json.dumps(beside).encode())

    def _beside_table(self, answer: Answer) -> dict[str, Any]:
        (section,) = page(answer.run, answer.results).sections
        return beside_table(section)

    def is_answered(self, key: str) -> bool:
        return self._store.size(self._name(key, "answer.json")) is not None

    def answer(self, key: str) -> dict[str, Any] | None:
        """What the page shows beside the table; None if the question has no answer yet."""
        data = self._read(self._name(key, "answer.json"))
        return None if data is None else json.loads(data)

    def table(self, key: str) -> bytes | None:
        """The table of an answer as a Parquet file, with the columns of an audit's `top.parquet`."""
        return self._read(self._name(key, "top.parquet")) if self.is_answered(key) else None

    def layers(self, key: str) -> bytes | None:
        """The split scores of an answer as a Parquet file, with the columns of an audit's `joint.parquet`."""
        return self._read(self._name(key, JOINT_FILE)) if self.is_answered(key) else None

    def thumbnail(self, sample: str) -> tuple[bytes, str] | None:
        """A sample's thumbnail and its media type; None if the sample is in no answer."""
        for ending, kind in KINDS.items():
            if (data := self._read(self._thumbnail_name(sample, ending))) is not None:
                return data, kind
        return None

    def _name(self, key: str, file: str) -> str:
        return f"{self._folder}/questions/{key}/{file}"

    def _thumbnail_name(self, sample: str, ending: str) -> str:
        """Ids of samples may hold what no file name may."""
        return f"{self._folder}/thumbnails/{hashlib.sha256(sample.encode()).hexdigest()[:24]}.{ending}"

    def _read(self, name: str) -> bytes | None:
        try:
            return self._store.read(name)
        except FileNotFoundError:
            return None


def _thumbnail(png: bytes) -> tuple[bytes, str]:
    """A picture of an answer as a small file, and its ending."""
    return to_thumbnail(to_tensor(decode_image(png)), SIDE)
