"""The emoji of three hands, from small archives shaped like the pinned ones. npm is a script that copies them."""

import base64
import hashlib
import io
import json
import re
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from concept_trak import UserError
from concept_trak.data.benchmarks import emoji
from concept_trak.data.benchmarks.emoji_roles import ROLES, role_codes
from concept_trak.data.benchmarks.synthetic import draw_labelled
from concept_trak.data.benchmarks.two_factors import EMOJI, EMOJI_OBJECTS, EMOJI_ROLES, pair_caption
from concept_trak.evaluation.training.benchmark_models import initial_pipeline
from concept_trak.evaluation.training.settings import TrainConfig

PAINT = {"noto": (250, 0, 0, 255), "twemoji": (0, 250, 0, 255), "fluent": (0, 0, 250, 255)}
SELECTOR = {"noto": "-fe0f", "twemoji": "", "fluent": "-fe0f"}  # written by some styles only
EVERYWHERE, NOT_FLUENT = "1f34e", "1f34f"
OBJECTS = ("apple", "lion face", "rocket", "strawberry")  # of the 1,112, both held-out ones among them
CACHED = (emoji.archive, emoji.kind_codes, emoji.drawings, emoji._names)
NPM = """#!/bin/sh
test "$1" = pack && test "$5" = --pack-destination || exit 2
echo "$2" >> {log}
cp "{archives}/$(echo "$2" | tr -d @/).tgz" "$6/package.tgz"
"""


def codes():
    """Two fruits, one of every other kind, and everyone of every role with four objects."""
    others = [f"1f5{number:02x}" for number, kind in enumerate(emoji.KINDS) if kind != "fruit"]
    return [EVERYWHERE, NOT_FLUENT, *others], [
        *(code for role in ROLES for code in role_codes(role)),
        *(emoji.OBJECT_CODES[name] for name in OBJECTS),
    ]


def picture(style, ending):
    stream = io.BytesIO()
    image = Image.new("RGBA", (128, 128) if style == "fluent" else (64, 64), (0, 0, 0, 0))
    image.paste(PAINT[style], (image.width // 4, image.width // 4, 3 * image.width // 4, 3 * image.width // 4))
    image.save(stream, ending, lossless=True)
    return stream.getvalue()


def packed(style):
    kinds, people = codes()
    groups = [emoji.KINDS[kind] for kind in emoji.KINDS if kind != "fruit"]
    listed = [{"unified": code.upper(), "subcategory": "food-fruit"} for code in kinds[:2]]
    listed += [{"unified": c.upper(), "subcategory": s} for c, own in zip(kinds[2:], groups, strict=True) for s in own]
    ending = "webp" if style == "fluent" else "png"
    content = picture(style, ending)
    files = {f"{emoji.FOLDERS[style]}{c}{SELECTOR[style]}.{ending}": content for c in kinds + people
             if not (c == NOT_FLUENT and style == "fluent")}  # fmt: skip
    files["package/emoji.json"] = json.dumps(listed).encode()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    for style, (package, _) in emoji.PACKAGES.items():
        (folder / f"{package.replace('@', '').replace('/', '')}.tgz").write_bytes(packed(style))
    return folder


@pytest.fixture
def npm(archives, tmp_path, monkeypatch):
    """An npm that has the small archives, whose content is the pinned one; returns the file with what was fetched."""
    monkeypatch.setenv("CONCEPT_TRAK_CACHE", str(tmp_path / "cache"))
    program, log = tmp_path / "bin" / "npm", tmp_path / "fetched"
    program.parent.mkdir()
    program.write_text(NPM.format(log=log, archives=archives))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    pinned = {style: (package, digest((archives / f"{package.replace('@', '').replace('/', '')}.tgz").read_bytes()))
              for style, (package, _) in emoji.PACKAGES.items()}  # fmt: skip
    monkeypatch.setattr(emoji, "PACKAGES", pinned)
    forget()
    yield log
    forget()


def forget():
    for function in CACHED:
        function.cache_clear()


def digest(content):
    return base64.b64encode(hashlib.sha512(content).digest()).decode()


def test_each_package_is_fetched_once_and_then_kept(npm):
    for _ in range(2):
        emoji.drawings("fluent", "kinds")
        forget()
    assert sorted(npm.read_text().split()) == sorted(package for package, _ in emoji.PACKAGES.values())


def test_only_drawings_of_all_three_hands_count(npm):
    assert emoji.kind_codes()["fruit"] == (EVERYWHERE,)
    assert all(len(emoji.kind_codes()[kind]) == 1 for kind in emoji.KINDS)


FOUR_OBJECTS = replace(EMOJI_OBJECTS, things=OBJECTS)


@pytest.mark.parametrize("kinds", [EMOJI, EMOJI_ROLES, FOUR_OBJECTS], ids=lambda kinds: kinds.name)
def test_an_image_shows_the_hand_of_its_caption_and_no_held_out_pair(npm, kinds):
    drawn = [draw_labelled(3, index, kinds) for index in range(150)]
    for labelled in drawn:
        middle = np.asarray(labelled.image)[12:20, 12:20].reshape(-1, 3).mean(0)
        assert labelled.image.size == (32, 32)
        assert labelled.caption == f"a {labelled.image_pair[1]} {labelled.image_pair[0]}"
        assert kinds.looks[int(middle.argmax())] == labelled.image_pair[1], "another hand drew this"
    assert {labelled.image_pair for labelled in drawn} <= set(kinds.pairs)
    assert len({labelled.image_pair for labelled in drawn}) > len(kinds.things)


def test_every_word_of_more_than_a_thousand_is_one_token_and_every_caption_an_encoding_of_its_own():
    words, pipeline = EMOJI_OBJECTS.words, initial_pipeline(TrainConfig(set="emoji_objects", network="transformer"))
    assert len(set(words)) == len(words) > 1100
    tokens = [ids[1:-1] for ids in pipeline.tokenizer(list(words)).input_ids]
    assert {len(own) for own in tokens} == {1}
    assert len({token for (token,) in tokens}) == len(words)
    captions = [pair_caption(thing, "noto") for thing in EMOJI_OBJECTS.things]
    assert max(map(len, pipeline.tokenizer(captions).input_ids)) <= pipeline.tokenizer.model_max_length
    ids = pipeline.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        encoded = pipeline.text_encoder(ids).pooler_output
    assert len(encoded.unique(dim=0)) == len(captions)


def test_a_role_has_twelve_drawings_that_no_other_role_has(npm):
    everyone = [code for role in ROLES for code in role_codes(role)]
    assert len(ROLES) == 63
    assert len(set(everyone)) == len(everyone) == 63 * 12
    assert role_codes("cook")[1] == "1f468-1f3fb-200d-1f373"
    assert role_codes("surfer")[6:8] == ("1f3c4-200d-2640", "1f3c4-1f3fb-200d-2640")
    assert set(everyone) <= set(emoji.drawings("noto", "roles"))


def is_cached(style):
    return (emoji._cache_folder() / f"{style}.tgz").is_file()


@pytest.fixture(scope="module")
def shared_entries():
    """Of the pinned packages where they were fetched before: the code points and entries of what every style draws."""
    if not all(map(is_cached, emoji.STYLES)):
        pytest.skip("the packages were never fetched here")
    forget()
    shared = set.intersection(*(set(emoji._names(style)) for style in emoji.STYLES))
    with tarfile.open(emoji.archive("noto")) as archive:
        entries = json.load(emoji._file(archive, "package/emoji.json"))
    forget()
    return shared, entries


@pytest.mark.soak
def test_the_roles_are_those_that_the_pinned_packages_name_for_a_man_and_a_woman(shared_entries):
    shared, entries = shared_entries
    named = {entry["name"]: {emoji.plain_code(one["unified"]) for one in (entry, *entry["skin_variations"].values())}
             for entry in entries if "skin_variations" in entry and "200D" in entry["unified"]}  # fmt: skip
    women = {name.removeprefix("WOMAN "): codes for name, codes in named.items() if name.startswith("WOMAN ")}
    pairs = [codes | named[f"MAN {role}"] for role, codes in women.items() if f"MAN {role}" in named]
    in_all = [codes for codes in pairs if codes <= shared and len(codes) == 12]
    assert sorted(map(sorted, in_all)) == sorted(sorted(role_codes(role)) for role in ROLES)


@pytest.mark.soak
def test_the_objects_have_the_names_of_the_pinned_package(shared_entries):
    shared, entries = shared_entries
    named = {}
    for entry in entries:
        code, words = emoji.plain_code(entry["unified"]), re.split("[_-]", entry["short_name"])
        plain = len(words) <= 3 and re.fullmatch("[a-z]{3,}", "".join(words)) and all(words)
        if plain and code in shared and entry["category"] not in ("People & Body", "Flags", "Component"):
            named[" ".join(words)] = code
    assert named == emoji.OBJECT_CODES


def test_what_is_transparent_leaves_no_rim(npm):
    small = np.asarray(emoji._resized(emoji.drawings("noto", "kinds")[EVERYWHERE], 24)).astype(int)
    seen = small[small[..., 3] > 0]
    assert (seen[:, 0] >= 245).all(), "the black behind transparency is in the colour"


def test_another_content_than_the_pinned_one_is_refused(npm, archives, monkeypatch):
    other = {style: (package, digest(b"another")) for style, (package, _) in emoji.PACKAGES.items()}
    monkeypatch.setattr(emoji, "PACKAGES", other)
    with pytest.raises(UserError, match="remove the file, and it is fetched again"):
        emoji.archive("noto")


def test_without_npm_the_message_says_what_to_do(npm, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="npm, which is not installed; expected npm to fetch emoji-datasource-google"):
        emoji.archive("noto")


def test_a_failure_of_npm_is_shown(npm, tmp_path):
    (tmp_path / "bin" / "npm").write_text("#!/bin/sh\necho 'no such package' >&2; exit 1\n")
    with pytest.raises(UserError, match=r"could not fetch emoji-datasource-twitter@16\.0\.0 \(no such package\)"):
        emoji.archive("twemoji")
