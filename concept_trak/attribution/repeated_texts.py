"""The condition of texts that batch after batch asks for: the empty caption, once for each sample of a batch.

It is kept as it was computed, for all of these texts together, because an encoder may round a text's numbers in another
way beside other texts.
"""

from collections.abc import Sequence

from concept_trak.attribution.denoiser import Condition, Denoiser


class RepeatedTexts:
    """`Denoiser.encode` of one model, which keeps the condition of the last texts and nothing else."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser, self._texts = denoiser, ()
        self._condition: Condition = {}

    def encode(self, texts: Sequence[str]) -> Condition:
        """As `Denoiser.encode`. The tensors are those of the last call if it had the same texts."""
        if tuple(texts) != self._texts:
            self._texts, self._condition = (), {}  # their memory is free while the encoder runs
            self._condition = self._denoiser.encode(texts)
            self._texts = tuple(texts)
        return self._condition
