"""What a submission uploads, and what it says of it when that is large."""

import io
import shutil
from pathlib import Path
from zipfile import ZipFile

import pytest
from ray._private.runtime_env.packaging import create_package

import concept_trak
from cluster import submission
from cluster.executor import UserError
from cluster.source import NEVER_SHIPPED
from cluster.upload import Upload, measure_upload
from jobs import configure, submitted_audits


@pytest.fixture
def folder(tmp_path) -> Path:
    sizes = {"a.py": 10, "models/one.bin": 3_000_000, "models/two.bin": 2_000_000, "docs/page.md": 500_000,
             "results/huge.bin": 9_000_000, "s3.env": 50, "ignored.tmp": 1_000_000}  # fmt: skip
    for name, size in sizes.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / ".gitignore").write_text("*.tmp\n")
    return tmp_path


def test_it_is_what_ray_packs(folder, tmp_path_factory):
    excludes = ["/results", *NEVER_SHIPPED]
    upload = measure_upload(folder, excludes)
    packed = tmp_path_factory.mktemp("packed") / "package.zip"
    create_package(str(folder), packed, include_gitignore=True, excludes=excludes)
    assert {i.filename: i.file_size for i in ZipFile(io.BytesIO(packed.read_bytes())).infolist() if not i.is_dir()} == (
        upload.files
    )
    assert set(upload.files) == {"a.py", "models/one.bin", "models/two.bin", "docs/page.md", ".gitignore"}


def test_the_largest_folders_and_files_are_named(folder):
    text = str(measure_upload(folder, ["/results", *NEVER_SHIPPED]))
    assert text.startswith("5.5 MB in 5 files: models/ (5.0 MB), docs/ (0.5 MB), ")
    assert "the largest files are models/one.bin (3.0 MB), models/two.bin (2.0 MB), docs/page.md (0.5 MB)" in text


class Refusing:
    """A Jobs API that takes no package of this size."""

    def list_jobs(self):
        return []

    def submit_job(self, **job):
        raise RuntimeError("Package size (9.00MiB) exceeds the maximum size of 8.00MiB")


def test_a_refused_submission_says_what_is_large(folder):
    with pytest.raises(UserError, match=r"too large .* largest file is models/one.bin \(3 MB\).* models/ \(5.0 MB\)"):
        submission.submit(Refusing(), "week", ["true"], str(folder), {}, ["/results"])  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "lines"), [(10**9, 1), (10**6, 0)])
def test_submit_prints_what_is_large_before_it_is_sent(monkeypatch, capsys, size, lines):
    monkeypatch.setattr(submitted_audits, "measure_upload", lambda folder, excludes: Upload({"assets/model.bin": size}))
    monkeypatch.setattr(submitted_audits, "checked", lambda arguments: ("week-1", []))
    monkeypatch.setattr(submission, "client", lambda address: None)
    monkeypatch.setattr(submission, "submit", lambda *arguments: "week-1-1")
    assert submitted_audits.submit_audit("http://head:8265", [], "python", []) == ("week-1", "week-1-1")
    assert capsys.readouterr().out.count("upload     1000.0 MB in 1 files: assets/ (1000.0 MB)") == lines


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout with a configuration and a few files of the user's own; git is told to ignore some of them."""
    shutil.copytree(configure.CONF, tmp_path / "conf")
    (tmp_path / "conf/mine.yaml").write_text(
        "defaults: [config, override model: mine, _self_]\nmodel: {negative: empty}\n"
    )
    (tmp_path / "conf/model/mine.yaml").write_text("path: s3://models/one\n")
    for name in ("pictures/a.png", "pictures/.cache/b", "results/old/c.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for module in (configure, submitted_audits):
        monkeypatch.setattr(module, "CONF", tmp_path / "conf")
    return tmp_path


GIVEN = ["--config-name", "mine", "audit=week-1", "store=s3://b/r", "method=trak", "data.uri=s3://b/train"]
TEXT = "concepts=[{name: red, prompt: a red square, without_prompt: a square}]"
EXAMPLES = "concepts=[{name: red, examples: [pictures]}]"


@pytest.mark.parametrize(
    ("ignored", "arguments", "named"),
    [
        ("mine.yaml", [TEXT], "conf/mine.yaml, conf/model/mine.yaml would not reach the cluster"),
        ("/conf/model/mine.yaml", [TEXT], "conf/model/mine.yaml would not reach"),
        ("conf/model/mine.yaml", [TEXT], "a line such as !conf/model/mine.yaml"),
        ("*.png", [EXAMPLES], "pictures/a.png would not reach the cluster, because .gitignore or .rayignore names it"),
        ("", [TEXT, "data.uri=results/old", "cluster=local"], "results/old/c.parquet would not reach the cluster"),
        ("", [TEXT, "data.uri=../elsewhere", "cluster=local"], "../elsewhere/d.parquet would not reach the cluster"),
    ],
)
def test_a_file_that_the_job_needs_and_that_is_not_sent_is_named_before(checkout, ignored, arguments, named):
    (checkout / ".gitignore").write_text(ignored)
    (checkout.parent / "elsewhere").mkdir(exist_ok=True)
    (checkout.parent / "elsewhere/d.parquet").write_bytes(b"")
    with pytest.raises(concept_trak.UserError) as error:
        submitted_audits.checked([*GIVEN, *arguments])
    assert named in str(error.value)


def test_a_file_of_concepts_is_sent_or_named(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    (checkout / "mine.json").write_text('[{"name": "red", "prompt": "a red square", "without_prompt": "a square"}]')
    arguments = [*GIVEN, "concepts=mine.json"]
    assert submitted_audits.checked(arguments)[0] == "week-1"
    (checkout / ".gitignore").write_text("mine.json")
    with pytest.raises(concept_trak.UserError, match=r"^mine\.json would not reach the cluster"):
        submitted_audits.checked(arguments)


@pytest.mark.parametrize(
    "ignored", ["", "*.parquet\nconf/weekly.yaml", "mine.yaml\n!/conf/mine.yaml\n!/conf/model/mine.yaml"]
)
@pytest.mark.parametrize("concepts", [TEXT, EXAMPLES])
def test_what_is_sent_or_not_needed_is_no_mistake(checkout, ignored, concepts):
    (checkout / ".gitignore").write_text(ignored)
    assert submitted_audits.checked([*GIVEN, concepts])[0] == "week-1"
