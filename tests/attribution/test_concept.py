"""What is asked: refusals, the model's own negative, and the states that each scope stands on."""

from dataclasses import replace

import pytest
import torch

from concept_trak.attribution.concept import Concept, Phrasing
from concept_trak.attribution.denoiser import negatives
from concept_trak.attribution.features import compute_features
from concept_trak.attribution.method import METHODS
from concept_trak.attribution.numerics import normal
from concept_trak.attribution.projector import Projector
from concept_trak.attribution.query import UNGUIDED, query_batch, resolve_query
from concept_trak.attribution.state import Probe
from concept_trak.attribution.trajectory import TRAJECTORIES, generate
from concept_trak.models.gaussian import Gaussian, Settings
from tests.tolerances import EXACT64
from tests.toys import Toy, Unconditional, likes

RED = {"name": "red", "prompt": "a red square", "without_prompt": "a square"}
BARE = {"prompt": "", "without_prompt": ""}
LABELS = BARE | {"labels": "0", "without_labels": "1"}
ZERO = Concept("zero", labels="0", without_labels="1", samples=3, seed=5)

REFUSALS = [
    ({"name": ""}, r"concept '': name must be at most 100 letters, digits"),
    ({"name": "a/b"}, r"concept 'a/b': name must be at most 100 letters, digits, '\.', '_' or '-', because it"),
    ({"name": ".hidden"}, r"concept '\.hidden': name must be"),
    ({"name": "rot grün"}, r"name must be at most 100 letters, digits"),
    ({"name": "red\n"}, r"name must be at most 100 letters, digits"),
    ({"prompt": ""}, r"concept 'red': give either prompt or labels: the condition that has the concept"),
    ({"labels": "0"}, r"give either prompt or labels"),
    ({"without_labels": "1"}, r"prompt goes with without_prompt, and labels with without_labels"),
    ({"prompt": "", "labels": "0"}, r"prompt goes with without_prompt, and labels with without_labels"),
    ({"without_prompt": "a red square"}, r"both conditions are 'a red square', so there is no direction between them"),
    ({"scope": "here"}, r"scope='here'; expected global or local"),
    ({"scope": "local"}, r"scope=local needs image=<path>, and only it does"),
    ({"image": "a.png"}, r"scope=local needs image=<path>, and only it does"),
    ({"samples": 0}, r"samples=0; expected at least 1"),
    ({"minus": "red"}, r"minus writes out without_prompt from prompt; give prompt and one of the two"),
    (LABELS | {"minus": "0"}, r"minus writes out without_prompt from prompt"),
    (LABELS | {"phrasings": (Phrasing("b"),)}, r"phrasings are other words for a prompt, and labels have none"),
    ({"phrasings": (Phrasing(""),)}, r"a phrasing has no prompt"),
    ({"phrasings": (Phrasing("a red square"),)}, r"two phrasings are the same"),
    ({"phrasings": (Phrasing("x"), Phrasing("y")), "samples": 2}, r"samples=2 cannot be split over 3 phrasings"),
    ({"phrasings": (Phrasing("x", "x"),)}, r"both conditions are 'x', so there is no direction between them"),
    ({"examples": ("a",)}, r"prompt and examples ask in different ways; give one of them, and the other as a concept"),
    ({"classifier": "c", "shows": "red"}, r"prompt and classifier ask in different ways"),
    (BARE | {"examples": ("a",), "classifier": "c", "shows": "red"}, r"examples and classifier ask in different ways"),
    (BARE | {"examples": ("a",), "without_prompt": "b"}, r"without_prompt, .* go with a prompt; examples"),
    (BARE | {"examples": ("a",), "minus": "b"}, r"minus and phrasings go with a prompt"),
    (BARE | {"examples": ("a",), "phrasings": (Phrasing("b"),)}, r"phrasings go with a prompt"),
    (BARE | {"classifier": "c"}, r"classifier and shows go together: the file, and the name of its class"),
    (BARE | {"examples": ("a",), "shows": "red"}, r"classifier and shows go together"),
    (BARE, r"or, where no prompt names it, examples or a classifier"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSALS, ids=[str(changes) for changes, _ in REFUSALS])
def test_a_question_that_cannot_be_asked_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        Concept(**(RED | changes))


def test_questions_that_can_be_asked():
    assert (Concept(**RED).text, Concept(**RED).without) == ("a red square", "a square")
    assert Concept("red", prompt="red").without == "", "without a second condition it is the model's empty one"
    assert (ZERO.text, ZERO.without) == ("0", "1")
    Concept("a.B-c_9", prompt="x", scope="local", image="a.png")


def drawn(denoiser, ids, texts, seed=0) -> list[int]:
    return negatives(denoiser, ids, texts, seed)["label"].tolist()


def test_the_empty_negative_is_the_encoding_of_nothing():
    class Named(Toy):
        """Labels by word; nothing is label 3."""

        def encode(self, texts):
            return super().encode([text or "3" for text in texts])

    assert drawn(Named(), ["a", "b"], ["0", "1"]) == [3, 3]


def test_another_label_is_never_the_samples_own_and_belongs_to_seed_and_sample():
    denoiser = Gaussian(Settings(classes=4))
    ids, texts = [f"s{i}" for i in range(400)], [str(i % 4) for i in range(400)]
    first = drawn(denoiser, ids, texts)
    assert all(other != int(own) for other, own in zip(first, texts, strict=True)), "a sample was told from itself"
    assert first == drawn(denoiser, ids, texts)
    assert first[7:11] == drawn(denoiser, ids[7:11], texts[7:11]), "a draw depends on the position in the batch"
    assert first[::-1] == drawn(denoiser, ids[::-1], texts[::-1])
    assert first != drawn(denoiser, ids, texts, seed=1)
    assert first != drawn(denoiser, [f"t{i}" for i in range(400)], texts)
    for own in range(4):
        others = [other for other, text in zip(first, texts, strict=True) if text == str(own)]
        counts = [others.count(c) for c in range(4) if c != own]
        assert min(counts) > 15, f"of 100 draws away from {own} the others came {counts} times: not uniform"


@pytest.mark.parametrize("combinations", [(), ("0",)])
def test_another_label_needs_another_combination(combinations):
    denoiser = Gaussian()
    denoiser.combinations = combinations
    with pytest.raises(ValueError, match=r"needs model\.combinations with at least two entries to draw from"):
        negatives(denoiser, ["a"], ["0"], 0)


def test_a_global_question_has_samples_of_its_own_name():
    denoiser = Gaussian()
    b = query_batch(denoiser, ZERO)
    assert b.ids == ("query-0", "query-1", "query-2")
    assert b.x_0 is None
    assert b.cond["label"].tolist() == [0] * 3
    assert b.without["label"].tolist() == [1] * 3
    assert all(label != 0 for label in b.negative["label"].tolist())
    method, same = resolve_query(denoiser, METHODS["concept_trak"], ZERO, b)
    assert (method, same) == (METHODS["concept_trak"], b)
    more = query_batch(denoiser, replace(ZERO, samples=5))
    assert more.ids[:3] == b.ids, "more samples of one seed must only add to the ones that were there"


def test_concepts_of_one_seed_share_their_noise():
    """The same trajectories' starts, so that two concepts differ by what is asked and not by luck."""
    denoiser, method = Gaussian(), METHODS["concept_trak"]
    starts = [
        list(TRAJECTORIES["sampling"](denoiser, query_batch(denoiser, c), replace(method.query, every=1), c.seed))
        for c in (ZERO, replace(ZERO, name="two", labels="2"), replace(ZERO, seed=6))
    ]
    first = [states[0].x_t for states in starts]  # t = 979: one step from pure noise
    mu = [denoiser.network.mean.weight[label].reshape(1, *denoiser.shape).detach() for label in (0, 2)]
    pure = torch.stack([normal(denoiser.shape, 5, name, "x_T", 999) for name in ("query-0", "query-1", "query-2")])
    for x_t, mean in zip(first[:2], mu, strict=True):
        assert (x_t - pure).abs().max() < 0.1 * mean.abs().max(), "did not start from the noise of (seed, query-i)"
    assert not torch.allclose(first[0], first[2], atol=0.5), "another seed must be other noise"


def test_a_local_question_stands_on_the_unguided_inversion_of_its_image():
    denoiser = Gaussian(Settings(shape=(1, 4, 4)))
    concept = replace(ZERO, scope="local", image="a.png")
    pixels = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    b = query_batch(denoiser, concept, pixels)
    assert b.ids == ("query-0",), "one image is one sample, whatever `samples` says"
    assert torch.equal(b.x_0, pixels[:, :1].double())
    guided = replace(METHODS["concept_trak"], query=Probe("sampling", "concept_reward", guidance=7.5, eta=0.5))
    method, same = resolve_query(denoiser, guided, concept, b)
    assert same is b
    assert method.query == Probe("ddim_inversion", "concept_reward", guidance=1.0, eta=0.0)
    assert (method.train, method.unit, method.weight) == (guided.train, guided.unit, guided.weight)
    straight = list(TRAJECTORIES["ddim_inversion"](denoiser, b, Probe("ddim_inversion", "prediction"), 0))
    states = list(TRAJECTORIES[method.query.trajectory](denoiser, b, method.query, 5))
    assert [s.t for s in states] == [99, 199, 299, 399, 499, 599, 699, 799, 899]
    assert all(torch.equal(s.x_t, o.x_t) for s, o in zip(states, straight, strict=True))
    other = query_batch(denoiser, replace(concept, seed=77), pixels)
    phi = [compute_features(denoiser, Projector("identity"), method.query_spec, one, 0).phi for one in (b, other)]
    assert torch.equal(*phi), "a local question has no randomness of its own"


@pytest.mark.parametrize("name", ["trak", "d_trak", "das"])
def test_a_whole_image_row_is_asked_about_generated_images(name):
    denoiser = Gaussian()
    b = query_batch(denoiser, ZERO)
    method, with_images = resolve_query(denoiser, METHODS[name], ZERO, b)
    assert method == METHODS[name]
    assert UNGUIDED.guidance == 1
    images = generate(denoiser, b, UNGUIDED, ZERO.seed)
    torch.testing.assert_close(with_images.x_0, images.float().double(), rtol=EXACT64, atol=EXACT64)
    assert with_images.cond["label"].tolist() == [0] * 3, "the images are captioned by the condition"
    assert with_images.x_0.dtype == torch.float64
    mu = denoiser.network.mean.weight[0].reshape(denoiser.shape)
    assert (with_images.x_0 - mu).abs().mean() < 0.7, "the images are not of the condition's class"
    alone = resolve_query(denoiser, METHODS[name], ZERO, b.rows(slice(1, 2)))[1]
    torch.testing.assert_close(alone.x_0, with_images.x_0[1:2], rtol=EXACT64, atol=EXACT64)
    other = resolve_query(denoiser, METHODS[name], replace(ZERO, seed=6), b)[1]
    assert not torch.allclose(other.x_0, with_images.x_0)


def test_a_whole_image_row_about_an_image_takes_that_image():
    denoiser = Gaussian()
    concept, pixels = replace(ZERO, scope="local", image="a.png"), torch.zeros(1, 3, 4, 4)
    b = query_batch(denoiser, concept, pixels)
    assert resolve_query(denoiser, METHODS["trak"], concept, b) == (METHODS["trak"], b)


def test_samples_take_turns_through_the_phrasings():
    class Words(Toy):
        def encode(self, texts):
            return super().encode([str(len(text)) for text in texts])

    concept = Concept("c", "aa", "", samples=5, phrasings=(Phrasing("aaa", "a"), Phrasing("aaaa", "aa")))
    b = query_batch(Words(), concept)
    assert b.cond["label"].tolist() == [2, 3, 4, 2, 3]
    assert b.without["label"].tolist() == [0, 1, 2, 0, 1]
    here = query_batch(Words(), replace(concept, scope="local", image="x.png"), torch.zeros(1, 3, 6, 6))
    assert here.cond["label"].tolist() == [2, 3, 4], "every phrasing asks about the one image"
    assert here.x_0.shape == (3, 2, 6, 6)


@pytest.mark.parametrize("kind", ["examples", "classifier"])
def test_a_concept_without_words_asks_what_the_model_draws_by_itself(kind):
    given = {"examples": ("a",)} if kind == "examples" else {"classifier": "c", "shows": "y"}
    concept = Concept("c", samples=40, **given)
    d = Unconditional()
    b = query_batch(d, concept, targets=torch.zeros(1, *d.shape).double(), classifier=likes)
    assert b.cond == b.negative == {}
    assert b.without is None
    drawn = query_batch(Gaussian(Settings(classes=4)), concept).cond["label"].tolist()
    assert set(drawn) == {0, 1, 2, 3}, "a model that knows no empty condition draws by those it knows"
    for row in ("concept_trak", "caption_trak", "fit_trak"):
        method, _ = resolve_query(d, METHODS[row], concept, b)
        assert method.query == replace(METHODS[row].query, direction=f"{kind.removesuffix('s')}_reward")
        assert method.train == METHODS[row].train
    with pytest.raises(
        ValueError,
        match=rf"concept 'c' is given by {kind}, and a method .* forward_noise · prediction needs the images",
    ):
        resolve_query(d, METHODS["d_trak"], concept, b)
    here = resolve_query(d, METHODS["concept_trak"], replace(concept, scope="local", image="x.png"), b)[0]
    assert here.query == Probe("ddim_inversion", f"{kind.removesuffix('s')}_reward")
