"""Pages as an audit of the two-factor benchmark would fill them, drawn and scored from a seed."""

import io
import random

from numpy import float32
from PIL import Image, ImageDraw

from concept_trak.report.audit_page import Facts, Page, Ranking, Section, Thumb

PAINT = {"red": (215, 45, 45), "green": (45, 165, 70), "blue": (50, 80, 215)}
SHAPES = ("triangle", "circle", "square")
SPAN = 3.0
CONCEPTS = (
    ("triangle", "a red triangle", "red", {"shape": "triangle"}),
    ("red", "a red triangle", "triangle", {"colour": "red"}),
    ("blue", "a blue square", "square", {"colour": "blue"}),
)
SKILL = {"concept_trak": 0.95, "d_trak": 0.45}


def draw(shape: str, colour: str, rng: random.Random, side: int = 32) -> bytes:
    """A PNG of one shape, `side` pixels square."""
    image = Image.new("RGB", (side, side), (235, 235, 232))
    x, y, r = (rng.uniform(low, high) * side for low, high in ((0.4, 0.6), (0.4, 0.6), (0.2, 0.34)))
    painter = ImageDraw.Draw(image)
    if shape == "circle":
        painter.ellipse((x - r, y - r, x + r, y + r), fill=PAINT[colour])
    else:
        turn = rng.uniform(0, 360)
        painter.regular_polygon((x, y, r), {"triangle": 3, "square": 4}[shape], rotation=turn, fill=PAINT[colour])
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def thumb(rank: int, score: float, skill: float, truth: dict[str, str], rng: random.Random) -> Thumb:
    """A drawing that shows what `truth` names with probability `skill`."""
    labels = {"shape": rng.choice(SHAPES), "colour": rng.choice(list(PAINT))}
    if rng.random() < skill:
        labels.update(truth)
    relevant = all(labels[key] == value for key, value in truth.items())
    caption = f"a {labels['colour']} {labels['shape']}"
    identity = f"{rng.randrange(16**8):08x}"
    percentile = 100 - rank / 30 if score > 0 else rank / 30
    return Thumb(
        identity,
        caption,
        float(float32(score)),
        percentile,
        rank,
        draw(labels["shape"], labels["colour"], rng),
        labels,
        relevant,
    )


def ranking(method: str, form: str, skill: float, truth: dict[str, str], rng: random.Random, top: int = 24) -> Ranking:
    """A ranking of 3,000 images; `skill` says how often the ends show, and do not show, the concept."""
    drawn = (rng.gauss(0.9, 0.45) if rng.random() < skill / 3 else rng.gauss(-0.35, 0.4) for _ in range(3000))
    scores = sorted(drawn, reverse=True)
    counts = [0] * 80
    for score in scores:
        counts[min(79, max(0, int((score / SPAN + 1) * 40)))] += 1
    precision = 0.36 + 0.62 * skill
    return Ranking(
        method,
        form,
        tuple(thumb(i + 1, scores[i], precision, truth, rng) for i in range(top)),
        tuple(thumb(i + 1, scores[-1 - i], 0.05, truth, rng) for i in range(top // 2)),
        tuple(counts),
        SPAN,
        {
            "average_precision": precision - 0.06,
            "base_rate": 0.333,
            "precision_at_10": round(precision, 1),
            "recall_at_carriers": precision - 0.11,
        },
    )


def section(name: str, text: str, without: str, truth: dict[str, str], rng: random.Random) -> Section:
    """One concept with a damped and a plain ranking of every method."""
    pictures = tuple(draw("triangle" if "triangle" in text else "square", text.split()[1], rng) for _ in range(16))
    rankings = tuple(
        ranking(method, form, skill * (1.0 if form == "damped" else 0.7), truth, rng)
        for method, skill in SKILL.items()
        for form in ("damped", "plain")
    )
    return Section(name, text, without, "global", truth, pictures, rankings)


def facts(method: str) -> Facts:
    """What a method is and cost, as for a small model."""
    return Facts(
        method=method,
        train="ddim_inversion, guidance 7.5 · reconstruction_reward",
        query="sampling · concept_reward",
        unit="over all parameters" if method == "concept_trak" else "no",
        fingerprint="9f2c41d07be3a855",
        evaluations=144,
        seconds=4210.0,
        samples=2997,
        computed=512,
        rejected=3,
        features=4096,
        trace=26973.0,
        lam=658.5,
    )


def page(concepts: tuple[tuple[str, str, str, dict[str, str]], ...] = CONCEPTS, seed: int = 0) -> Page:
    """A whole audit."""
    rng = random.Random(seed)
    return Page(
        audit="demo",
        finished="2026-03-14 09:26 UTC",
        model="models/shapes, 1.8 M parameters",
        data="data/shapes/*.parquet",
        parameters=1_812_483,
        samples=3000,
        sources=4,
        sections=tuple(section(*concept, rng) for concept in concepts),
        facts=tuple(facts(method) for method in SKILL),
        rejects={"decode": 2, "no_caption": 1},
        settings={
            "damping": "100",
            "method": "concept_trak,d_trak",
            "projector.dim": "4096",
            "data.caption_column": "",
        },
    )
