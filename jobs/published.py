"""Run a row of the paper's tables on its published data: `python -m jobs.published set=celeba|abc root=<folder> ...`.

Reads the data set as it was published, writes it once as Parquet, audits it for every query of the benchmark, and
prints the table's numbers. All keys of an audit can be set; the same command resumes.
"""

from concept_trak.config import AuditConfig
from concept_trak.evaluation.published import PublishedConfig, published_benchmark, write_published_scores
from jobs.audit import AuditRunConfig, audit
from jobs.configure import main


def published(config: PublishedConfig, settings: AuditConfig, run: AuditRunConfig = AuditRunConfig()) -> int:
    """Write the data, run the audit and print the table."""
    benchmark = published_benchmark(config, settings)
    audit(benchmark.audit, run)
    if not run.preflight:
        print("\n".join(write_published_scores(benchmark)))
    return 0


if __name__ == "__main__":
    main(published, "published", PublishedConfig, AuditConfig, AuditRunConfig)
