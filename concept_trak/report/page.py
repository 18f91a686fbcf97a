"""What the page of an audit shows, as plain values: everything `render` needs and nothing it has to look up."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Thumb:
    """One training image of a ranking. `percentile`: share of all samples scored no higher, in percent.

    `relevant` says whether its labels show the concept, None where labels are not known.
    """

    sample_id: str
    caption: str
    score: float
    percentile: float
    rank: int
    png: bytes
    labels: dict[str, str] = field(default_factory=dict)
    relevant: bool | None = None


@dataclass(frozen=True)
class Ranking:
    """One method's answer about one concept: the ends, and how all scores are spread.

    `form` is `damped` (with the inverse of K) or `plain` (the inner product). `histogram` has equal bins over
    [-span, span], in units of the score; what lies outside is in the outermost bins. `metrics` (average_precision,
    base_rate, precision_at_10, recall_at_carriers) is empty where labels are not known.
    """

    method: str
    form: str
    top: tuple[Thumb, ...]
    bottom: tuple[Thumb, ...]
    histogram: tuple[int, ...]
    span: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """One concept: what was asked, the query's own images (PNG), and every ranking."""

    name: str
    text: str
    without: str
    scope: str
    truth: dict[str, str]
    pictures: tuple[bytes, ...]
    rankings: tuple[Ranking, ...]


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


@dataclass(frozen=True)
class Page:
    """One audit. `settings` are dotted keys and their values as text; `rejects` counts samples by reason."""

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
