"""Inverted states kept in the store, so that other parameters, projectors and seeds skip the inversion.

`states/<fingerprint>/<sample>.safetensors` holds the path of one sample [states, c, h, w]. Its fingerprint covers the
model and the trajectory; the sample's name covers source, version and row. There is one file a sample, so that batches
and shards may be cut in other ways later.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from concept_trak.attribution.denoiser import Denoiser
from concept_trak.attribution.state import Batch, Probe
from concept_trak.attribution.trajectory import ddim_inversion
from concept_trak.data.sample import Sample
from concept_trak.store.checked_safetensors import checked_metadata, with_checksum
from concept_trak.store.gc import STATE, Garbage, Needed, existing, unknown_needs
from concept_trak.store.identity import FeatureSet, fingerprint, read_feature_settings
from concept_trak.store.manifest import Audit, feature_sets
from concept_trak.store.part import Damaged
from concept_trak.store.records import READERS
from concept_trak.store.store import Store
from concept_trak.store.verify import ALTERED, SOUND, Finding

STATES = "states"
IN_FLIGHT = 8
NOT_OF_PATHS = (
    "parameters",
    "unit",
    "over",
    "weight",
    "projector",
    "stored",
)  # settings of features that do not change the path


def path_of(settings: Mapping[str, Any], probe: Probe) -> str:
    """The fingerprint of the paths of features with these settings (`plan.feature_settings`)."""
    s = {k: v for k, v in settings.items() if k not in NOT_OF_PATHS}
    if s["negative"][0] == "empty" or probe.guidance == 1:
        del s["seed"]  # it draws nothing but another label
    return fingerprint({**s, "train": asdict(probe.path)})


def states_in(data: bytes, where: str) -> Float[Tensor, "s c *space"]:
    """The content of a file of kept states.

    Raises:
        Damaged: it is not such a file, or its numbers are not those that were written.
    """
    try:
        checked_metadata(data)
        return load(data)["x_t"]
    except (Damaged, SafetensorError, KeyError) as error:
        raise Damaged(f"{where} was truncated or altered; remove it: it is made again ({error})") from error


@dataclass(frozen=True)
class Inversions:
    """The kept states of one path; `settings` are those of the features (`plan.feature_settings`)."""

    store: Store
    settings: dict[str, Any]
    probe: Probe

    def with_path(self, denoiser: Denoiser, batch: Batch, samples: Sequence[Sample]) -> Batch:
        """The batch with its path: read if the store has that of every sample, otherwise computed and kept."""
        folder = path_of(self.settings, self.probe)
        names = [f"{STATES}/{folder}/{_name(s)}.safetensors" for s in samples]
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            states = list(pool.map(self._read, names))
            missing = [i for i, state in enumerate(states) if state is None]
            if missing:
                inverted = _inverted(denoiser, batch, self.probe, missing)
                list(pool.map(self._write, [names[i] for i in missing], inverted))
                for i, state in zip(missing, inverted, strict=True):
                    states[i] = state
        path = torch.stack([state for state in states if state is not None])
        return replace(batch, path=path.to(denoiser.device, denoiser.dtype))

    def _read(self, name: str) -> Tensor | None:
        try:
            data = self.store.read(name)
        except FileNotFoundError:
            return None
        return states_in(data, f"{self.store.uri}/{name}")

    def _write(self, name: str, x: Tensor) -> None:
        self.store.create(name, with_checksum(save({"x_t": x.cpu().contiguous()})))


def _inverted(denoiser: Denoiser, batch: Batch, probe: Probe, rows: Sequence[int]) -> Float[Tensor, "n s c *space"]:
    """x_t at every state, of these rows of the batch."""
    singles = [batch.rows(slice(i, i + 1)) for i in rows]
    if len(singles) == len(batch.ids):
        return torch.stack([state.x_t for state in ddim_inversion(denoiser, batch, probe, 0)], 1)
    return torch.cat([_inverted(denoiser, single, probe, [0]) for single in singles])


def _name(sample: Sample) -> str:
    return hashlib.sha256(f"{sample.origin}\n{sample.id}".encode()).hexdigest()[:32]


OURS = re.compile(rf"{STATES}/[0-9a-f]+/[0-9a-f]{{32}}\.safetensors")


def needed_states(audit: Audit) -> Needed:
    """The folders of states that an audit's features were computed from.

    Raises:
        UserError: a feature set cannot be read, so the states that it needs are unknown.
    """
    try:
        sets = set(feature_sets(audit).values())
    except FileNotFoundError:
        return Needed()  # no audit was begun there, or `retention.needs` says what is the matter
    paths = (_path(audit, features) for features in sets)
    return Needed(folders=frozenset(f"{STATES}/{path}" for path in paths if path))


def _path(audit: Audit, features: FeatureSet) -> str:
    """The folder of a feature set's states; empty if it has no inversion."""
    try:
        settings = read_feature_settings(audit.store, features).settings
        probe = Probe(**{**settings["train"], "times": tuple(settings["train"]["times"])})
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise unknown_needs(
            audit, f"{features.settings_file} cannot be read ({error}), so the kept states that it needs are unknown"
        ) from error
    return path_of(settings, probe) if probe.trajectory == "ddim_inversion" else ""


def unneeded_states(store: Store, names: Iterable[str], living: Needed, before: float) -> list[Garbage]:
    """The files among `names` (all files under states/) that no audit needs and that are older than `before` (unix
    time)."""
    free = existing(store, [name for name in names if OURS.fullmatch(name) and not living.keep(name)])
    return [Garbage(STATE, name, size) for name, size, age in free if age < before]


def verify_states(store: Store) -> Iterator[Finding]:
    """Every file of kept states: sound or altered. A missing one is made when it is needed."""
    ours = [name for name in store.names(STATES) if OURS.fullmatch(name)]
    with ThreadPoolExecutor(READERS) as readers:
        yield from filter(None, readers.map(lambda name: _looked_into(store, name), ours))


def _looked_into(store: Store, name: str) -> Finding | None:
    """The finding for a file; None if it has vanished since it was listed."""
    try:
        states_in(store.read(name), name)
    except FileNotFoundError:
        return None
    except Damaged:
        return Finding(name, ALTERED)
    return Finding(name, SOUND)
