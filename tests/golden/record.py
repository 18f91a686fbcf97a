"""The golden record: what every row of `METHODS` gives on 8 images of the demo, as digests and as numbers.

`python -m tests.golden.record` writes it anew; do so only where numbers are meant to change, and say why. It reads
files with pyarrow alone, so that it holds whatever the library's own readers are called.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq
import torch

from concept_trak.audit import gram_tree
from jobs.configure import configure_all
from jobs.shapes import ShapesConfig, shapes

ROOT = Path(__file__).resolve().parent.parent.parent
RECORD = Path(__file__).with_name("record.json")
CONCEPT = "{name: red, prompt: a red triangle, without_prompt: a triangle, samples: 1, truth: {colour: red}}"
METHODS = ("trak", "d_trak", "das", "concept_a", "concept_b", "concept_c", "concept_trak", "caption_trak", "fit_trak",
           "tempered_trak")  # fmt: skip
DECIDED_BY_PLACE = ("concept_trak.shard",)
"""Keys of a part's footer that name where the images lie."""
UNCUT = 1 << 256
"""Where Grams are cut depends on the folder and the times of the images. Uncut, their sum has one order."""


def computed(folder: Path) -> dict[str, Any]:
    """Run the audit below `folder`, in this process, and read what it left."""
    from concept_trak.config import AuditConfig
    from jobs.audit import AuditRunConfig, audit

    shapes(ShapesConfig(str(folder / "shapes"), rows=8, files=2))
    arguments = ["--config-name", "demo", f"store={folder}/store", f"data.uri={folder}/shapes", "cluster=serial",
                 f"method=[{','.join(METHODS)}]", f"concepts=[{CONCEPT}]", "top=8", "shown=2"]  # fmt: skip
    with patch.object(gram_tree, "FAN", UNCUT):
        assert audit(*configure_all((AuditConfig, AuditRunConfig), "config", arguments)) == 0
    return read(folder / "store")


def read(store: Path) -> dict[str, Any]:
    """Digests and numbers of the parts by method, and of top.parquet."""
    audit = store / "audits" / "demo"
    prints = json.loads((audit / "manifest.json").read_text())["settings"]["fingerprints"]
    parts = {m: [part(p) for p in sorted((store / "features" / fp / "parts").iterdir())] for m, fp in prints.items()}
    top = pq.read_table(audit / "top.parquet").drop_columns(["source"]).to_pylist()
    return {"processor": processor(), "fingerprints": prints, "parts": parts, "top": digest(json.dumps(top).encode()),
            "scores": [[r["concept"], r["method"], r["form"], r["end"], r["sample_id"], r["score"]] for r in top
                       if r["rank"] <= 3]}  # fmt: skip


def part(path: Path) -> dict[str, Any]:
    """One part: a digest over every column's bytes and its footer, and the norm of every feature."""
    table = pq.read_table(path).combine_chunks()
    footer = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()
              if k.decode() not in DECIDED_BY_PLACE}  # fmt: skip
    text = json.dumps([sorted(footer.items()), [str(f) for f in table.schema], table["sample_id"].to_pylist()])
    columns = [buffer.to_pybytes() for name in ("weight", "scale", "feature") for chunk in table[name].chunks
               for buffer in chunk.buffers() if buffer is not None]  # fmt: skip
    return {"sha256": digest(text.encode(), *columns), "norms": [round(n, 9) for n in table["scale"].to_pylist()]}


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def processor() -> str:
    """What decides how sums are rounded: the processor, and what torch uses of it."""
    model = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.split(":")[0].strip() in ("model name", "cpu family", "model")][:3]  # fmt: skip
    return f"{' / '.join(model)}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        RECORD.write_text(json.dumps(computed(Path(folder)), indent=1) + "\n")
