"""From a preset and overrides to one validated config: OmegaConf merges, pydantic refuses what makes no sense."""

from __future__ import annotations

import copy
import difflib
import importlib.resources
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.errors import ConfigError, first_line
from harness.record import Track
from harness.registry import registry
from harness.spec import Spec, parse_spec, parse_specs, split_top

COMPONENT_LISTS = ("methods", "suites")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


class Row(_Section):
    """One row of the table: a method, and the mask source that it takes its masks from.

    label: what the table calls it. block: where the table puts it, if not where its parts belong.
    """

    method: Spec
    masks: Spec | None = None
    label: str = ""
    block: Literal["reference", "baseline", "control", "method", "oracle"] | None = None

    def __str__(self) -> str:
        return f"{self.method}@{self.masks}" if self.masks else str(self.method)


class Recipe(_Section):
    """Training settings; the fields of `harness.training.TrainRecipe`, which checks them again."""

    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    batch_size: int = Field(128, gt=0)
    epochs: int | None = Field(None, gt=0)
    steps: int | None = Field(None, gt=0)
    schedule: Literal["constant", "cosine", "onecycle"] = "constant"
    clip_norm: float | None = Field(None, gt=0)
    sampling: Literal["uniform", "class_balanced"] = "uniform"
    shift: int = Field(0, ge=0)
    flips: bool = False
    freeze_batchnorm: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False


class Recipes(_Section):
    """`base` trains from scratch, `finetune` repairs the base model."""

    base: Recipe
    finetune: Recipe


class Segmentation(_Section):
    """Segmentation of the alignment set: harness.segment, or by image content (harness.content_segment).

    pool and restarts are settings of `ppeps_wgm`; `mahalanobis` support exists for it alone.
    """

    kind: Literal["ppeps_wgm", "slic"] = "ppeps_wgm"
    count: int = Field(6, ge=1, le=64)
    pool: int = Field(14, ge=2)
    restarts: int = Field(8, ge=1)
    support: Literal["phi_pos", "all", "mahalanobis"] = "phi_pos"

    @model_validator(mode="after")
    def _fits(self) -> Segmentation:
        if self.kind == "slic" and self.support == "mahalanobis":
            raise ValueError("support mahalanobis needs the mixture of ppeps_wgm; slic knows phi_pos and all")
        return self


class Penalty(_Section):
    """Which input gradient RRR penalises, and how its value is normalised."""

    form: Literal["sum_log_p", "margin", "cross_entropy"] = "sum_log_p"
    normalise: Literal["none", "initial"] = "none"


class Alignment(_Section):
    """The alignment set and what is done with it. methods.md 1.5 lists these as unknowns of the paper."""

    n: int = Field(500, ge=1)
    sampler: Spec = Spec("low_entropy")
    explainer: Spec = Spec("deeplift_shap")
    baselines: int = Field(20, ge=2)
    baseline_kind: Literal["train", "zeros", "blur"] = "train"
    segments: Segmentation = Segmentation()
    lam: float = Field(1.0, ge=0)
    lam_grid: tuple[float, ...] = (0.01, 0.1, 1.0)
    penalty: Penalty = Penalty()

    @field_validator("sampler", "explainer", mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Spec:
        return parse_spec(value)


class Metrics(_Section):
    """What is measured on test."""

    attribution_images: int = Field(500, ge=1)  # so many test images, evenly spaced, for attribution metrics
    explainers: tuple[Spec, ...] = (Spec("deeplift_shap"), Spec("occlusion"))
    rcs_sigma: float = Field(0.25, gt=0)

    @field_validator("explainers", mode="before")
    @classmethod
    def _parse(cls, value: Any) -> tuple[Spec, ...]:
        return tuple(parse_specs(value))


class Selection(_Section):
    """The tuned track's masked validation: what the pixels that the source calls spurious are filled with."""

    fill: Literal["colour", "noise"] = "colour"


class RunConfig(_Section):
    """A run: suites x rows x seeds, and everything that can change their numbers."""

    name: str
    suites: tuple[Spec, ...] = Field(min_length=1)
    methods: tuple[Row, ...] = Field(min_length=1)
    model: Spec
    seeds: tuple[int, ...] = Field(min_length=1)
    tracks: tuple[Track, ...] = ("preregistered",)
    recipes: Recipes
    alignment: Alignment = Alignment()
    metrics: Metrics = Metrics()
    selection: Selection = Selection()
    # Below: where and how it runs. None of it can change a number, none of it enters a cell's identity.
    diagnosis: bool = False  # run repairs only where the base model is good on average and biased (harness.diagnosis)
    results: str = "results"
    workers: int = Field(0, ge=0)  # 0: one per core on CPU, one on a GPU
    device: str = "auto"
    executor: Spec = Spec("local", {})

    @field_validator("executor", mode="before")
    @classmethod
    def _executor(cls, value: Any) -> Spec:
        return parse_spec(value)

    @field_validator("suites", mode="before")
    @classmethod
    def _suites(cls, value: Any) -> tuple[Spec, ...]:
        return tuple(parse_specs(value))

    @field_validator("model", mode="before")
    @classmethod
    def _model(cls, value: Any) -> Spec:
        return parse_spec(value)

    @field_validator("methods", mode="before")
    @classmethod
    def _methods(cls, value: Any) -> tuple[Row, ...]:
        return tuple(parse_rows(value))

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds(cls, value: Any) -> tuple[int, ...]:
        if isinstance(value, int) and not isinstance(value, bool):
            if value < 1:
                raise ValueError("must be a positive count, such as 3, or a list of seeds, such as [0,4]")
            return tuple(range(value))
        if not isinstance(value, list | tuple):
            raise ValueError("must be a count, such as 3, or a list of seeds, such as [0,4]")
        if len({str(seed) for seed in value}) < len(value):
            raise ValueError("a seed stands there twice")
        return tuple(value)

    @field_validator("tracks", mode="before")
    @classmethod
    def _tracks(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


def parse_row(text: Any) -> Row:
    """`method(...)` or `method(...)@source(...)`, or a mapping {row: ..., label: ..., block: ...}."""
    if isinstance(text, Row):
        return text
    if isinstance(text, dict):
        if "row" not in text or set(text) - {"row", "label", "block"}:
            raise ConfigError(f"{text}: write a row as 'method@masks' or as {{row: 'method@masks', label: ...}}")
        parsed = parse_row(text["row"])
        return Row(method=parsed.method, masks=parsed.masks, label=text.get("label") or "", block=text.get("block"))
    parts = split_top(str(text), "@")
    if not 1 <= len(parts) <= 2:
        raise ConfigError(f"'{text}' is not a row: write 'method(...)' or 'method(...)@mask_source(...)'")
    return Row(method=parse_spec(parts[0]), masks=parse_spec(parts[1]) if len(parts) == 2 else None)


def parse_rows(value: Any) -> list[Row]:
    """Rows from a list, or from one text such as `[erm,rrr@oracle]`; equal rows are an error."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("[") and text.endswith("]"):
            text = text[1:-1]
        value = [part.strip("\"' ") for part in split_top(text)]
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise ConfigError("methods: must be a list of rows, such as [erm, rrr@oracle]")
    rows = [parse_row(item) for item in value]
    names = [str(row) for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"methods: {', '.join(twice)} stands there twice")
    return rows


def load_config(preset: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Merge a preset (a registered name or a YAML file) with overrides such as `seeds=3` or `recipes.base.lr=0.01`.

    Raises:
        ConfigError: unknown preset or key (with the nearest), a value that cannot be, a file that is no YAML.
        ComponentError: a component that does not exist.
    """
    return merge(read_values("presets", preset), overrides, preset)


def merge(values: dict[str, Any], overrides: Sequence[str], where: str) -> RunConfig:
    """Plain values changed by overrides, validated. `where` names them in errors, which are those of `load_config`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = copy.deepcopy(values)
    dotted: list[str] = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"'{override}' is not an override; write key=value, for example seeds=3")
        if key in COMPONENT_LISTS or key == "model" or key.split(".")[-1] in ("sampler", "explainer", "explainers"):
            _set(merged, key, value)  # specs hold commas and brackets that YAML would tear apart
        else:
            dotted.append(override)
    try:
        config = OmegaConf.merge(OmegaConf.create(merged), OmegaConf.from_dotlist(dotted))
        plain = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"overrides {' '.join(dotted)}: {error}") from error
    except Exception as error:  # a YAML error in a value
        raise ConfigError(f"overrides {' '.join(dotted)}: not a value: {first_line(error)}") from error
    return validate(plain, where)


def validate(values: Any, where: str) -> RunConfig:
    """A RunConfig from plain values; the first fault becomes one sentence."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        first, *others = error.errors()
        others = [
            other for other in others if other["loc"] != first["loc"][: len(other["loc"])]
        ]  # what follows from it
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{where}: there is no setting '{path}'; {_nearest(first['loc'])}") from None
        given = "" if first["type"] == "missing" else f", got {str(first['input'])[:80]!r}"
        more = f" (and {len(others)} more)" if others else ""
        raise ConfigError(f"{where}: {path}: {_sentence(first)}{given}{more}") from None


_WORDS = {  # by the beginning of pydantic's error type; braces are filled from its context
    "missing": "is missing",
    "int_": "must be a whole number",
    "float_": "must be a number",
    "finite_number": "must be a finite number",
    "bool_": "must be true or false",
    "string_": "must be text",
    "tuple_": "must be a list, such as [a,b]",
    "list_": "must be a list, such as [a,b]",
    "dict_": "must be a section of key: value",
    "model_": "must be a section of key: value",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "too_short": "must not be empty",
}


def _sentence(fault: Any) -> str:
    """One of pydantic's findings in the words of a person who writes settings, not of one who writes models."""
    if fault["type"] == "value_error":
        return str(fault["msg"]).removeprefix("Value error, ")
    words = next((words for kind, words in _WORDS.items() if fault["type"].startswith(kind)), str(fault["msg"]))
    limits = {key: f"{value:g}" if isinstance(value, float) else value for key, value in fault.get("ctx", {}).items()}
    return words.format(**limits)


def _nearest(location: tuple[int | str, ...]) -> str:
    model: Any = RunConfig
    for part in location[:-1]:
        annotation = model.model_fields[str(part)].annotation if hasattr(model, "model_fields") else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    known = list(model.model_fields)
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"


def read_values(kind: Literal["presets", "studies"], name: str) -> dict[str, Any]:
    """Values of a preset or a study by its registered name, or of a YAML file; `name` is filled in.

    Raises:
        ConfigError: there is no such file, or it is no YAML mapping. ComponentError: there is no such name.
    """
    from omegaconf import OmegaConf

    what = registry(kind).singular
    if name.endswith((".yaml", ".yml")):
        path: Any = Path(name)
        if not path.is_file():
            beside = {file.stem: file for file in path.parent.glob("*.y*ml")}
            near = difflib.get_close_matches(path.stem, beside, n=1)
            hint = f"; did you mean '{beside[near[0]]}'?" if near else ""
            raise ConfigError(f"there is no {what} file {name}{hint}")
    else:
        package, _, file = registry(kind).info(name).factory.partition(":")
        path = importlib.resources.files(package).joinpath(file)
    try:
        values = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")), resolve=True)
    except Exception as error:  # the YAML reader has several error types
        raise ConfigError(f"the {what} {name} cannot be read: {_yaml_problem(error)}") from error
    if not isinstance(values, dict) or not values:
        raise ConfigError(f"the {what} {name} holds no settings")
    if kind == "presets" and {"axes", "measure"} <= values.keys():
        raise ConfigError(f"{name} is a study, not a preset: `vabench study {name}` runs it")
    plain: dict[str, Any] = {str(key): value for key, value in values.items()}
    plain.setdefault("name", Path(name).stem)
    return plain


def _yaml_problem(error: Exception) -> str:
    """What is wrong and where, in one line: the YAML reader spreads it over several."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or not problem:
        return first_line(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        values = values.setdefault(part, {})
    values[last] = value
