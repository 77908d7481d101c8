"""What a run learns, as a YAML file: strict loading, dotted overrides, dumping, and errors of one
sentence.
"""

from __future__ import annotations

import dataclasses
import difflib
import html
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import yaml
from pydantic import Field, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import CoreSchema, core_schema

from metatrain import algorithms, custom, models, storage, tasks
from metatrain.core import Algorithm, InputError, Model, Norm, Split, TaskFamily, Ticket, Work
from metatrain.learner import Outer

Tree = dict[str, Any]
C = TypeVar("C")


class _Loader(yaml.SafeLoader):
    """YAML that says a key once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice} is there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


class OwnClass:
    """Lets a name be "package.module:Class": a class of the user's that does what `protocol`
    says.
    """

    def __init__(self, protocol: type) -> None:
        self._protocol = protocol

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        built_in = handler(source)
        plain = core_schema.plain_serializer_function_ser_schema(dump)
        return core_schema.no_info_wrap_validator_function(
            self._validate, built_in, serialization=plain
        )

    def _validate(self, value: Any, built_in: Callable[[Any], Any]) -> Any:
        name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
        if not isinstance(name, str) or ":" not in name:
            return built_in(value)
        return _construct(_own(name, self._protocol), value) if isinstance(value, dict) else value


AnyFamily = Annotated[tasks.BuiltIn, Field(discriminator="name"), OwnClass(TaskFamily)]
AnyModel = Annotated[models.BuiltIn, Field(discriminator="name"), OwnClass(Model)]
AnyAlgorithm = Annotated[algorithms.BuiltIn, Field(discriminator="name"), OwnClass(Algorithm)]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured after training, and how that differs from training.

    `family` and `algorithm` override keys of the recipe's, such as {queries: 15} and {inner_steps:
    10}. `norm` may list several modes; the first is the result. The tasks are a fixed list that
    `seed` determines.
    """

    __pydantic_config__ = {"extra": "forbid"}

    tasks: int = 600
    seed: int = 1
    split: Literal["val", "test"] = "test"
    tasks_per_ticket: int = 20
    norm: Norm | tuple[Norm, ...] = "transductive"
    family: dict[str, Any] = field(default_factory=dict)
    algorithm: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        norms = (self.norm,) if isinstance(self.norm, str) else self.norm
        if not norms or len(set(norms)) < len(norms):
            raise InputError(
                f"evaluation.norm must name one or more modes, each once, got {list(norms)}"
            )
        if self.tasks < 2 or self.tasks_per_ticket < 1:
            raise InputError(
                "an evaluation needs at least 2 tasks and 1 task a ticket, "
                f"got tasks {self.tasks} and tasks_per_ticket {self.tasks_per_ticket}"
            )


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What is measured on the val split in training, each `every_steps` outer steps (never if it is
    0).

    `family` and `algorithm` override keys of the recipe's, and `norm` is one mode. Each follows the
    evaluation's if it is None: what chooses among trials is then measured like the result.
    """

    __pydantic_config__ = {"extra": "forbid"}

    every_steps: int = 0
    tasks: int = 100
    seed: int = 2
    norm: Norm | None = None
    family: dict[str, Any] | None = None
    algorithm: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.every_steps < 0 or self.tasks < 1:
            raise InputError(
                "validation.every_steps cannot be negative and validation.tasks must be at least "
                "1, "
                f"got {self.every_steps} and {self.tasks}"
            )


class Setting(NamedTuple):
    """What tickets of one kind of work are computed with."""

    split: Split
    family: TaskFamily
    algorithm: Algorithm
    norm: tuple[Norm, ...]
    seed: int
    tasks: int  # a step's, or an evaluation's
    tasks_per_ticket: int

    def tickets(self, work: Work, step: int = 0) -> list[Ticket]:
        """All tickets of this work, in the order in which their answers are added."""
        parts = -(-self.tasks // self.tasks_per_ticket)
        return [Ticket(work, self.split, step, part) for part in range(parts)]


@dataclass(frozen=True, kw_only=True, repr=False)
class Recipe:
    """Everything that decides what is learnt: with a seed it determines the parameters."""

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    seed: int = 0
    family: AnyFamily
    model: AnyModel
    algorithm: AnyAlgorithm
    norm: Norm = "transductive"
    outer: Outer
    validation: Validation = Validation()
    evaluation: Evaluation = Evaluation()

    def __post_init__(self) -> None:
        check_name(self.name)

    def setting(self, work: Work) -> Setting:
        """How the tasks of a kind of work are drawn and computed. InputError if an override does
        not fit.
        """
        outer, evaluation, validation = self.outer, self.evaluation, self.validation
        if work == "update":
            tasks, chunk = outer.tasks_per_step, outer.tasks_per_ticket
            return Setting(
                "train", self.family, self.algorithm, (self.norm,), self.seed, tasks, chunk
            )
        family, algorithm = self._overridden("family", work), self._overridden("algorithm", work)
        norms = (evaluation.norm,) if isinstance(evaluation.norm, str) else evaluation.norm
        if work == "score":
            tasks, chunk = evaluation.tasks, evaluation.tasks_per_ticket
            return Setting(
                evaluation.split, family, algorithm, norms, evaluation.seed, tasks, chunk
            )
        norm, chunk = (
            (validation.norm or norms[0],),
            min(validation.tasks, evaluation.tasks_per_ticket),
        )
        return Setting("val", family, algorithm, norm, validation.seed, validation.tasks, chunk)

    def __repr__(self) -> str:
        parts = (self.family.name, self.model.name, self.algorithm.name)
        return (
            f"<{type(self).__name__} {self.name}: {', '.join(parts)}, {self.outer.steps} "
            "outer steps>"
        )

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(as_yaml(self))}</pre>"

    def _overridden(self, name: str, work: Work) -> Any:
        """The family or the algorithm of a validation or an evaluation."""
        own = getattr(self.validation, name) if work == "validate" else None
        group, changes = (
            ("validation", own)
            if own is not None
            else ("evaluation", getattr(self.evaluation, name))
        )
        return override(getattr(self, name), changes, f"{group}.{name}")


def check_name(name: str) -> None:
    """Refuse names that are no folder's."""
    if not name or name.startswith(".") or any(character in name for character in "/\\"):
        raise InputError(
            "name",
            got=name,
            expected="one that a folder can have",
            remedy="without / and no dot first",
        )


def _adapter(kind: Any) -> TypeAdapter[Any]:
    """pydantic's reader and writer of a dataclass."""
    return _made(kind)


@cache
def _made(kind: Any) -> TypeAdapter[Any]:
    """To make one takes ten milliseconds."""
    return TypeAdapter(kind)


def load(kind: type[C], path: Path | str, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file as a dataclass tree, after overrides such as "algorithm.inner_lr=0.1"."""
    return parse(kind, apply_overrides(read(path), overrides), str(path))


def read(path: Path | str) -> Tree:
    """A YAML file of keys and values, not yet validated; that of a run may lie in a storage, as its
    output does.
    """
    try:
        tree = yaml.load(
            storage.read(str(path)).decode()
            if storage.is_remote(str(path))
            else Path(path).read_text(),
            _Loader,
        )
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot read recipe {path}",
            remedy=f"{reason}; give a YAML file such as those in recipes/",
        ) from error
    except yaml.YAMLError as error:
        raise InputError(
            f"{path} is not YAML", remedy=f"{' '.join(str(error).split())}; correct it there"
        ) from error
    if not isinstance(tree, dict):
        raise InputError(f"{path} must hold keys and values, such as `name", remedy="my-run`")
    return tree


def is_sweep(tree: Tree) -> bool:
    """Whether the keys of a file are those of a sweep, which names its recipe."""
    return bool({"space", "recipe"} & tree.keys()) and "family" not in tree


def apply_overrides(tree: Tree, overrides: Sequence[str]) -> Tree:
    """Set each "dotted.key=value" in the tree, the value being YAML."""
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--set takes key=value, such as algorithm.inner_lr=0.1; got {item!r}")
        try:
            put(tree, key.strip(), yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise InputError(
                f"the value of --set {item!r} is not YAML",
                remedy=("write it like --set 'model.hidden=[40, 40]'"),
            ) from error
    return tree


def parse(kind: type[C], tree: Any, source: str) -> C:
    """Validate plain data as a dataclass; the first thing wrong is the error's sentence."""
    try:
        found: C = _adapter(kind).validate_python(tree)
    except ValidationError as error:
        raise _refusal(kind, error, source) from error
    for key, value in flatten(_adapter(kind).dump_python(found)):  # as JSON, nan would be null
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{source}", remedy=f"{key} is {value}, expected a finite number")
    return found


def dump(config: Any) -> Tree:
    """The dataclass tree as plain data that `parse` reads back."""
    found: Tree = _adapter(type(config)).dump_python(config, mode="json")
    return found


def as_yaml(config: Any) -> str:
    """A configuration as the text of a YAML file."""
    return yaml.safe_dump(dump(config), sort_keys=False, allow_unicode=True)


def explain(config: Any, path: Path | str, overrides: Sequence[str], origin: str = "recipe") -> str:
    """The configuration as YAML, with a comment for each value: default, --set, or the file, called
    `origin`.
    """
    given = {key for key, _ in flatten(apply_overrides(read(path), overrides))}
    prefixes = [item.partition("=")[0].strip() for item in overrides]

    def source(key: str) -> str:
        if key not in given:
            return "default"
        return "--set" if any(key == p or key.startswith(f"{p}.") for p in prefixes) else origin

    def text(value: Any) -> str:
        flow = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
        return flow.removesuffix("\n...\n").strip()

    def lines(tree: Tree, prefix: str, indent: str) -> Iterator[str]:
        for key, value in tree.items():
            if isinstance(value, dict) and value:
                yield f"{indent}{text(key)}:"
                yield from lines(value, f"{prefix}{key}.", f"{indent}  ")
            else:
                yield f"{f'{indent}{text(key)}: {text(value)}':<48}  # {source(f'{prefix}{key}')}"

    return "\n".join(lines(dump(config), "", ""))


def override(component: C, changes: Mapping[str, Any], source: str) -> C:
    """A component with some of its fields changed, validated again."""
    if not changes:
        return component
    tree = dump(component)
    if changes.get("name", tree.get("name")) != tree.get("name"):
        raise InputError(
            f"{source} cannot change the name from {tree['name']!r}",
            remedy="train another run for that",
        )
    for item in dataclasses.fields(component):  # type: ignore[arg-type]
        if (
            item.name in changes
            and item.metadata.get("training_only")
            and changes[item.name] != tree[item.name]
        ):
            raise InputError(
                f"{source}.{item.name} would change nothing",
                remedy=(
                    f"{tree['name']} uses it in training "
                    "only; leave it out, or "
                    "train another run with it"
                ),
            )
    try:
        return _construct(type(component), tree | dict(changes))
    except ValidationError as error:
        raise _refusal(type(component), error, source) from error
    except ValueError as error:
        raise InputError(f"{source}", remedy=f"{error}") from error


def put(tree: Tree, key: str, value: Any) -> None:
    """Set a dotted key."""
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise InputError(
                f"{key!r} cannot be set",
                remedy=(f"{parent!r} is a value, not a group; `metatrain config` shows the keys"),
            )
    tree[last] = value


def flatten(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) for each leaf: the keys that `put` sets."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def own_classes(recipe: Recipe) -> list[str]:
    """The names of the user's own classes in a recipe."""
    return custom.own(
        component.name for component in (recipe.family, recipe.model, recipe.algorithm)
    )


def own_code(recipe: Recipe, *, whole: bool = False) -> list[Path]:
    """The files and package folders that the user's own classes in a recipe need, if they are not
    installed.

    If some cannot be sent, that is an InputError if it has to be the `whole` of them, and otherwise
    a warning.
    """
    return custom.code(own_classes(recipe), whole=whole)


def _own(name: str, protocol: type) -> type[Any]:
    """The class of the user's that "package.module:Class" names."""
    kind = custom.imported(name)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ValueError(
            f"{name!r} is no dataclass: decorate it with @dataclass(frozen=True, kw_only=True)"
        )
    fields = {field.name for field in dataclasses.fields(kind)}
    if "name" not in fields:
        raise ValueError(f"{name!r} has no field for its name: give it one, `name: str`")
    lacking = [
        n
        for n in vars(protocol)
        if not n.startswith("_") and n not in fields and not hasattr(kind, n)
    ]
    if lacking:
        raise ValueError(
            f"{name!r} is no {protocol.__name__}, it lacks {', '.join(lacking)}: see "
            "metatrain/core.py"
        )
    return kind


def _construct(kind: type[C], tree: Tree) -> C:
    """A dataclass from its fields; ValueError where one is unknown, which a class of the user's
    might let pass.
    """
    fields = [field.name for field in dataclasses.fields(kind) if field.init]  # type: ignore[arg-type]
    for key in tree.keys() - fields:
        near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(sorted(fields))}"
        )
        raise ValueError(f"{key} is not a key of {tree.get('name', kind.__name__)}; {hint}")
    name = str(tree.get("name"))
    with custom.guarded(name) if ":" in name else nullcontext():
        try:
            found: C = _adapter(kind).validate_python(tree)
            return found
        except PydanticUserError as error:
            reason = str(error).splitlines()[0]
            sentence = (
                f"{tree['name']} has a field that cannot be read from YAML ({reason}): correct it"
            )
            raise ValueError(sentence) from error


def _refusal(kind: Any, error: ValidationError, source: str) -> InputError:
    # A misspelt key is also a missing one: name the one that is there.
    found = sorted(error.errors(), key=lambda e: e["type"] != "unexpected_keyword_argument")
    return InputError(f"{source}", remedy=f"{_sentence(kind, found[0])}")


def _sentence(kind: Any, error: Any) -> str:
    """What is wrong, what was expected, what to do: from the first of pydantic's errors."""
    path: list[str] = []
    here: Any = kind
    for part in error["loc"]:
        options = _dataclasses_of(here)
        tagged = [option for option in options if getattr(option, "name", None) == part]
        if len(options) > 1 and tagged:
            here = tagged[0]  # pydantic names the union's chosen member; the file does not
            continue
        if not options and not isinstance(part, int):
            break  # pydantic names the members of a plain union, too
        path.append(str(part))
        fields = typing.get_type_hints(options[0], include_extras=True) if len(options) == 1 else {}
        here = fields.get(part)
        if here is None and error["type"] == "unexpected_keyword_argument":
            near = difflib.get_close_matches(str(part), fields, n=1, cutoff=0.5)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else f"choose one of {', '.join(sorted(fields))}"
            )
            file = "recipe" if issubclass(kind, Recipe) else kind.__name__.lower()
            return f"{'.'.join(path)} is not a key of a {file}; {hint}"
    where = ".".join(path) or "the file"
    value = error["input"]
    if error["type"] == "missing":
        return f"{where} is missing; give it a value"
    if error["type"] == "union_tag_not_found":
        return f"{where} needs a name: one of {_names(here)}"
    if error["type"] == "union_tag_invalid":
        given = value.get("name") if isinstance(value, dict) else value
        near = difflib.get_close_matches(str(given), _names(here).split(", "), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        own = (
            ', or a class of yours as "package.module:Class"'
            if where in ("family", "model", "algorithm")
            else ""
        )
        return f"{where}.name is {given!r}, expected one of {_names(here)}{own}{hint}"
    if error["type"] == "value_error":
        return f"{where}: {error['ctx']['error']}" if path else str(error["ctx"]["error"])
    expected = error["msg"].removeprefix("Input should be ").partition(", unable to parse")[0]
    return f"{where} is {value!r}, expected {expected}"


def _dataclasses_of(hint: Any) -> list[Any]:
    if typing.get_origin(hint) is Annotated:
        return _dataclasses_of(typing.get_args(hint)[0])
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return [found for option in typing.get_args(hint) for found in _dataclasses_of(option)]
    return [hint] if dataclasses.is_dataclass(hint) else []


def _names(hint: Any) -> str:
    return ", ".join(
        str(getattr(option, "name", option.__name__)) for option in _dataclasses_of(hint)
    )
