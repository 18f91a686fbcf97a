"""What the files and columns of an audit are called, below `audits/<audit>/`; one folder per method."""


def gram_file(method: str) -> str:
    return f"{method}/gram.safetensors"


def query_file(method: str, concept: str) -> str:
    return f"{method}/queries/{concept}.parquet"


def scores_file(method: str, shard: str) -> str:
    return f"{method}/scores/{shard}.parquet"


def sums_file(method: str, shard: str) -> str:
    """Sums over consecutive shards, named by the first."""
    return f"{method}/sums/{shard}.parquet"


def groups_file(method: str, kind: str) -> str:
    """`kind` is source, label or word."""
    return f"{method}/by_{kind}.parquet"


def beside_report(name: str) -> str:
    """Concept pages, thumbnails, originals and the query's pictures, where the report is not one file."""
    return f"report/{name}"


def plain(concept: str) -> str:
    """The column of the plain inner product phi_q . phi_i, beside the damped one."""
    return f"{concept}~plain"
