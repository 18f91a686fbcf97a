"""Safetensors files with their own checksum, and those written before there was one format."""

import base64

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from concept_trak.audit.inversion_cache import states_in
from concept_trak.components.measure import measurement_from_bytes
from concept_trak.store.checked_safetensors import checked_metadata, safetensors_header, with_checksum
from concept_trak.store.grams import decode_gram
from concept_trak.store.part import Damaged

TENSORS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.arange(3)}
# Written by the three encoders that this module replaced.
OLD_GRAM = base64.b64decode(
    "sAAAAAAAAAB7IksiOnsiZGF0YV9vZmZzZXRzIjpbMCwxNl0sImR0eXBlIjoiRjMyIiwic2hhcGUiOlsyLDJdfSwiX19tZXRhZGF0YV9fIjp7ImNv"
    "dW50IjoiMyIsInNoYTI1NiI6IjFhNTg5OGEwODljZGZkZGE0MGZmNzY0NDQ1YWRkMmE2NjI4MzY4M2MwMTdjYTQyMzY3MWNhYjlkYTAzYTRhMDci"
    "LCJ0cmFjZSI6IjYuMCJ9fQAAgEAAAIA/AACAPwAAAEA="
)
OLD_MEASUREMENT = base64.b64decode(
    "sAEAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJzaGEyNTYiOiIzYjBmNzcyM2QwM2M3ZjJkOGQ3NDQwODY2NjBiMDNmOTNlMDhhZGVhMWY1YWUyYmMw"
    "ZDJjMzYyYjMwYTE1ZGFjIn0sInJvd3MvYS53ZWlnaHQiOnsiZHR5cGUiOiJGNjQiLCJzaGFwZSI6WzIsMl0sImRhdGFfb2Zmc2V0cyI6WzAsMzJd"
    "fSwicm93cy9iIjp7ImR0eXBlIjoiRjY0Iiwic2hhcGUiOlsyLDJdLCJkYXRhX29mZnNldHMiOlszMiw2NF19LCJzdHJlbmd0aCI6eyJkdHlwZSI6"
    "IkY2NCIsInNoYXBlIjpbMiwyXSwiZGF0YV9vZmZzZXRzIjpbNjQsOTZdfSwiZ3JhZGllbnQvYS53ZWlnaHQiOnsiZHR5cGUiOiJGMzIiLCJzaGFw"
    "ZSI6WzIsMl0sImRhdGFfb2Zmc2V0cyI6Wzk2LDExMl19LCJncmFkaWVudC9iIjp7ImR0eXBlIjoiRjMyIiwic2hhcGUiOlsyXSwiZGF0YV9vZmZz"
    "ZXRzIjpbMTEyLDEyMF19fSAgICAAAAAAAADwPwAAAAAAAABAAAAAAAAACEAAAAAAAAAQQAAAAAAAABxAAAAAAAAAFEAAAAAAAAAgQAAAAAAAABhA"
    "AAAAAAAA8D8AAAAAAAAAQAAAAAAAAAhAAAAAAAAAEEAAAIA/AAAAQAAAQEAAAIBAAAAAPwAAgD4="
)
OLD_STATES = base64.b64decode(
    "gAAAAAAAAAB7InhfdCI6eyJkdHlwZSI6IkJGMTYiLCJzaGFwZSI6WzIsMSwyLDJdLCJkYXRhX29mZnNldHMiOlswLDE2XX0sInNoYTI1NiI6eyJk"
    "dHlwZSI6IlU4Iiwic2hhcGUiOlszMl0sImRhdGFfb2Zmc2V0cyI6WzE2LDQ4XX19ICAgIAAAqz4rP4A/qz/VPwBAFUBQZUacIU/Ng9gfuvyIkqOr"
    "GaAG6r5bzm3xPv0ytejIpw=="
)


def test_any_reader_opens_it_and_equal_tensors_give_equal_bytes():
    files = {with_checksum(save(TENSORS, {"z": "1", "count": "2", "y": "é"})) for _ in range(20)}
    assert len(files) == 1, "safetensors orders metadata by a hash that varies"
    (data,) = files
    for name, tensor in load(data).items():
        np.testing.assert_array_equal(tensor, TENSORS[name])
    metadata = checked_metadata(data)
    assert len(metadata.pop("sha256")) == 64
    assert metadata == {"z": "1", "count": "2", "y": "é"}
    assert safetensors_header(data)["b"]["shape"] == [2, 3]


def test_every_flipped_bit_and_every_truncation_is_found():
    """Also in the header: a shape, a name and a count are as much of the file as the numbers."""
    data = with_checksum(save(TENSORS, {"count": "2"}))
    checked_metadata(data)
    for bit in range(8 * len(data)):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged):
            checked_metadata(bytes(altered))
    for length in range(len(data)):
        with pytest.raises(Damaged):
            checked_metadata(data[:length])


def test_a_file_without_checksum_or_with_a_hostile_header_is_damaged():
    with pytest.raises(Damaged, match="no checked safetensors file"):
        checked_metadata(save(TENSORS))
    deep = b"[" * 100_000
    for head in (deep, b"[]", b'{"__metadata__": 3}', b'{"sha256": {"data_offsets": "x"}}'):
        with pytest.raises(Damaged):
            checked_metadata(len(head).to_bytes(8, "little") + head)


def test_a_gram_of_the_old_format_is_read_and_its_damage_found():
    matrix, count = decode_gram(OLD_GRAM)
    assert (matrix.tolist(), count) == ([[4.0, 1.0], [1.0, 2.0]], 3)
    with pytest.raises(Damaged):
        decode_gram(OLD_GRAM[:-1] + b"\x41")


def test_a_measurement_of_the_old_format_is_read_and_its_damage_found():
    measurement = measurement_from_bytes(OLD_MEASUREMENT, "here")
    assert measurement.gradient["a.weight"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert measurement.rows["b"].tolist() == [[7.0, 5.0], [8.0, 6.0]]
    assert measurement.strength.dtype == torch.float64
    with pytest.raises(Damaged, match="here is not as it was written"):
        measurement_from_bytes(OLD_MEASUREMENT[:-1] + b"\x41", "here")
    renamed = OLD_MEASUREMENT.replace(b"gradient/b", b"gradient/c")
    with pytest.raises(Damaged, match="here is not as it was written"):
        measurement_from_bytes(renamed, "here")


def test_kept_states_of_the_old_format_are_read_and_their_damage_found():
    x_t = states_in(OLD_STATES, "here")
    torch.testing.assert_close(x_t, torch.arange(8).reshape(2, 1, 2, 2).to(torch.bfloat16) / 3, rtol=0, atol=0)
    altered = bytearray(OLD_STATES)
    altered[-33] ^= 1  # the last number; the digest follows it
    with pytest.raises(Damaged, match="here was truncated or altered"):
        states_in(bytes(altered), "here")
