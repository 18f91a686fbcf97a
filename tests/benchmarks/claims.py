"""What the benchmark has to show: ratios of contestants' speeds in one run, each beside its target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from tests.benchmarks.agreement import least_cosine
from tests.benchmarks.contest import Standing
from tests.benchmarks.contestants import AUTHORS, CAPTURE, MASK, PLAIN, WIDE

Known = Mapping[str, Standing]  # who has been measured, by task and name


class Target(NamedTuple):
    """`ours` should have at least `least` times as many samples per processor second as `theirs` (keys)."""

    what: str
    least: float
    ours: str
    theirs: str


FIXED = (
    Target("capture and unit norms / plain passes", 0.90, f"rows/{CAPTURE}", f"rows/{PLAIN}"),
    Target("capture and unit norms / plain passes", 0.90, f"states/{CAPTURE}", f"states/{PLAIN}"),
    Target("default projector at k = 4096 / plain passes", 0.80, f"rows/{WIDE}", f"rows/{PLAIN}"),
    Target("default projector at k = 4096 / plain passes", 0.80, f"states/{WIDE}", f"states/{PLAIN}"),
    Target("the authors' gradient stage, same mask", 2.2, f"states/{MASK}", f"states/{AUTHORS}"),
    Target("the authors' whole training side, same mask", 1.4, f"side/{MASK}", f"side/{AUTHORS}"),
    Target("the cheaper row / the authors' whole training side", 12.0, f"cheaper/{MASK}", f"side/{AUTHORS}"),
)
SAME_COORDINATES = [(one.ours, one.theirs) for one in FIXED if one.what.endswith("same mask")]
COSINE = 0.999


@dataclass(frozen=True)
class Claim:
    """A target as it came out: the median of the rounds' ratios, their range, and each side's agreement."""

    model: str
    target: Target
    ratio: float
    range: tuple[float, float]
    agreements: tuple[float | None, float | None]

    @property
    def met(self) -> bool:
        return self.ratio >= self.target.least


def claims(model: str, present: Sequence[Standing]) -> list[Claim]:
    """Every target whose two sides have been measured on a model."""
    known = {one.contestant.key: one for one in present if one.rounds}
    best = (
        Target("same work, dense 512 / the best rival", 1.2, *_best(known, ("dense",))),
        Target("best configuration / the best rival's", 1.8, *_best(known, ("dense", "projected"))),
    )
    return [_claim(model, one, known) for one in (*FIXED, *best) if one.ours in known and one.theirs in known]


def same_features(present: Sequence[Standing]) -> dict[str, float]:
    """By task, the least cosine between our features and the authors', which keep the same coordinates."""
    made = {one.contestant.key: one.answer.features for one in present if one.answer is not None}
    found = {}
    for ours, theirs in SAME_COORDINATES:
        a, b = made.get(ours), made.get(theirs)
        if a is not None and b is not None:
            found[ours.partition("/")[0]] = least_cosine(a, b)
    return found


def _best(known: Known, groups: Sequence[str]) -> tuple[str, str]:
    """Who of us and who of the rivals is fastest at `rows` in these groups; "" where nobody is."""
    able = [one for one in known.values() if one.contestant.task == "rows" and one.contestant.group in groups]
    able.sort(key=lambda one: median(r.cpu for r in one.rounds))
    ours = [one.contestant.key for one in able if not one.contestant.rival]
    rivals = [one.contestant.key for one in able if one.contestant.rival]
    return (ours or [""])[0], (rivals or [""])[0]


def _claim(model: str, target: Target, known: Known) -> Claim:
    ours, theirs = known[target.ours], known[target.theirs]
    pairs = zip(_each(ours), _each(theirs), strict=False)  # who is slow has one round only
    ratios = [b / a for a, b in pairs]
    return Claim(model, target, median(ratios), (min(ratios), max(ratios)), (ours.agreement, theirs.agreement))


def _each(one: Standing) -> list[float]:
    """Processor seconds a sample, round by round."""
    assert one.ready is not None
    return [r.cpu / one.ready.samples for r in one.rounds]
