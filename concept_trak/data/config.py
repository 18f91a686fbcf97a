"""Which training set, and how its rows become samples: the group `data` of a configuration."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataConfig:
    uri: str = ""
    """A file, or a folder of them: Parquet as Hugging Face `datasets` writes it, WebDataset tars, or images."""
    format: str = "auto"
    """auto (by the endings of the files), or a file of concept_trak/data/ that defines one: parquet, webdataset,
    folder, latents."""
    image_column: str = "image"
    caption_column: str = "caption"
    """In a tar: txt, cls, or a field of the json. In a folder: txt (a file beside the image), label (the folder's
    name), or a column of its metadata.jsonl or metadata.csv. Empty where an unconditional model was told nothing."""
    other_captions: tuple[str, ...] = ()
    """More columns with captions. A column may also hold a list of them."""
    captions: str = "first"
    """Of several captions: first (that is not empty), join (all, with a comma), one (drawn, always the same for an
    id). Or class: what the model was told is a class, a number or a name."""
    id_column: str = ""
    """A column of unique ids (in a tar `__key__` is one); without one an id is made from source and row."""
    label_columns: tuple[str, ...] = ()
    """Columns that travel to the results and that `truth` of a concept may name."""
    crop: str = "center"
    """center, or random: a place drawn once for each id, so that it is the same in every run."""
    enlarge: bool = True
    """Whether an image smaller than the crop is enlarged, as the training scripts of diffusers do, or a reject."""
    buckets: tuple[tuple[int, int], ...] = ()
    """[height, width] of the sizes that a model of several aspect ratios was trained at: an image is cropped to the
    one nearest to its own ratio. Empty: the square of the model's resolution."""
    shard_rows: int = 64
    """Rows a shard: about ten minutes of work, at most 90 MB of features. Fixed when a feature set is created."""

    def __post_init__(self) -> None:
        for key, value, known in (("crop", self.crop, ("center", "random")),
                                  ("captions", self.captions, ("first", "join", "one", "class"))):  # fmt: skip
            if value not in known:
                raise ValueError(f"data.{key}={value!r}; expected one of: {', '.join(known)}")
        if self.shard_rows < 1:
            raise ValueError(f"data.shard_rows={self.shard_rows}; expected at least 1")
        if wrong := [b for b in self.buckets if min(b) < 8 or b[0] % 8 or b[1] % 8]:
            raise ValueError(f"data.buckets: {list(wrong[0])} is no size; expected [height, width], multiples of 8")
