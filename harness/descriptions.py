"""Class-level descriptions: the YAML files in which a domain expert says what makes a class and what must not count.

A file has the sections `core` (what makes an image of this class) and `spurious` (what may stand in such images and has
nothing to do with the class); each maps class names to one sentence. Either section may be absent. `both`, the third
preset, is the two sentences together, unless a section of that name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from harness.errors import DataError, first_line

KINDS = ("core", "spurious", "both")
Descriptions = dict[str, dict[str, str]]


def read_descriptions(path: str | Path, class_names: Sequence[str]) -> Descriptions:
    """Read and check a file: section -> class name -> sentence.

    Raises:
        DataError: unreadable, an unknown section, or a class that is missing or unknown.
    """
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read the descriptions in '{path}': {first_line(error)}") from error
    if not isinstance(value, dict) or not value or any(kind not in KINDS for kind in value):
        raise DataError(f"'{path}' needs one or more of the sections {', '.join(KINDS)}, and nothing else")
    found = {kind: _section(path, kind, section, class_names) for kind, section in value.items()}
    if "core" in found and "spurious" in found:
        found.setdefault("both", {c: f"{found['core'][c]} {found['spurious'][c]}" for c in class_names})
    return found


def _section(path: str | Path, kind: str, section: object, class_names: Sequence[str]) -> dict[str, str]:
    if not isinstance(section, Mapping):
        raise DataError(f"'{path}': the section '{kind}' must map class names to sentences")
    given = {str(name): str(sentence).strip() for name, sentence in section.items()}
    missing = [name for name in class_names if not given.get(name)]
    unknown = [name for name in given if name not in class_names]
    if missing or unknown:
        what = f"no sentence for {', '.join(missing)}" if missing else f"unknown classes {', '.join(unknown)}"
        raise DataError(f"'{path}', section '{kind}': {what}; the classes are {', '.join(class_names)}")
    return {name: given[name] for name in class_names}
