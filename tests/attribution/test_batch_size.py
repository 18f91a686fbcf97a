"""A first batch size from memory: counted bytes against those that the allocator gave out."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from concept_trak.attribution import batch_size
from concept_trak.attribution.batch_size import LARGEST_STATE, MOST, SHARE, fitting_batch_size, peak_tensor_bytes
from concept_trak.attribution.features import compute_features_together
from concept_trak.attribution.gradients.workspace import Workspace
from concept_trak.attribution.projector import Projector, Tables
from concept_trak.models import small
from concept_trak.models.text_to_image import TextToImage
from tests.models.test_real_gradients import batch

SKETCH = Projector("sketch", 256)


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory) -> TextToImage:
    folder = tmp_path_factory.mktemp("model")
    small.latent_pipeline(0, resolution=16).save_pretrained(folder)
    return TextToImage(str(folder), r"\.(weight|bias)$")


def given_out(work) -> int:
    """The most bytes that the CPU's allocator had given out at one time during `work`, by PyTorch's own account."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    now = most = 0
    for event in sorted(
        (e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()
    ):
        now += event.nbytes()
        most = max(most, now)
    return most


def test_counted_bytes_are_those_given_out(denoiser):
    """From below: what a kernel takes inside is not counted. SHARE has to be left for it."""
    b, tables = batch(denoiser), Tables()

    def work() -> None:
        compute_features_together(denoiser, SKETCH, [LARGEST_STATE], b, 0, Workspace(tables))

    work()  # draws the tables, which do not count
    with batch_size._LivingBytes() as living:
        work()
    given = given_out(work)
    assert living.most <= 1.02 * given, "bytes were counted that no one has: storages that are gone are still counted"
    assert living.most >= SHARE * given, f"{living.most / given:.2f} of what was given out: SHARE would not save this"


def test_the_guess_is_the_power_of_two_below_its_share(denoiser, monkeypatch):
    """A real network at memory for ten samples: 8, whose own peak is within all of it."""
    tables = Tables()
    peak_tensor_bytes(denoiser, SKETCH, 1, 1, tables)
    one, two = (peak_tensor_bytes(denoiser, SKETCH, 1, b, tables) for b in (1, 2))
    memory = int((one + 9 * (two - one)) / SHARE) + 1000
    assert fitting_batch_size(denoiser, SKETCH, 1, memory) == 8
    assert peak_tensor_bytes(denoiser, SKETCH, 1, 8, tables) <= memory, (
        "a peak grows faster than by sample: SHARE does not save this"
    )
    monkeypatch.setattr(batch_size, "peak_tensor_bytes", lambda denoiser, projector, methods, b, tables: 1000 + 100 * b)
    monkeypatch.setattr(batch_size, "free_bytes", lambda device: int((1000 + 100 * 40) / SHARE) + 1)
    assert fitting_batch_size(denoiser, SKETCH, 1) == 32
    assert fitting_batch_size(denoiser, SKETCH, 1, workers=2) == 8, "workers beside this one use the same memory"
    assert fitting_batch_size(denoiser, SKETCH, 1, memory=1) == 1, "one sample is the least there is"
    assert fitting_batch_size(denoiser, SKETCH, 1, memory=10**15) == MOST


@pytest.mark.gpu
def test_on_a_gpu_the_share_is_kept(denoiser):
    d = TextToImage(str(denoiser.path), r"\.(weight|bias)$", device="cuda")
    peak_tensor_bytes(d, SKETCH, 1, 8)  # the libraries' own workspaces, 32 MB, are no part of a batch
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    counted = peak_tensor_bytes(d, SKETCH, 1, 8)
    assert counted >= SHARE * (torch.cuda.max_memory_allocated() - before)
