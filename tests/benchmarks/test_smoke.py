"""The benchmark itself, at a size at which it says nothing about speed: that it measures what it says it does."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np
import pytest

from tests.benchmarks import page, seat
from tests.benchmarks.agreement import least_cosine, spearman
from tests.benchmarks.claims import FIXED, claims, same_features
from tests.benchmarks.contest import Seat, Standing, hold
from tests.benchmarks.contestants import AUTHORS, MASK, PLAIN, RIVALS, Contestant, entered
from tests.benchmarks.seat import Answer, Measured, Ready
from tests.benchmarks.work import MODELS, ROOT, TASKS, smaller

FIELDS = {
    *("task", "contestant", "failed", "group", "agreement", "rounds", "samples", "digest", "k", "cpu", "wall"),
    *("per_cpu_second", "of_floor", "peak", "stored", "every_cpu", "every_wall"),
}
N = 4


@pytest.fixture
def here(monkeypatch) -> Iterator[Seat]:
    """Seats in this process: nothing is forked, everything else is as always.

    Threads share PyTorch's random numbers, which processes do not, so no two draw their work at once.
    """
    lock, draw, called = threading.Lock(), seat.draw, []

    def alone(*args):
        with lock:
            return draw(*args)

    def sit(contestant: Contestant) -> tuple[Connection, Callable[[], None]]:
        ours, theirs = Pipe()
        thread = threading.Thread(target=seat.serve, args=(theirs,))
        called.append((ours, thread))
        thread.start()
        return ours, ours.close

    monkeypatch.setattr(seat, "draw", alone)
    yield sit
    for connection, thread in called:
        connection.close()
        thread.join()


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap's slow path, which is the authors' way
def test_a_contest_of_two(here, monkeypatch):
    """Ours and the authors' way at the gradient stage, with the mask in common, at two of its nine states."""
    task = TASKS["states"]
    monkeypatch.setitem(TASKS, "states", replace(task, probe=replace(task.probe, times=(300, 700))))
    asked = [one for one in entered("tiny") if one.task == "states" and one.name in (MASK, AUTHORS)]
    wrong = Contestant("nobody", "states", "floors", "passes", {"no such": "setting"})
    present = hold(here, smaller(MODELS["tiny"], N), [*asked, wrong], rounds=1)
    ours, authors, failed = lines = page.rows(present)
    assert set(ours) == set(authors) == FIELDS
    assert ours["digest"] == authors["digest"], "contestants got other weights or samples"
    assert ours["samples"] == authors["samples"] == N
    assert failed["failed"].startswith("TypeError"), "a contestant that cannot run stays in the table with the reason"
    cosine = same_features(present)["states"]
    assert cosine > 0.999, f"ours and the authors' features differ ({cosine:.6f}): not the same losses, norms or mask"
    assert ours["agreement"] == pytest.approx(authors["agreement"], abs=0.2), "equal features rank alike"
    assert ours["k"] == authors["k"] == 4096
    (claim,) = claims("tiny", present)
    assert claim.target.what.startswith("the authors' gradient stage")
    text = page.text({"tiny": lines}, [claim], {"tiny": {"states": cosine}}, page.conditions("smoke"))
    assert all(name in text for name in (MASK, AUTHORS, "nobody", "failed: TypeError"))


def test_unprojected_gradients_agree_with_the_truth(here):
    """The oracle against the library's identity projector, beside a floor, which has nothing to agree with."""
    floor = Contestant(PLAIN, "rows", "floors", "passes", {"backward": True})
    exact = Contestant("ours: identity", "rows", "ours", "projected", {"kind": "identity", "dim": 1})
    present = hold(here, smaller(MODELS["tiny"], N), [floor, exact], rounds=1)
    plain, ours = page.rows(present)
    assert (plain["of_floor"], plain["k"], plain["agreement"]) == (1, None, None)
    assert ours["agreement"] == pytest.approx(1, abs=1e-12), "truth and library rank unprojected gradients differently"


def test_agreement_is_spearmans():
    """1 - 6 sum d^2 / (n (n^2 - 1)) without ties, own scores left out; scores and features are held alike."""
    truth = np.array([[9.0, 1.0, 2.0, 3.0, 4.0]])
    scores = np.array([[0.0, 1.0, 3.0, 2.0, 4.0]])
    assert spearman(Answer(None, scores, None), truth) == pytest.approx(1 - 6 * 2 / (4 * 15))
    features = np.array([[1.0, 0.0], [0.1, 5.0], [0.3, 1.0], [0.2, 2.0], [0.4, 9.0]])
    assert spearman(Answer(features, None, None), truth) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert spearman(Answer(None, None, None), truth) is None
    with pytest.raises(AssertionError, match="no order to agree with"):
        spearman(Answer(features, None, None), np.zeros((1, 5)))
    assert least_cosine(np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[2.0, 0.0], [1.0, 0.0]])) == pytest.approx(
        0.5**0.5
    )


def test_a_claim_is_a_median_of_ratios_a_sample():
    def standing(key: str, samples: int, *cpu: float) -> Standing:
        task, name = key.split("/")
        rounds = [Measured(c, c, 0) for c in cpu]
        one = Contestant(name, task, "rivals.x" if name == "r" else "ours", "dense")
        return Standing(one, ready=Ready("", samples, 0, ""), rounds=rounds)

    cheaper = next(one for one in FIXED if one.least == 12)
    present = [standing(cheaper.ours, 8, 1.0, 1.0, 1.0), standing(cheaper.theirs, 4, 5.0, 7.0, 6.0)]
    (claim,) = claims("m", present)
    assert (claim.ratio, claim.range, claim.met) == (12.0, (10.0, 14.0), True)
    found = claims("m", [standing("rows/a", 4, 3.0), standing("rows/b", 4, 2.0), standing("rows/r", 4, 3.0, 9.0)])
    assert [(one.target.ours, one.target.theirs, one.ratio) for one in found] == [("rows/b", "rows/r", 1.5)] * 2


def test_everybody_is_entered_once():
    for model in MODELS:
        keys = [one.key for one in entered(model)]
        assert len(set(keys)) == len(keys)
        assert {one.ours for one in FIXED} | {one.theirs for one in FIXED} <= set(keys), "a target names nobody"
    listed = (ROOT / "tests/benchmarks/rivals.txt").read_text()
    for rival in RIVALS:
        name = rival.module.removeprefix("rivals.").replace("_", "-")
        assert f"\n{name}==" in listed, f"{name} competes, but rivals.txt does not install it"


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_the_command(tmp_path):
    """Real processes, real rivals where their environment has been made; a page with everybody on it."""
    command = [sys.executable, "-m", "tests.benchmarks", "--models", "tiny", "--rounds", "1", "--samples", "4"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, env={**os.environ}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    text = (tmp_path / "speed.md").read_text()
    assert all(one.name in text for one in entered("tiny"))
