"""Write the two-factor shapes benchmark as Parquet: `python -m jobs.shapes [out=results/shapes] [rows=320]`."""

from dataclasses import dataclass

from concept_trak.data.synthetic import HELD_OUT, write
from jobs.configure import main


@dataclass(frozen=True)
class ShapesConfig:
    out: str = "results/shapes"
    rows: int = 320
    """Images; index 0 ... rows - 1 of the set named by `seed`, the first ones the demo's model was trained on."""
    first: int = 0
    """Index of the first image; a data set grows by writing another range."""
    files: int = 4
    seed: int = 0
    resolution: int = 32


def shapes(config: ShapesConfig) -> int:
    paths = write(config.out, config.rows, config.seed, HELD_OUT, config.files, config.resolution, config.first)
    print(f"{config.rows} images in {len(paths)} files: {config.out}")
    return 0


if __name__ == "__main__":
    main(ShapesConfig, "shapes", shapes)
