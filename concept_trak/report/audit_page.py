"""What the page of an audit shows, as plain values: everything `render` needs and nothing it has to look up."""

from dataclasses import dataclass, field

from concept_trak.audit.layer_scores import Through


@dataclass(frozen=True)
class Thumb:
    """One training image of a ranking. `percentile`: share of all samples scored no higher, in percent.

    `relevant` says whether its labels show the concept, None where labels are not known. `file` and `original`, where
    the page has its pictures beside it, are relative to the folder of the concept pages; `png` is then empty, and
    `small` says whether the picture is to be enlarged with sharp edges. `origin`: the source and row it lies in.
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
    """The parts of the network in which the score is largest, where the features keep layers apart."""


@dataclass(frozen=True)
class Group:
    """Samples of one source, label or word. `share`: of the sum of all positive scores; `errors`: how many standard
    errors their mean lies above that of all samples."""

    name: str
    samples: int
    mean: float
    share: float
    errors: float


@dataclass(frozen=True)
class Ranking:
    """One method's answer about one concept: the ends, and how all scores are spread.

    `form` is `damped` (with the inverse of K) or `plain` (the inner product). `histogram` has equal bins over
    [-span, span], in units of the score; what lies outside is in the outermost bins. `metrics` (average_precision,
    base_rate, precision_at_10, recall_at_carriers) is empty where labels are not known. `groups` has, by what they have
    in common (source, label, word), those that stand out most.
    """

    method: str
    form: str
    top: tuple[Thumb, ...]
    bottom: tuple[Thumb, ...]
    histogram: tuple[int, ...]
    span: float
    metrics: dict[str, float] = field(default_factory=dict)
    groups: dict[str, tuple[Group, ...]] = field(default_factory=dict)
    through: tuple[Through, ...] = ()
    """Of the scores of `top` together, by every part of the network, where the features keep layers apart."""


@dataclass(frozen=True)
class Moved:
    """One sample whose rank is another than in the earlier audit; None where it did not stand in the top.

    `data` says whether the sample itself is the same, changed, new or removed.
    """

    sample_id: str
    caption: str
    before: int | None
    after: int | None
    data: str


@dataclass(frozen=True)
class Change:
    """What became of the top of one method since the earlier audit. Shares are of the top as it is now."""

    method: str
    entered: int
    left: int
    stayed: int
    new: float
    changed: float
    cosine: float | None
    moved: tuple[Moved, ...]


@dataclass(frozen=True)
class Section:
    """One concept: what was asked, the query's own images (PNG), every ranking, and what changed.

    `files` are the query's images as files, where the page has its pictures beside it; `small` as of a `Thumb`.
    `kind`: text, examples, classifier or image, and `question` the question in one line. `written`: the prompt and its
    other phrasings, each with what the tool wrote without the concept, where it did. `agreement`: by method, the cosine
    of each phrasing's feature with the mean of the others'.
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


@dataclass(frozen=True)
class Facts:
    """One method of the audit: its row in words, and what it cost.

    `evaluations`: network evaluations a training sample costs (a backward counts two). `seconds`: worker time spent on
    features in all, whoever computed them; `computed` of `samples` were computed by this audit, the others were reused.
    """

    method: str
    train: str
    query: str
    unit: str
    """What a state's gradient is scaled to norm 1 over, or that it is not."""
    fingerprint: str
    evaluations: int
    seconds: float
    samples: int
    computed: int
    rejected: int
    features: int
    trace: float
    lam: float
    standing: str = ""
    """`published` or `recommended`, where it is that row as it stands in the table."""


@dataclass(frozen=True)
class Other:
    """The published or the recommended row where the audit did not use it, and what a training sample would cost."""

    method: str
    standing: str
    evaluations: int


@dataclass(frozen=True)
class Page:
    """One audit. `settings` are dotted keys and their values as text; `rejects` counts samples by reason. `since` names
    the audit that changes are counted from. With `files` every concept is a page of its own and pictures are files.
    `left_out` has what no sample is made of: how many of what, and a few names."""

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
