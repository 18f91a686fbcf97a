"""The page over all audits of a store, `audits/index.html`: a hint, written anew whenever an audit ends or goes."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import yaml

from concept_trak.report.index import Entry, render_index
from concept_trak.store.commit import Store
from concept_trak.store.manifest import Audit, given_up, manifest
from concept_trak.store.records import READERS

INDEX = "audits/index.html"


def write_index(store: Store) -> None:
    """From the manifests of the audits that are there, and the pages of differences beside them."""
    names: dict[str, list[str]] = {}
    for parts in (name.split("/") for name in store.names("audits")):
        if len(parts) > 2:
            names.setdefault(parts[1], []).append("/".join(parts[2:]))
    with ThreadPoolExecutor(READERS) as readers:
        entries = readers.map(lambda pair: _entry(Audit(store, pair[0]), pair[1]), names.items())
        page = render_index([entry for entry in entries if entry is not None]).encode()
    if store.size(INDEX) != len(page) or store.read(INDEX) != page:
        store.replace(INDEX, page)


def _entry(audit: Audit, files: Iterable[str]) -> Entry | None:
    """None for one that is not finished, is being removed, or holds no report: a benchmark's, or a damaged one."""
    try:
        done = manifest(audit)
        if done is None or given_up(audit) or "report.html" not in done["files"]:
            return None
        settings = yaml.safe_load(audit.store.read(audit.name("audit.yaml")))
        methods = tuple(settings["methods"])
        first = done["settings"]["fingerprints"][methods[0]]
        samples = sum(part["rows"] for part in done["parts"] if f"/{first}/" in part["name"])
        concepts = tuple(concept["name"] for concept in settings["concepts"])
        compared = sorted(f.removeprefix("diff-").removesuffix(".html") for f in files if _is_page(f))
        return Entry(audit.id, done["finished"], samples, concepts, methods, tuple(compared))
    except (FileNotFoundError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None  # `jobs.verify` says what is wrong with it


def _is_page(file: str) -> bool:
    return file.startswith("diff-") and file.endswith(".html")
