"""What the dashboard and the alerts ask Prometheus for is what an audit records, all of it and nothing else."""

import json
import re
from collections.abc import Iterator

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from jobs.metrics import METRICS
from serving.metrics import ServerMeter
from tests.infra.manifests import ROOT

FOLDER = ROOT / "infra/prometheus"
BOARD = json.loads((FOLDER / "dashboard.json").read_text())
RULES, SERVER_RULES = (group["rules"] for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"])
SERVED = {f"ray_{name}" + "_total" * (metric.kind == "counter"): metric for name, metric in METRICS.items()}
QUERIES = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]


def selectors(node) -> Iterator[promql_parser.VectorSelector]:
    """Every series that a parsed query names."""
    match node:
        case promql_parser.VectorSelector():
            yield node
        case promql_parser.MatrixSelector():
            yield node.vector_selector
        case promql_parser.Call():
            for argument in node.args:
                yield from selectors(argument)
        case promql_parser.BinaryExpr():
            yield from selectors(node.lhs)
            yield from selectors(node.rhs)
        case promql_parser.NumberLiteral():
            return
        case _:
            yield from selectors(node.expr)


def asked(query: str) -> dict[str, set[str]]:
    """The names of the series of a query, and the labels it matches them by."""
    return {s.name: {m.name for m in s.matchers.matchers} for s in selectors(promql_parser.parse(query))}


def test_the_dashboard_shows_every_metric_and_knows_no_other():
    shown = {name for query in QUERIES for name in asked(query)}
    assert shown == set(SERVED)


@pytest.mark.parametrize("query", [*QUERIES, *(rule["expr"] for rule in RULES)])
def test_queries_use_the_tags_there_are(query):
    for name, labels in asked(query).items():
        assert labels <= {"audit", *SERVED[name].tags}, f"{name} has no such tags"
    grouped = {label.strip() for by in re.findall(r"by \(([^)]*)\)", query) for label in by.split(",")}
    known = {"audit", *(tag for name in asked(query) for tag in SERVED[name].tags)}
    assert grouped <= known


def test_counters_are_asked_for_their_increase():
    """A counter begins anew with every driver: only rejects are read as they stand, for their share of the audit."""
    for query in (*QUERIES, *(rule["expr"] for rule in RULES)):
        for name in re.findall(r"(?<!rate\()(?<!increase\()(ray_\w+_total)", query):
            assert "rejects" in query, f"{name} is not under rate() or increase()"


def test_a_query_that_is_none_is_found():
    with pytest.raises(ValueError, match="unclosed"):
        promql_parser.parse("sum by (audit (ray_concept_trak_items)")


def test_alerts_lead_to_a_section_of_the_runbook():
    sections = re.findall(r"^## (.*)$", (ROOT / "infra/runbook.md").read_text(), re.M)
    known = {section.lower().replace(" ", "-") for section in sections}
    assert {rule["annotations"]["runbook"] for rule in (*RULES, *SERVER_RULES)} <= known
    assert {"stuck", "over-budget", "disk-full", "model-changed", "token-leaked"} <= known


@pytest.mark.parametrize("rule", SERVER_RULES, ids=lambda rule: rule["alert"])
def test_alerts_of_a_server_use_the_metrics_it_serves(rule):
    meter = ServerMeter("a", lambda: 0, lambda: 0)
    meter.add_request(429)
    families = text_string_to_metric_families(meter.text().decode())
    labels = {sample.name: set(sample.labels) for family in families for sample in family.samples}
    jobs = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    assert rule["expr"] != 'up{job="concept-trak-servers"} == 0' or "concept-trak-servers" in {
        j["job_name"] for j in jobs
    }
    for name, matched in asked(rule["expr"]).items():
        assert matched <= labels.get(name, {"job"} if name == "up" else set()), f"{name} has no such labels"
        assert name in labels or name == "up", f"a server has no {name}"
    assert set(re.findall(r"by \(([^)]*)\)", rule["expr"])) <= {"instance"}
    for name in re.findall(r"(?<!rate\()(?<!increase\()concept_trak_\w+_total", rule["expr"]):
        pytest.fail(f"{name} is not under rate() or increase()")


def test_panels_do_not_lie_on_each_other_and_say_their_unit():
    places = [tuple(panel["gridPos"][k] for k in ("x", "y")) for panel in BOARD["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(places)
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in BOARD["panels"])


def test_what_is_scraped_is_what_the_pods_serve():
    from tests.infra.manifests import pods

    jobs = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    (kubernetes,) = (job for job in jobs if "kubernetes_sd_configs" in job)
    keep = kubernetes["relabel_configs"][0]
    assert keep["action"] == "keep"
    for _, pod in pods("recurring"):
        labels = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        ports = [p["name"] for c in pod["spec"]["containers"] for p in c.get("ports", [])]
        kept = [port for port in ports if re.fullmatch(keep["regex"], f"{labels};{port}")]
        assert kept == (["metrics"] if labels == "ray" else [])
