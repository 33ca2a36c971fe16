"""Configurations by name, from files and from mappings: what becomes fields of ``RASConfig``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ras_dit.errors import RASError
from ras_dit.public_code import PublicCode


def presets() -> tuple[str, ...]:
    """Names that :meth:`ras_dit.RASConfig.load` knows, sorted."""
    folder = resources.files("ras_dit") / "presets"
    return tuple(sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml")))


def read_fields(source: object, names: Sequence[str]) -> dict[str, Any]:
    """The fields that a mapping, a preset or a YAML file holds.

    Args:
        source: A mapping, a preset name, or the path of a YAML file.
        names: The fields that there are.

    Raises:
        RASError: For an unknown preset, a missing or malformed file, or an unknown field.
    """
    if isinstance(source, Mapping):
        return _checked(source, names, "the mapping")
    if not isinstance(source, str | Path):
        hint = f" (for a ratio: sample_ratio={source})" if isinstance(source, int | float) else ""
        raise RASError(
            f"cannot read a configuration from {type(source).__name__}; expected a RASConfig, "
            f"a preset name, a path to a YAML file or a mapping{hint}"
        )
    if isinstance(source, str) and source in presets():
        text = (resources.files("ras_dit") / "presets" / f"{source}.yaml").read_text("utf-8")
        return _checked(yaml.safe_load(text), names, f"preset {source!r}")
    return _read_file(Path(source), names)


def _read_file(path: Path, names: Sequence[str]) -> dict[str, Any]:
    if path.suffix not in (".yaml", ".yml"):
        raise RASError(
            f"{str(path)!r} is neither a preset ({', '.join(presets())}) nor a path ending in "
            ".yaml or .yml"
        )
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RASError(f"cannot read the configuration {str(path)!r}: {error}") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise RASError(f"{str(path)!r} is not valid YAML: {reason}") from error
    return _checked({} if data is None else data, names, repr(str(path)))


def _checked(data: object, names: Sequence[str], where: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise RASError(f"{where} holds a {type(data).__name__}; expected fields of RASConfig")
    unknown = sorted(str(key) for key in data if key not in names)
    if unknown:
        raise RASError(
            f"{where} has the unknown field {', '.join(unknown)}; RASConfig has {', '.join(names)}"
        )
    fields = dict(data)
    public = data.get("public_code")
    if isinstance(public, Mapping):
        fields["public_code"] = _public_code(public, where)
    return fields


def _public_code(data: Mapping[str, Any], where: str) -> PublicCode:
    try:
        return PublicCode(**data)
    except TypeError as error:
        names = ", ".join(field.name for field in dataclasses.fields(PublicCode))
        raise RASError(f"public_code in {where} holds {dict(data)}; it has {names}") from error
