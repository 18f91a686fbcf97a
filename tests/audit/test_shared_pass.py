"""Questions that share a pass over the features: each has the scores that it has by itself."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from concept_trak.attribution.damping import DampingChoice
from concept_trak.audit.gram import SolveResult
from concept_trak.audit.kept_features import KeepingBudget, KeptFeatures
from concept_trak.audit.query_features import MethodQuery
from concept_trak.audit.results import Tally
from concept_trak.audit.shared_pass import SolvedQuestion, scan, shared_tallies
from concept_trak.audit.worker import StoreWorker, Work
from concept_trak.config import AuditConfig
from concept_trak.store.audit_files import ListedFile
from concept_trak.store.identity import FeatureSet
from concept_trak.store.part import Part
from concept_trak.store.records import Record, commit_part
from concept_trak.store.store import Store

FIXED_BITS = torch.backends.mkl.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
K, ROWS, METHODS = 64, 300, ("first", "second")


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> tuple[str, dict[str, list[Record]]]:
    """The features of two methods in a store, and their records."""
    folder, rng = str(tmp_path_factory.mktemp("store")), np.random.default_rng(0)
    store, records = Store(folder), dict[str, list[Record]]()
    for method in METHODS:
        phi = rng.standard_normal((ROWS, K), np.float32)
        parts = [
            Part(method, f"p{i}", tuple(f"{i}-{j}" for j in range(ROWS // 2)), np.ones(ROWS // 2, np.float32), own, ())
            for i, own in enumerate(np.split(phi, 2))
        ]
        records[method] = [commit_part(store, part, "int8", "binary", 0.0, 1, "here") for part in parts]
    return folder, records


def scanner(stored: tuple[str, dict[str, list[Record]]], memory: int) -> Any:
    """Scores queries as `Questions.score` does, and keeps so many bytes of features."""
    folder, records = stored
    work = Work(AuditConfig(folder, "any"), {method: FeatureSet(method) for method in METHODS})
    features = KeptFeatures(StoreWorker(work), KeepingBudget(memory=memory), 1 << 20)
    return lambda method, queries, top: scan(features, records[method], method, queries, top)


@pytest.fixture(scope="module")
def score(stored) -> Any:
    """As an audit, which keeps nothing."""
    return scanner(stored, 0)


@pytest.fixture(scope="module")
def score_kept(stored) -> Any:
    """As a server, with room for all features."""
    return scanner(stored, 1 << 20)


def same_bits(one: Tally, other: Tally) -> bool:
    """Whether everything that an answer shows is equal."""
    histograms = ({key: counts.tolist() for key, counts in tally.histogram.items()} for tally in (one, other))
    return (one.ends, one.spreads, one.sample, next(histograms)) == (
        other.ends, other.spreads, other.sample, next(histograms)
    )  # fmt: skip


def question(seed: int, methods: tuple[str, ...], top: int, names: tuple[str, ...] = ("question",)) -> SolvedQuestion:
    rng = np.random.default_rng(seed)
    phi = {(m, name): rng.standard_normal(K) for m in methods for name in names}
    groups = {key: rng.standard_normal((4, K)) for key in phi}
    return SolvedQuestion(
        run=SimpleNamespace(  # pyright: ignore[reportArgumentType]
            prepared=SimpleNamespace(config=SimpleNamespace(concepts=[SimpleNamespace(name=n) for n in names], top=top))
        ),
        queries={(m, name): MethodQuery(m, name, own, ()) for (m, name), own in phi.items()},
        solutions={
            m: SolveResult(
                method=m, count=ROWS, trace=1.0, lam=1.0, damping=DampingChoice(1.0), file=ListedFile("any", 0, ""),
                z=np.stack([2 * phi[m, name] for name in names]), residual=(0.0,) * len(names),
                spread=((2.0, 1.0),) * len(names), groups=tuple(groups[m, name] for name in names),
            )
            for m in methods
        },
        seconds={},
    )  # fmt: skip


def require_alike(tally: Tally, alone: Tally) -> None:
    """The same samples in the same order, with scores to the rounding of float32."""
    assert tally.ends.keys() == alone.ends.keys()
    for key, ends in tally.ends.items():
        for entries, others in ((ends.top, alone.ends[key].top), (ends.bottom, alone.ends[key].bottom)):
            assert [entry[1:] for entry in entries] == [other[1:] for other in others]
            np.testing.assert_allclose([e[0] for e in entries], [e[0] for e in others], rtol=1e-5)
        assert tally.histogram[key].sum() == ROWS
        assert np.abs(tally.histogram[key] - alone.histogram[key]).sum() <= 2, "at most one score changed its bin"
    assert tally.sample.keys() == alone.sample.keys()
    for key, scores in tally.sample.items():
        assert len(scores) == ROWS, "a data set of so few samples is compared by all of them"
        np.testing.assert_allclose([*scores.values()], [alone.sample[key][s] for s in scores], rtol=1e-4, atol=1e-4)
    assert tally.spreads.keys() == alone.spreads.keys()
    for key, spread in tally.spreads.items():
        for entry in tally.ends[key].top:
            np.testing.assert_allclose(
                spread.groups[entry[1]], alone.spreads[key].groups[entry[1]], rtol=1e-4, atol=1e-4
            )
        assert spread.reliability == pytest.approx(alone.spreads[key].reliability, rel=1e-4)


def test_questions_with_one_name_and_other_methods_and_ends_are_kept_apart(score):
    """Against a pass for each, which is that of an audit."""
    questions = [
        question(1, METHODS, 5), question(2, ("second",), 3), question(3, METHODS, 5, ("question", "another")),
    ]  # fmt: skip
    tallies = shared_tallies(questions, score)
    for own, tally in zip(questions, tallies, strict=True):
        (alone,) = shared_tallies([own], score)
        require_alike(tally, alone)
        assert {len(ends.top) for ends in tally.ends.values()} == {own.top}


def test_a_question_by_itself_has_the_bits_of_a_scan(score):
    own, tally = question(1, METHODS, 5), Tally(5)
    for method in METHODS:
        for result in score(method, own.columns(method), 5):
            tally.add(result)
    (alone,) = shared_tallies([own], score)
    assert alone.ends == tally.ends
    assert alone.spreads == tally.spreads


ODD = [question(0, METHODS, 5), question(1, METHODS, 5, ("question", "another")), question(2, ("second",), 5)]


def test_kept_features_give_the_scores_of_an_audit_to_rounding(score, score_kept):
    for tally, audited in zip(shared_tallies(ODD, score_kept), shared_tallies(ODD, score), strict=True):
        require_alike(tally, audited)


@pytest.mark.skipif(not FIXED_BITS, reason="known of MKL's products on AVX-512")
def test_an_answer_from_kept_features_does_not_depend_on_the_questions_that_share_its_pass(score_kept):
    """Every bit of it, at every place among sixteen questions."""
    batch = [*ODD, *(question(seed, METHODS, 5) for seed in range(3, 16))]
    alone = [shared_tallies([own], score_kept)[0] for own in batch]
    for numbers in (range(15, -1, -1), range(1, 5)):
        tallies = shared_tallies([batch[number] for number in numbers], score_kept)
        for number, tally in zip(numbers, tallies, strict=True):
            assert same_bits(tally, alone[number])
