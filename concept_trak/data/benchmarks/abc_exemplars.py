"""AbC, "attribution by customization": a model tuned to exemplars draws, and they are to be found among many images.

Read as Wang et al. (2023, arXiv 2306.09345) published it, with the tasks of Wang et al. (2024, arXiv 2406.09408):

    json/<test case>.json                       a list: {exemplar: ["dataset/exemplar/..."], synth: {...}, ...}
    exemplar/...  synth/...                     the images that the lists name, below `dataset/` or below the root
    laion_subset/images/*  laion_subset/captions.txt    the distractors by name (or without images/), a caption a line
    tasks/all_tasks.json                        a list: {prompt, train_prompt, test_case, model_path, ...}
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concept_trak import UserError
from concept_trak.attribution.concept import Concept, without_phrase
from concept_trak.data.benchmarks.export import Picture, at, within
from concept_trak.data.decode import ENDINGS

KEYS = ("prompt", "train_prompt", "test_case", "test_case_ind", "model_path", "synth_image_path")


@dataclass(frozen=True)
class Custom:
    """Which tuned model is audited, and what distinguishes its exemplars."""

    tasks: str = ""
    """The file of tasks; empty: tasks/all_tasks.json or all_tasks.json below the root."""
    model: str = ""
    """`model_path` of the tasks, as models/bamfg/101549_0: one tuned model, and all of its tasks."""
    token: str = "<new1>"
    """The word that the tuned model learned its exemplars by."""
    captions_name_token: bool = True
    """Whether captions of exemplars have the token; without it only the picture distinguishes them from distractors."""
    distractors: int = 100_000
    """The first so many of laion_subset, by name."""
    scope: str = "global"
    """global: what the prompt draws; local: the picture that the tuned model drew for the task."""


def tasks(root: Path, custom: Custom) -> list[dict[str, Any]]:
    """The tasks of one tuned model.

    Raises:
        UserError: no such file, a task lacks a key, or no task is about the model; models there are, named.
    """
    names = (custom.tasks,) if custom.tasks else ("tasks/all_tasks.json", "all_tasks.json")
    file = at(root, *names)
    listed = _list(file)
    for number, task in enumerate(listed):
        if missing := [key for key in KEYS if key not in task]:
            raise UserError(f"{file}: task {number} has no {', '.join(missing)}; expected {', '.join(KEYS)}")
    chosen = [task for task in listed if task["model_path"] == custom.model]
    if not chosen:
        models = sorted({task["model_path"] for task in listed})
        raise UserError(f"custom.model={custom.model!r} has no task in {file}; expected one of: {', '.join(models)}")
    return chosen


def abc_pictures(root: Path, custom: Custom) -> list[Picture]:
    """The exemplars of the model, captioned as it was tuned, and the distractors; label `exemplar` tells them apart.

    Raises:
        UserError: a file is missing, or captions and images are not of one number.
    """
    task = tasks(root, custom)[0]
    caption = task["train_prompt"] if custom.captions_name_token else without_phrase(task["train_prompt"], custom.token)
    case = _list(at(root, f"json/{task['test_case']}.json"))
    number = task["test_case_ind"]
    if not isinstance(number, int) or not 0 <= number < len(case):
        raise UserError(f"{task['test_case']}.json has {len(case)} models, and a task asks for number {number!r}")
    paths = [_below(root, path) for path in case[number]["exemplar"]]
    own = [Picture(f"exemplar-{path.stem}", path, caption, {"exemplar": "yes"}) for path in paths]
    return own + _distractors(root, custom.distractors)


def _distractors(root: Path, most: int) -> list[Picture]:
    folder = at(root, "laion_subset/images", "laion_subset")
    images = sorted(path for path in folder.iterdir() if path.suffix.lower().removeprefix(".") in ENDINGS)
    captions = at(root, "laion_subset/captions.txt").read_text().splitlines()
    if len(images) != len(captions):
        raise UserError(
            f"{root}/laion_subset has {len(images)} images and {len(captions)} lines of captions.txt, which belong "
            "together in the order of names; get it again, whole"
        )
    pairs = list(zip(images, captions, strict=True))[:most]
    return [Picture(f"laion-{path.stem}", path, caption.strip(), {"exemplar": "no"}) for path, caption in pairs]


def abc_concepts(root: Path, custom: Custom, samples: int) -> list[Concept]:
    """What the token does to the prompt of each task: the prompt against the same without it."""
    concepts = []
    for number, task in enumerate(tasks(root, custom)):
        drawn = str(_below(root, task["synth_image_path"])) if custom.scope == "local" else ""
        concepts.append(
            Concept(
                f"task-{number:02d}",
                task["prompt"],
                minus=custom.token,
                scope=custom.scope,
                image=drawn,
                samples=samples,
                truth={"exemplar": "yes"},
            )
        )
    return concepts


def embeddings(root: Path, custom: Custom) -> tuple[str, ...]:
    """The files of the token's embedding, beside the tuned model (models/... or models-ti/...).

    Raises:
        UserError: there is none as safetensors.
    """
    folders = (root / custom.model, root / custom.model.replace("models", "models-ti", 1))
    files = sorted(file for folder in folders if folder.is_dir() for file in folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{' and '.join(map(str, folders))} hold no .safetensors: convert the embedding of {custom.token} (the "
            "published .bin is a pickle, which can run code and is never read), or give model.embeddings=[<file>]"
        )
    return tuple(map(str, files))


def _below(root: Path, path: str) -> Path:
    """Lists name files below `dataset/`, tasks below the root."""
    return within(root, path.removeprefix("dataset/"))


def _list(file: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); get it again, whole") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{file} is no list of objects, as it was published")
    return entries
