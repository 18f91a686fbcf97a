"""The Arrow types of text, images, latents and ids, with their views, dictionaries and large variants."""

import pyarrow as pa

from concept_trak import UserError
from concept_trak.config import DataConfig

_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
_BINARIES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values, without a dictionary or extension around it."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind):
            kind = kind.value_type
        else:
            return kind


def holds_text(kind: pa.DataType) -> bool:
    """Text, a list of texts, or nothing at all."""
    kind = plain_type(kind)
    if any(is_list(kind) for is_list in _LISTS):
        return holds_text(kind.value_type)
    return is_text(kind) or pa.types.is_null(kind)


def is_text(kind: pa.DataType) -> bool:
    kind = plain_type(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_whole_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(plain_type(kind))


def is_number(kind: pa.DataType) -> bool:
    kind = plain_type(kind)
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def is_id(kind: pa.DataType) -> bool:
    """Text or integers, but no extension such as UUID, whose values are not text."""
    return not isinstance(kind, pa.BaseExtensionType) and (is_text(kind) or is_whole_number(kind))


def is_bytes(kind: pa.DataType) -> bool:
    return any(is_binary(plain_type(kind)) for is_binary in _BINARIES)


def is_image(kind: pa.DataType) -> bool:
    """The bytes of an image file, plain or in a struct<bytes, path> as Hugging Face `datasets` has it."""
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and (is_bytes(kind.field(place).type) or pa.types.is_null(kind.field(place).type))
    return is_bytes(kind)


def is_latent(kind: pa.DataType) -> bool:
    """Floating-point numbers in three levels of lists of any kind, of a clip in four."""
    levels, kind = 0, plain_type(kind)
    while any(is_list(kind) for is_list in _LISTS):
        levels, kind = levels + 1, plain_type(kind.value_type)
    return levels in (3, 4) and pa.types.is_floating(kind)


def require_type(key: str, column: str, kind: pa.DataType, data: DataConfig) -> None:
    """That the settings use a column as its type allows.

    Raises:
        UserError: the settings use a column in a way that its type does not allow.
    """
    if key == "data.image_column" and not is_image(kind) and not is_latent(kind):
        paths = "; a column of paths is not read: embed the images" if is_text(kind) else ""
        raise UserError(
            f"{key}={column!r} is {kind}; expected struct<bytes: binary, path: string>, binary, or latents as "
            f"list<list<list<float>>>{paths}"
        )
    if key == "data.conditioning_image_column" and not is_image(kind):
        raise UserError(f"{key}={column!r} is {kind}; expected struct<bytes: binary, path: string>, or binary")
    if key in ("data.caption_column", "data.other_captions") and not holds_text(kind):
        if data.captions == "class" and is_whole_number(kind):
            return
        hint = "; set data.captions=class where it holds classes" if is_whole_number(kind) else ""
        raise UserError(f"{key}={column!r} holds {kind}; expected strings, or lists of strings{hint}")
    if key == "data.id_column" and not is_id(kind):
        raise UserError(f"{key}={column!r} holds {kind}; expected strings or integers")
