"""The values that the page of an audit shows: everything that `render` needs."""

from dataclasses import dataclass, field

from concept_trak.attribution.concept_fit import ConceptFit
from concept_trak.attribution.damping import DampingChoice
from concept_trak.audit.aggregate import GroupStatistics
from concept_trak.audit.comparison import Overlap
from concept_trak.audit.layer_scores import Through
from concept_trak.audit.score_spread import Certainty
from concept_trak.report.chart import Chart


@dataclass(frozen=True)
class Thumb:
    """One training image of a ranking.

    Attributes:
        percentile: share of all samples that score no higher, in percent.
        png: the thumbnail; empty if it is a file.
        relevant: whether its labels show the concept; None without labels.
        file, original: the thumbnail and the original as files, relative to the folder of the concept pages; empty on a
            page that is one file.
        small: whether the picture is enlarged with sharp edges.
        origin: the source and the row, in words.
        through: the parts of the network in which the score is largest, if the features keep layers apart.
        interval: of the score and of its rank, 90 %: low, high, the better and the worse rank; empty if not known.
    """

    sample_id: str
    caption: str
    score: float
    percentile: float
    rank: int
    png: bytes
    labels: dict[str, str] = field(default_factory=dict)
    relevant: bool | None = None
    file: str = ""
    original: str = ""
    small: bool = False
    origin: str = ""
    through: tuple[Through, ...] = ()
    interval: tuple[float, float, int, int] | tuple[()] = ()


@dataclass(frozen=True)
class Ranking:
    """One method's ranking for one concept: both ends, and the distribution of all scores.

    Attributes:
        form: `damped` (with the inverse of K) or `plain` (the inner product).
        histogram: counts in equal bins over [-span, span], in units of the score; scores outside are in the outermost
            bins.
        metrics: average_precision, base_rate, precision_at_10 and recall_at_carriers; empty without labels.
        groups: by kind (source, label, word), the groups whose mean differs most from that of all samples.
        through: the scores of `top` together, split over the parts of the network, if the features keep layers apart.
    """

    method: str
    form: str
    top: tuple[Thumb, ...]
    bottom: tuple[Thumb, ...]
    histogram: tuple[int, ...]
    span: float
    metrics: dict[str, float] = field(default_factory=dict)
    groups: dict[str, tuple[GroupStatistics, ...]] = field(default_factory=dict)
    through: tuple[Through, ...] = ()


@dataclass(frozen=True)
class Moved:
    """One sample whose rank differs from the earlier audit's; a rank is None if the sample is not in that top.

    `data` is `same`, `changed`, `new` or `removed`: what happened to the sample itself.
    """

    sample_id: str
    caption: str
    before: int | None
    after: int | None
    data: str


@dataclass(frozen=True)
class Change:
    """How the top of one method changed since the earlier audit. Shares are of the later top, in [0, 1]."""

    method: str
    entered: int
    left: int
    stayed: int
    new: float
    changed: float
    cosine: float | None
    moved: tuple[Moved, ...]


@dataclass(frozen=True)
class AnswerInWords:
    """What a method answers, in a sentence. `clear`: whether it names a group of images that stands out."""

    method: str
    clear: bool
    text: str


@dataclass(frozen=True)
class Section:
    """One concept: its conditions, the query's own images, every ranking, and the changes.

    Attributes:
        pictures: the query's images as PNG; empty if they are files.
        files: the query's images as files; empty on a page that is one file.
        small: as in `Thumb`.
        kind: `text`, `examples`, `classifier` or `image`.
        question: the question in one line.
        written: the prompt and its other phrasings, each with its prompt without the concept; empty if both prompts
            were given and there is no other phrasing.
        agreement: by method, the cosine between each phrasing's feature and the mean of the others.
        certainty: by method, how far its top can be relied on, where the query's samples were divided.
        fit: whether the model tells the concept in the pictures; None where it was not asked.
        examples: the number of example pictures.
        answers: of each method, in words.
        overlaps: of the forms of each method, and of the methods.
    """

    name: str
    text: str
    without: str
    scope: str
    truth: dict[str, str]
    pictures: tuple[bytes, ...]
    rankings: tuple[Ranking, ...]
    changes: tuple[Change, ...] = ()
    files: tuple[str, ...] = ()
    small: bool = False
    kind: str = "text"
    question: str = ""
    written: tuple[tuple[str, str], ...] = ()
    agreement: dict[str, tuple[float, ...]] = field(default_factory=dict)
    certainty: dict[str, Certainty] = field(default_factory=dict)
    fit: ConceptFit | None = None
    answers: tuple[AnswerInWords, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    examples: int = 0


@dataclass(frozen=True)
class Facts:
    """One method of the audit: its row in words, and its cost.

    Attributes:
        unit: what the gradient of a state is scaled to norm 1 over, or `no`.
        evaluations: network evaluations of a training sample; a backward pass counts as two.
        seconds: worker time of all features, including those that earlier audits computed.
        computed: how many of the `samples` this audit computed; it reused the others.
        trace, lam: tr(K) and lambda.
        damping: the one used; with the curve that it was chosen from, or why it could not be.
        status: `published`, `recommended` or empty.
    """

    method: str
    train: str
    query: str
    unit: str
    fingerprint: str
    evaluations: int
    seconds: float
    samples: int
    computed: int
    rejected: int
    features: int
    trace: float
    lam: float
    damping: DampingChoice | None = None
    status: str = ""


@dataclass(frozen=True)
class Other:
    """The published or the recommended row, if the audit did not use it, and its cost for a training sample."""

    method: str
    status: str
    evaluations: int


@dataclass(frozen=True)
class Page:
    """One audit.

    Attributes:
        rejects: number of samples by reason.
        settings: dotted keys and their values as text.
        since: the audit that changes are counted from; empty without one.
        files: whether every concept has a page of its own, with pictures as files.
        left_out: everything that no sample uses: counts by reason, and a few names.
        damping_chart: of the methods whose damping was chosen; None where none was.
    """

    audit: str
    finished: str
    model: str
    data: str
    parameters: int
    samples: int
    sources: int
    sections: tuple[Section, ...]
    facts: tuple[Facts, ...]
    rejects: dict[str, int]
    settings: dict[str, str]
    since: str = ""
    files: bool = False
    others: tuple[Other, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    damping_chart: Chart | None = None
