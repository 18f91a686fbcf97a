"""What an inquiry into components named: `components/<name>/units.json`, written before anything is measured.

So a unit that no inquiry names is waste, and one that is named can be looked for, and looked into.
"""

import json
from collections.abc import Iterator, Sequence

from concept_trak import UserError
from concept_trak.components.measure import measurement_from_bytes
from concept_trak.store.gc import UNIT, Garbage, existing
from concept_trak.store.store import Store
from concept_trak.store.verify import ALTERED, MISSING, SOUND, Finding

MEASUREMENTS = "components/units"
NAMES_FILE = "units.json"


def write_measurement_names(store: Store, name: str, units: Sequence[str]) -> None:
    """Note the units of the inquiry `name`, in place of an earlier one's."""
    store.replace(f"components/{name}/{NAMES_FILE}", json.dumps(sorted(units), indent=0).encode())


def named_measurements(store: Store) -> frozenset[str]:
    """Every unit that an inquiry names.

    Raises:
        UserError: a casebook cannot be read, so that nobody can tell.
    """
    names = set[str]()
    for book in (name for name in store.names("components") if name.endswith(f"/{NAMES_FILE}")):
        names.update(_units(store, book))
    return frozenset(names)


def _units(store: Store, book: str) -> list[str]:
    try:
        return [str(unit) for unit in json.loads(store.read(book))]
    except ValueError:
        raise UserError(
            f"{store.uri}/{book} is damaged, so nobody can tell which units it needs; run its command again, or "
            "delete its folder if it is given up"
        ) from None


def unneeded_measurements(store: Store, before: float) -> list[Garbage]:
    """Units that no inquiry names, older than `before` (unix time). Listed first, so that what is begun now is safe."""
    units, needed = store.names(MEASUREMENTS), named_measurements(store)
    free = existing(store, [unit for unit in units if unit not in needed])
    return [Garbage(UNIT, unit, size) for unit, size, age in free if age < before]


def verify_measurements(store: Store) -> Iterator[Finding]:
    """Every unit that is named or stands: sound, altered, or missing though an inquiry has come to its tables."""
    standing = store.names("components")
    done = {name.split("/")[1] for name in standing if "/components_groups/" in name}
    concluded = {unit for book in done for unit in _units(store, f"components/{book}/{NAMES_FILE}")}
    for unit in sorted(concluded | {name for name in standing if name.startswith(f"{MEASUREMENTS}/")}):
        try:
            measurement_from_bytes(store.read(unit), unit)
        except FileNotFoundError:
            yield Finding(unit, MISSING)
        except ValueError:
            yield Finding(unit, ALTERED)
        else:
            yield Finding(unit, SOUND)
