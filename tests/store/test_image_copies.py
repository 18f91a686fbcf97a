"""The copy of an image: read as it was written, and damage named."""

import random

import pytest

from concept_trak.store.image_copies import ImageCopy, copies_folder, image_copy, read_image_copy, write_image_copy
from concept_trak.store.part import Damaged
from concept_trak.store.store import Store

INDEX = "sources/data/a.b-1-2.parquet"
NAME = image_copy(INDEX, 7)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path))


@pytest.mark.parametrize("copy", [ImageCopy(bytes(range(256)) * 9), ImageCopy(content="0123abcd")])
def test_a_copy_is_read_as_it_was_written(store, copy):
    write_image_copy(store, NAME, copy)
    write_image_copy(store, NAME, ImageCopy(b"another"))
    assert read_image_copy(store, NAME) == copy, "a copy is never replaced"
    assert store.names(copies_folder(INDEX)) == [NAME] == ["sources/data/images/a.b-1-2/7.parquet"]
    with pytest.raises(FileNotFoundError):
        read_image_copy(store, image_copy(INDEX, 8))


def test_a_copy_under_another_name_is_damaged(store):
    write_image_copy(store, NAME, ImageCopy(b"image"))
    store.create(image_copy(INDEX, 8), store.read(NAME))
    with pytest.raises(Damaged, match=r"8\.parquet is damaged: .*jobs\.verify repair=true"):
        read_image_copy(store, image_copy(INDEX, 8))


def test_an_altered_byte_of_the_image_is_named(store):
    image = random.Random(0).randbytes(1 << 14)  # too long for Parquet's statistics, and nothing that compresses
    write_image_copy(store, NAME, ImageCopy(image))
    data = store.read(NAME)
    at = data.index(image[:100]) + 5000
    store.replace(NAME, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(Damaged, match="is damaged"):
        read_image_copy(store, NAME)


@pytest.mark.parametrize("data", [b"", b"no parquet"])
def test_other_bytes_are_damaged(store, data):
    store.create(NAME, data)
    with pytest.raises(Damaged, match="is damaged"):
        read_image_copy(store, NAME)
