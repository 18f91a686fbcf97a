"""A worker of its own, so that its memory is its own: every shard of an audit, and the most it ever held.

`python -m tests.s3.streamed key=value ...` prints samples, bytes at the start of the work, and peak bytes.
"""

import sys

from cluster.executor import Attempt
from concept_trak.audit.featurize import FeaturizeTask, FeaturizeWorker
from concept_trak.audit.peak_memory import PeakMemory
from concept_trak.audit.prepare import prepare
from concept_trak.config import AuditConfig
from tests.configured import configure

if __name__ == "__main__":
    p = prepare(configure(AuditConfig, "config", sys.argv[1:]))
    worker, planned, rows = FeaturizeWorker(p.work), PeakMemory.so_far().host, 0
    for shard in p.plan:
        rows += sum(
            record.rows for record in worker(FeaturizeTask(tuple(p.config.methods), shard), Attempt(1, 0)).records
        )
    print(rows, planned, PeakMemory.so_far().host)
