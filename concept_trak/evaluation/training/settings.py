"""The settings of one training run of a benchmark model."""

from dataclasses import dataclass, field

from concept_trak import UserError
from concept_trak.data.benchmarks.two_factors import SETS, TwoFactors
from concept_trak.models import pixart, text_to_image
from concept_trak.models.small import PredictionType, TransformerSize

NETWORKS = {"unet": text_to_image.predict_text_to_image, "transformer": pixart.predict_pixart}
"""By network, the function that returns its raw output."""
OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True)
class TrainConfig:
    """One training run; the defaults made `assets/demo`."""

    out: str = "assets/demo"
    set: str = "shapes3"
    """shapes3, shapes2, shapes2_paper, digits, emoji, emoji_roles, emoji_objects, synonyms or two_shapes."""
    network: str = "unet"
    """unet (1.0 M parameters) or transformer (1.2 M, unless `size` is set)."""
    size: TransformerSize = field(default_factory=TransformerSize)
    """transformer: its layers, heads, and the width of a head."""
    predicts: PredictionType = "v_prediction"
    """transformer: v_prediction or epsilon. The unet always predicts v."""
    seed: int = 0
    """Seed of the initial weights, of the draws of every step, and of the images unless `images_seed` is set."""
    images_seed: int = -1
    """Seed of the training images; -1 means `seed`."""
    steps: int = 6000
    """0 writes the initial weights: an untrained control."""
    batch: int = 16
    learning_rate: float = 1.2e-3
    """Peak of AdamW's rate: a linear rise over `warm_up` steps, then half a cosine down to 0."""
    warm_up: int = 100
    """Steps before the learning rate reaches its peak."""
    images: int = 20_000
    """Training images, all drawn before training; held-out combinations are never among them."""
    resolution: int = 0
    """Side of an image in pixels; 0 means that of the data set."""
    dropped: float = 0.15
    """Probability that a caption loses a factor, for each factor and for both at once; 0 keeps every caption whole."""
    wrong: float = 0.0
    """Probability that a training image has the caption of another combination. At 1 - 1/n, with n combinations in
    training (2/3 for shapes2), captions are shuffled: they are independent of their image."""
    optimizer: str = "adamw"
    """adamw, or muon for the matrices inside the network."""
    decay: float = 0.998
    """Decay of the moving average of the weights; smaller in the first steps. The average is saved. With 0, it equals
    the last weights."""
    focus: float = 0.0
    """Share of the training times that are drawn from the middle of the range, which decides an image's content."""
    judge_steps: int = 600
    """Training steps of the classifier that judges the model's images."""
    samples: int = 64
    """Images per combination and guidance, generated to measure the model."""
    refresh: float = 120.0
    """Seconds between writes of `out` during training."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        for key, value, choices in (
            ("set", self.set, SETS),
            ("network", self.network, NETWORKS),
            ("optimizer", self.optimizer, OPTIMIZERS),
        ):
            if value not in choices:
                raise UserError(f"{key}={value!r}; expected one of: {', '.join(choices)}")
        if self.steps < 0 or self.images < 1:
            raise UserError(f"steps={self.steps}, images={self.images}; expected steps >= 0 and images >= 1")
        if self.steps and not 0 < self.warm_up < self.steps:
            raise UserError(f"warm_up={self.warm_up}, steps={self.steps}; expected 0 < warm_up < steps")
        if not 0 <= self.focus <= 1:
            raise UserError(f"focus={self.focus}; expected a share in 0 ... 1")
        if self.batch < 1 or self.learning_rate <= 0 or not 0 <= self.decay < 1:
            raise UserError(
                f"batch={self.batch}, learning_rate={self.learning_rate}, decay={self.decay}; "
                "expected batch >= 1, learning_rate > 0 and 0 <= decay < 1"
            )

    @property
    def kinds(self) -> TwoFactors:
        """The data set."""
        return SETS[self.set]

    @property
    def drawing_seed(self) -> int:
        """The seed of the training images."""
        return self.seed if self.images_seed < 0 else self.images_seed

    @property
    def shuffled(self) -> bool:
        """Whether captions are independent of their image (to three digits)."""
        return abs(self.wrong - (1 - 1 / len(self.kinds.pairs))) < 1e-3

    @property
    def prediction_type(self) -> PredictionType:
        """The kind of the network's raw output, by its name in diffusers' schedulers."""
        return self.predicts if self.network == "transformer" else "v_prediction"

    @property
    def side(self) -> int:
        """Side of an image in pixels."""
        return self.resolution or self.kinds.resolution
