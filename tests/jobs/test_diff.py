"""Two audits compared: by hand on made-up tops, and for real over data that grew."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from concept_trak.audit.diff import Difference, Move, cosine, moves
from concept_trak.data.benchmarks.synthetic import write_synthetic
from jobs.diff import DiffConfig, diff
from jobs.verify import VerifyConfig, verify
from tests.configured import configure
from tests.jobs.world import RESOLUTION, files_under


def top(*samples: tuple[str, int, float]) -> list[dict]:
    return [
        {"sample_id": i, "rank": rank, "score": score, "source": "a", "row": row, "caption": i.upper()}
        for rank, (i, row, score) in enumerate(samples, 1)
    ]


def test_moves_by_hand():
    data = {"x": "same", "y": "removed", "z": "new"}
    found = tuple(moves(top(("x", 0, 3.0), ("y", 1, 2.0)), top(("z", 2, 4.0), ("x", 0, 2.5)), data))
    assert found == (
        Move("z", "entered", None, 1, None, 4.0, "new", "Z"),
        Move("x", "stayed", 1, 2, 3.0, 2.5, "same", "X"),
        Move("y", "left", 2, None, 2.0, None, "removed", "Y"),
    )
    difference = Difference("c", "m", "damped", found, None)
    assert [difference.count(c) for c in ("entered", "left", "stayed")] == [1, 1, 1]
    assert [difference.share(d) for d in ("new", "same", "removed")] == [0.5, 0.5, 0.0], "who left does not count"


def test_equal_tops_have_no_moves_and_no_new_data():
    same = top(("x", 0, 3.0), ("y", 1, 2.0))
    assert {m.change for m in moves(same, same, dict.fromkeys("xy", "same"))} == {"stayed"}
    assert Difference("c", "m", "damped", (), None).share("new") == 0.0


def test_the_cosine_of_features():
    a = np.array([3.0, 4.0])
    assert cosine(a, 7 * a) == pytest.approx(1.0)
    assert cosine(a, np.array([4.0, -3.0])) == pytest.approx(0.0)
    assert cosine(a, np.zeros(2)) is None


@pytest.fixture(scope="module")
def weeks(world, tmp_path_factory):
    """Two audits on one store; between them the data grew by one file of 8 rows."""
    root = tmp_path_factory.mktemp("weeks")
    data = shutil.copytree(world.root / "few", root / "data")
    first = world.audit(root / "store", "audit=week-1", f"data.uri={data}")
    standing = files_under(root / "store")
    write_synthetic(root / "more", 24, seed=1, files=1, resolution=RESOLUTION)
    (source,) = (root / "more").iterdir()
    pq.write_table(pq.read_table(source).slice(16), data / "z-more.parquet")  # ids that are not there yet
    second = world.audit(root / "store", "audit=week-2", f"data.uri={data}")
    assert (first.code, second.code) == (0, 0)
    return root / "store", standing


def compare(store, before, after) -> int:
    return diff(configure(DiffConfig, "diff", [f"store={store}", f"before={before}", f"after={after}"]))


def test_a_grown_data_set_computes_only_its_new_shard_and_the_difference_says_so(weeks, capsys):
    store, standing = weeks
    parts = {name: time for name, time in files_under(store).items() if "/parts/" in name}
    old = {name for name in standing if "/parts/" in name}
    assert (len(old), len(parts)) == (2, 3)
    assert old < set(parts)
    assert all(parts[name] == standing[name] for name in old), "a part that stood was written again"
    assert compare(store, "week-1", "week-2") == 0
    folder = store / "audits/week-2"
    rows = pq.read_table(folder / "diff-week-1.parquet").to_pylist()
    tops = [pq.read_table(store / f"audits/{week}/top.parquet").to_pylist() for week in ("week-1", "week-2")]
    for form in ("damped", "plain"):
        before, after = ({r["sample_id"]: r for r in t if (r["form"], r["end"]) == (form, "top")} for t in tops)
        mine = {r["sample_id"]: r for r in rows if r["form"] == form}
        assert {i for i, r in mine.items() if r["change"] == "entered"} == set(after) - set(before)
        assert {i for i, r in mine.items() if r["change"] == "left"} == set(before) - set(after)
        assert all(r["rank_after"] == (after[i]["rank"] if i in after else None) for i, r in mine.items())
        assert {i for i, r in mine.items() if r["data"] == "new"} == {
            i for i in after if "z-more" in after[i]["source"]
        }
        assert {r["data"] for r in mine.values()} == {"same", "new"}
    summary = pq.read_table(folder / "diff-week-1.summary.parquet").to_pylist()
    assert all(row["query_cosine"] == pytest.approx(1.0) for row in summary), "the model is the same"
    assert all(0 < row["new_share"] < 1 for row in summary)
    assert "triangle by caption_trak: " in capsys.readouterr().out
    written = files_under(store)
    assert compare(store, "week-1", "week-2") == 0
    assert files_under(store) == written, "a second time changes nothing"
    assert verify(VerifyConfig(str(store))) == 0, "what is not in the manifest is taken for damage"


def test_mistakes_are_one_message(weeks, world, tmp_path):
    store = shutil.copytree(weeks[0], tmp_path / "store")
    with pytest.raises(ValueError, match="has no audit 'week-3'"):
        compare(store, "week-1", "week-3")
    with pytest.raises(ValueError, match="are the same audit"):
        compare(store, "week-1", "week-1")
    with pytest.raises(ValueError, match="give the two audits"):
        diff(DiffConfig(str(store), "week-1"))
    settings = store / "audits/week-1/audit.yaml"
    earlier = settings.read_text().replace("  conditioning_image: ''\n", "")
    assert earlier != settings.read_text(), "the test removes a setting that an earlier version did not have"
    settings.write_text(earlier)
    assert compare(store, "week-1", "week-2") == 0
    settings.write_text(settings.read_text().replace("name: triangle", "name: other"))
    with pytest.raises(ValueError, match="no question in common"):
        compare(store, "week-1", "week-2")
    for since, why in (("week-3", "has no audit"), ("third", "this audit itself"), ("week-1", "no question in common")):
        with pytest.raises(ValueError, match=why):
            world.audit(store, "audit=third", f"since={since}", data="few")
    assert not (store / "audits/third").exists(), "what cannot be compared is said before anything begins"
    (store / "audits/week-1/manifest.json").unlink()
    with pytest.raises(ValueError, match="week-1 is not finished"):
        compare(store, "week-1", "week-2")


def test_of_a_file_that_was_written_anew_only_what_changed_counts_as_changed(world, tmp_path):
    """The file's version is another, so both shards are; its rows: one caption changed, one gone, one added."""
    data = shutil.copytree(world.root / "few", tmp_path / "data")
    (source,) = data.iterdir()
    table = pq.read_table(source)
    rows, more = table.to_pylist(), {"image": table.to_pylist()[0]["image"]}
    ids = [row["id"] for row in rows]
    assert world.audit(tmp_path / "store", "audit=week-1", f"data.uri={data}", "data.id_column=id").code == 0
    changed = [{**rows[0], "caption": rows[0]["caption"] + " again"}, *rows[2:], {**rows[1], "id": "added"} | more]
    pq.write_table(pa.Table.from_pylist(changed, table.schema), source)
    found = world.audit(tmp_path / "store", "audit=week-2", f"data.uri={data}", "data.id_column=id")
    assert found.code == 0
    assert compare(tmp_path / "store", "week-1", "week-2") == 0
    moved = pq.read_table(found.folder / "diff-week-1.parquet").to_pylist()
    told = {row["sample_id"]: row["data"] for row in moved if row["form"] == "damped"}
    assert told == dict.fromkeys(ids, "same") | {ids[0]: "changed", ids[1]: "removed", "added": "new"}
    (summary, _) = pq.read_table(found.folder / "diff-week-1.summary.parquet").to_pylist()
    assert (summary["new_share"], summary["changed_share"]) == pytest.approx((1 / 16, 1 / 16))
