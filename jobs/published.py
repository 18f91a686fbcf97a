"""Run a row of the paper's tables on its published data: `python -m jobs.published set=celeba|abc root=<folder> ...`.

Reads the data set as it was published, writes it once as Parquet, audits it for every query of the benchmark, and
prints the table's numbers. All keys of an audit can be set; the same command resumes.
"""

import json
from pathlib import Path

from concept_trak.config import AuditConfig
from concept_trak.evaluation.published import PublishedConfig, published_benchmark, published_scores
from jobs.audit import AuditRunConfig, audit
from jobs.configure import main


def published(config: PublishedConfig, settings: AuditConfig, run: AuditRunConfig = AuditRunConfig()) -> int:
    """Write the data, run the audit and print the table."""
    benchmark = published_benchmark(config, settings)
    audit(benchmark.audit, run)
    if not run.preflight:
        rows = list(published_scores(benchmark))
        for row in rows:
            value = f"{row['measure']} {row['value']:.3f} over {row['queries']} queries"
            print(f"{row['method']:<14} {row['cell']:<4} {value}")
        Path(f"{benchmark.audit.data.uri}.{benchmark.audit.audit}.json").write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    main(published, "published", PublishedConfig, AuditConfig, AuditRunConfig)
