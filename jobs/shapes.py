"""Write a data set of the benchmark as Parquet: `python -m jobs.shapes [set=shapes3] [out=results/shapes]`."""

from dataclasses import dataclass

from concept_trak import UserError
from concept_trak.data.benchmarks.synthetic import write_synthetic
from concept_trak.data.benchmarks.two_factors import SETS
from jobs.configure import main


@dataclass(frozen=True)
class ShapesConfig:
    out: str = "results/shapes"
    set: str = "shapes3"
    """shapes3, shapes2, shapes2_paper, digits, emoji, emoji_roles, emoji_objects, synonyms or two_shapes."""
    rows: int = 320
    """Number of images. `seed` decides the sequence of images; the first ones are those of the model's training set."""
    first: int = 0
    """Index of the first image. Another run with a later range makes the data set grow."""
    files: int = 4
    seed: int = 0
    resolution: int = 0
    """Side of an image in pixels; 0 means that of the data set."""
    wrong: float = 0.0
    """Probability that an image has the caption of another combination."""


def shapes(config: ShapesConfig) -> int:
    if config.set not in SETS:
        raise UserError(f"set={config.set!r}; expected one of: {', '.join(SETS)}")
    kinds, side = SETS[config.set], config.resolution or None
    paths = write_synthetic(config.out, config.rows, config.seed, kinds, config.files, side, config.first, config.wrong)
    print(f"{config.rows} images in {len(paths)} files: {config.out}")
    return 0


if __name__ == "__main__":
    main(shapes, "shapes", ShapesConfig)
