"""The benchmark for a GPU on a CPU, at a size at which it says nothing about speed: that every line runs."""

import json

import pytest

from tests.benchmarks import gpu


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap over fused attention, the authors' way
@pytest.mark.parametrize("size", ["tiny", "tiny-flux", pytest.param("tiny-sdxl", marks=pytest.mark.soak)])
def test_every_line_runs_without_a_gpu(size, tmp_path, monkeypatch):
    kinds = ("", "mask", "kronecker", "sketch") if size == "tiny" else ("sketch",)
    for name in ("LINES", "LORA_LINES"):
        lines = [line for line in getattr(gpu, name) if line.what in ("forward", "authors") or line.kind in kinds]
        monkeypatch.setattr(gpu, name, [line for line in lines if not line.option or line.what == "forward"])
    monkeypatch.setattr(gpu, "AGREEING", 8)
    page = gpu.main(
        ["--size", size, "--device", "cpu", "--batch", "2", "--rounds", "1", "--precision", "float32", "--out",
         str(tmp_path)]
    )  # fmt: skip
    found = json.loads((tmp_path / f"{size}.json").read_text())
    lines = gpu.LORA_LINES if size == "tiny-flux" else [line for line in gpu.LINES if line.option != "compile"]
    assert len(found["lines"]) == len(lines)
    assert float(found["Spearman of scores with float32"]) == 1, "float32 does not agree with itself"
    for line in found["lines"]:
        if size != "tiny" and line["what"] == "authors":
            assert line["left_out"] == "written for a condition of text alone"
            continue
        assert line["per_second"] > 0, f"a line was left out: {line}"
        if line["what"] == "stage":
            assert 0 < line["waiting"] < 1
        else:
            assert line["of_ceiling"] > 0, "operations were not counted"
    text = page.read_text()
    assert "no figure of this page is about a GPU" in text


def test_time_that_is_up_leaves_lines_out_and_says_so(tmp_path):
    arguments = [
        "--size",
        "tiny",
        "--device",
        "cpu",
        "--precision",
        "float32",
        "--minutes",
        "0",
        "--out",
        str(tmp_path),
    ]
    assert gpu.main(arguments).read_text().count("| time |") == sum(line.option != "compile" for line in gpu.LINES)
