"""A row of the paper's tables on its published data: `python -m jobs.published set=celeba|abc root=<folder> ...`.

Reads the data set as it was published, writes it once as Parquet, audits it for every query of the benchmark, and
prints the table's numbers. Every key of an audit is one here; the same command goes on where it stopped.
"""

import json
from pathlib import Path

from concept_trak import UserError
from concept_trak.evaluation.published import SETS, PublishedConfig, published_scores
from jobs.audit import AuditRunConfig, audit
from jobs.configure import main


def published(config: PublishedConfig, run: AuditRunConfig = AuditRunConfig()) -> int:
    """The data, the audit and the table."""
    if config.set not in SETS or not config.root:
        raise UserError(
            f"set={config.set!r}, root={config.root!r}; expected set={' or '.join(SETS)} and the folder of the data set"
        )
    if away := [f"{key}={value}" for key in ("root", "out") if "://" in (value := getattr(config, key))]:
        raise UserError(f"{', '.join(away)}: expected a folder of this machine; only store= may be elsewhere")
    whole, asked, measure = SETS[config.set](config)
    audit(whole, run)
    if not run.preflight:
        rows = list(published_scores(whole, asked, measure))
        for row in rows:
            value = f"{row['measure']} {row['value']:.3f} over {row['queries']} queries"
            print(f"{row['method']:<14} {row['cell']:<4} {value}")
        Path(f"{whole.data.uri}.{whole.audit}.json").write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    main(published, "published", PublishedConfig, AuditRunConfig)
