"""Families, models and algorithms of one's own run by their names, on Ray workers too, with all
that they import.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import py_compile
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cases import SINUSOID, config
from pages import blocks, commands
from services import command, store

from cluster import run
from cluster.config import RunConfig
from cluster.jobs.package import Job, pack
from metatrain import bundle, custom_source, schema
from metatrain.core import InputError
from metatrain.recipe import own_classes, own_code
from metatrain.start import prepare

RECIPES = Path(__file__).parent.parent / "recipes"
LESS = (
    "outer.steps=3",
    "outer.tasks_per_step=4",
    "validation.tasks=2",
    "evaluation.tasks=4",
    "tracking.uri=none",
    "workers.wait_s=600",
)


OTHERS = """
from dataclasses import dataclass
from torch import Tensor, nn

@dataclass(frozen=True, kw_only=True)
class Nameless:
    def module(self, inputs, outputs, feedback):
        return nn.Linear(1, 1)

@dataclass(frozen=True, kw_only=True)
class Odd(Nameless):
    name: str
    weight: Tensor | None = None
"""


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Path]:
    """A folder with a package that is not part of this project."""
    (tmp_path / "mine").mkdir()
    shutil.copy(RECIPES / "own.py", tmp_path / "mine" / "classes.py")
    text = (RECIPES / "own.yaml").read_text().replace("recipes.own:", "mine.classes:")
    (tmp_path / "mine.yaml").write_text(text)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or tmp_path).startswith(str(tmp_path)):
            del sys.modules[name]
    sys.path[:] = [entry for entry in sys.path if not entry.startswith(str(tmp_path))]


def train(folder: Path, *sets: str) -> Any:
    arguments = [item for value in (*LESS, *sets) for item in ("--set", value)]
    return command(
        "train", str(folder / "mine.yaml"), "--set", f"output={folder / 'run'}", *arguments
    )


def test_they_train_evaluate_and_are_in_the_bundle_by_name(mine: Path) -> None:
    done = train(mine, "workers.max=0")
    assert done.returncode == 0, done.stderr
    assert "Parabolas shots=5" in done.stdout
    assert "mine.classes:SignMAML inner_lr=0.03" in done.stdout
    bundled = yaml.safe_load((mine / "run" / "bundle" / "recipe.yaml").read_text())
    assert bundled["model"] == {"name": "mine.classes:SineNet", "width": 40}
    sets = ("--set", "workers.max=0", "--set", "evaluation.algorithm.inner_steps=1")
    done = command("evaluate", str(mine / "run"), *sets)
    assert done.returncode == 0, done.stderr
    assert "inner_steps=1" in done.stdout.splitlines()[-1], done.stderr


@pytest.mark.ray
def test_a_ray_worker_is_sent_them_and_gives_the_same_result(
    mine: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """From a process whose own folders, which Ray's workers of this machine look into, do not hold
    the package.
    """
    (mine / "helpers.py").write_text("from beside.tools import same\n")
    (mine / "beside").mkdir()
    (mine / "beside" / "tools.py").write_text("def same(x):\n    return x\n")
    with (mine / "mine" / "classes.py").open("a") as file:
        file.write("\nimport helpers\n")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    script = elsewhere / "go.py"
    script.write_text(
        f"import sys; sys.path.append({str(mine)!r})\nfrom tuning.cli import main\nmain()\n"
    )
    results = []
    for workers in (0, 1):
        sets = [*LESS, f"workers.max={workers}", f"output={elsewhere / str(workers)}"]
        arguments = [
            "train",
            str(mine / "mine.yaml"),
            *(item for value in sets for item in ("--set", value)),
        ]
        done = subprocess.run(
            [sys.executable, str(script), *arguments],
            cwd=elsewhere,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        results.append(done.stdout.splitlines()[-1])
    assert results[0] == results[1]


def test_what_a_cluster_is_sent_is_the_package_and_nothing_that_is_installed(mine: Path) -> None:
    config = schema.load(RunConfig, mine / "mine.yaml")
    assert own_code(config.recipe()) == [mine / "mine"]
    assert own_code(schema.load(RunConfig, RECIPES / "demo.yaml").recipe()) == []


def test_overrides_of_an_evaluation_are_as_strict_as_the_recipe(mine: Path) -> None:
    config = schema.load(RunConfig, mine / "mine.yaml", ["evaluation.algorithm.inner_stpes=1"])
    with pytest.raises(InputError) as error:
        config.setting("score")
    name = "mine.classes:SignMAML"
    assert error.value.what == f"evaluation.algorithm: inner_stpes is not a key of {name}"
    assert error.value.remedy == "did you mean 'inner_steps'?"
    config = schema.load(RunConfig, mine / "mine.yaml", ["evaluation.algorithm.name=maml"])
    with pytest.raises(InputError) as error:
        config.setting("score")
    assert error.value.what == f"evaluation.algorithm cannot change the name from {name!r}"


def test_dump_then_parse_is_identity(mine: Path) -> None:
    config = schema.load(RunConfig, mine / "mine.yaml")
    assert schema.parse(RunConfig, schema.dump(config), "dumped") == config


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        (
            "family.name",
            "mine.clases:Parabolas",
            r"family: cannot import .* \(ModuleNotFoundError: No module named",
        ),
        (
            "model.name",
            "mine.classes:Sinenet",
            r"model: cannot import .* \(AttributeError: module .* has no attribute",
        ),
        ("model.name", ".classes:SineNet", "model.name is '.classes:SineNet', expected"),
        ("model.name", "http://x", "model.name is 'http://x', expected"),
        ("model.name", "mine.broken:Net", r"model: cannot import 'mine.broken:Net' \(SyntaxError"),
        ("model.name", "mine.classes.SineNet", r'or a class of yours as "package.module:Class"'),
        ("model.name", "os:system", "model: 'os:system' is not a dataclass"),
        (
            "model.name",
            "mine.others:Nameless",
            "model: 'mine.others:Nameless' has no field for its name: add `name: str`",
        ),
        (
            "model.name",
            "mine.others:Odd",
            "model: mine.others:Odd has a field that cannot be read from YAML",
        ),
        (
            "model.name",
            "mine.classes:Parabolas",
            "model: 'mine.classes:Parabolas' lacks module: metatrain/core/contracts.py",
        ),
        (
            "algorithm.inner_rl",
            0.1,
            "algorithm: inner_rl is not a key of .*: did you mean 'inner_lr'",
        ),
        ("family.shots", "five", "family.shots is 'five', expected a valid integer"),
    ],
)
def test_what_is_wrong_is_one_sentence(mine: Path, key: str, value: Any, sentence: str) -> None:
    (mine / "mine" / "broken.py").write_text("def")
    (mine / "mine" / "others.py").write_text(OTHERS)
    tree = schema.read(mine / "mine.yaml")
    if value in ("mine.others:Nameless", "mine.others:Odd", "mine.classes:Parabolas"):
        tree["model"] = {}
    schema.put(tree, key, value)
    with pytest.raises(InputError, match=sentence):
        schema.parse(RunConfig, tree, "mine.yaml")


IMPORTS = {  # what a module says -> what goes along
    "import helpers": {"helpers.py"},
    "import helpers as h, os": {"helpers.py"},
    "from helpers import x": {"helpers.py"},
    "from helpers import *": {"helpers.py"},
    "def later():\n    import helpers": {"helpers.py"},
    "class C:\n    import helpers": {"helpers.py"},
    "try:\n    import nowhere\nexcept ImportError:\n    import helpers": {"helpers.py"},
    "if x:\n    pass\nelse:\n    from helpers import x": {"helpers.py"},
    "import importlib\nimportlib.import_module('helpers')": {"helpers.py"},
    "from importlib import import_module\nimport_module('helpers')": {"helpers.py"},
    "__import__('helpers')": {"helpers.py"},
    "def later():\n    import chain": {"chain.py", "helpers.py"},
    "import beside": {"beside/__init__.py"},
    "import beside.tools": {"beside/__init__.py", "beside/tools.py", "helpers.py"},
    "from beside import tools": {"beside/__init__.py", "beside/tools.py", "helpers.py"},
    "from beside.tools import x": {"beside/__init__.py", "beside/tools.py", "helpers.py"},
    "from loose.inner import x": {"loose/inner.py"},
    "from loose import inner": {"loose/inner.py"},
    "from . import near": {"mine/near.py"},
    "from .near import x": {"mine/near.py"},
    "from mine import near": {"mine/near.py"},
    "from .deep.below import x": {"mine/deep/__init__.py", "mine/deep/below.py", "mine/near.py"},
    "import os, json, torch, yaml, metatrain.core, cluster, pytest": set(),
    "from .... import beyond": set(),
    "def later():\n    import nowhere": set(),
}


def neighbours(folder: Path) -> None:
    (folder / "helpers.py").write_text("x = 1\n")
    (folder / "unrelated.py").write_text("raise SystemExit\n")
    (folder / "chain.py").write_text("import helpers\nimport chain\n")
    for name, text in {
        "beside/__init__.py": "",
        "beside/tools.py": "import helpers\nx = 1\n",
        "loose/inner.py": "x = 1\n",
        "mine/near.py": "x = 1\n",
        "mine/deep/__init__.py": "",
        "mine/deep/below.py": "from ..near import x\n",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def added(folder: Path, text: str) -> RunConfig:
    """The recipe, of which one of the modules says this as well."""
    with (folder / "mine" / "classes.py").open("a") as file:
        file.write(f"\nx = 1\n{text}\n")
    return schema.load(RunConfig, folder / "mine.yaml")


@pytest.mark.parametrize("text", IMPORTS)
def test_what_an_own_module_imports_goes_along(mine: Path, text: str) -> None:
    neighbours(mine)
    sys.path += [str(mine), f"{mine}/../{mine.name}"]  # the same folder twice, as for a job
    for module in ("helpers", "chain"):
        sys.modules.pop(module, None)
    if "beyond" in text:
        text = f"try:\n    {text}\nexcept ImportError:\n    pass"
    settings = added(mine, text)
    roots = {
        mine / name.partition("/")[0]
        for name in IMPORTS[text if text in IMPORTS else "from .... import beyond"]
    }
    assert set(own_code(settings.recipe(), whole=True)) == roots | {mine / "mine"}
    files = custom_source.texts(own_classes(settings.recipe()))
    assert set(files) == IMPORTS.get(text, set()) | {"mine/classes.py"}
    assert all((mine / name).read_bytes() == data for name, data in files.items())


@pytest.mark.ray
def test_what_is_sent_runs_where_nothing_else_is(
    mine: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In the folder that a job gets, by a process that knows no other."""
    neighbours(mine)
    settings = added(
        mine, "import chain\nfrom loose import inner\ndef later():\n    from beside import tools"
    )
    there = tmp_path_factory.mktemp("there")
    files = {"recipe.yaml": yaml.safe_dump(schema.dump(settings))}
    pack(Job("j", [], files, own_code(settings.recipe(), whole=True), {}), there)
    code = (
        "from cluster.config import RunConfig; from metatrain import schema\n"
        "kind = type(schema.load(RunConfig, 'recipe.yaml').model)\n"
        "import sys; sys.modules[kind.__module__].later(); "
        "print(sys.modules[kind.__module__].__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=there, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{there}/mine/classes.py\n"


def compiled(folder: Path) -> None:
    (folder / "helpers.py").write_text("x = 1\n")
    py_compile.compile(str(folder / "helpers.py"), str(folder / "helpers.pyc"))
    (folder / "helpers.py").unlink()


def archived(folder: Path) -> None:
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("helpers.py", "x = 1\n")
    sys.path.append(str(folder / "archive.zip"))


def large(folder: Path) -> None:
    (folder / "helpers").mkdir()
    (folder / "helpers" / "__init__.py").write_text("")
    (folder / "helpers" / "data.bin").write_bytes(bytes(1 << 21))


def parted(folder: Path) -> None:
    for part in ("one", "two"):
        (folder / part / "helpers").mkdir(parents=True)
        sys.path.append(str(folder / part))


@pytest.mark.parametrize(
    ("made", "reason", "remedy"),
    [
        (compiled, r"\S+/helpers.pyc is not source", "install it on the nodes"),
        (archived, r"\S+/archive.zip/helpers.py is not source", "install it on the nodes"),
        (
            large,
            r"\S+/helpers has more than 1 MiB",
            "install it on the nodes, or move its data away",
        ),
        (
            parted,
            r"it lies in several folders: \S+/one/helpers, \S+/two/helpers",
            "put it into one",
        ),
    ],
)
def test_what_cannot_be_sent_is_named(
    mine: Path, made: Any, reason: str, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    made(mine)
    settings = added(mine, "import helpers")
    what = rf"^helpers, which your own classes need, cannot be sent \({reason}\)"
    with pytest.raises(InputError, match=what) as error:
        own_code(settings.recipe(), whole=True)
    assert error.value.remedy == remedy
    # This machine's workers may have it.
    assert own_code(settings.recipe()) == [mine / "mine"]
    assert "helpers, which your own classes need, is not sent to workers" in caplog.text
    to = ["--address", "http://127.0.0.1:1", "--set", f"output={mine}/out"]
    done = command("submit", str(mine / "mine.yaml"), *to)
    assert done.returncode == 2
    assert "error: helpers, which your own classes need, cannot be sent (" in done.stderr


def test_a_class_of_the_program_itself_cannot_be_sent() -> None:
    with pytest.raises(InputError, match=r"__main__, .* cannot be sent \(it is the program itself"):
        custom_source.folders(["__main__:Net"], whole=True)


RAISED = {
    "import sys; sys.exit(0)": "SystemExit: 0",
    "import sys; sys.exit('no')": "SystemExit: no",
    "exit()": "SystemExit: None",
    "raise BaseException('mine')": "BaseException: mine",
    "raise GeneratorExit": "GeneratorExit: ",
    "import asyncio; raise asyncio.CancelledError": "CancelledError: ",
    "class E(BaseException):\n    def __str__(self): raise OSError\nraise E": "E",
    "raise ExceptionGroup('several', [OSError()])": r"ExceptionGroup: several \(1 sub-exception\)",
    "import nowhere": "ModuleNotFoundError: No module named 'nowhere'",
    "1 / 0": "ZeroDivisionError: division by zero",
    "def f(): f()\nf()": "RecursionError: maximum recursion depth exceeded.*",
    "def __getattr__(name): raise SystemExit(3)": "SystemExit: 3",
}


@pytest.mark.parametrize("text", RAISED)
def test_whatever_an_own_module_raises_is_one_sentence(mine: Path, text: str) -> None:
    (mine / "mine" / "raising.py").write_text(text)
    done = command("train", str(mine / "mine.yaml"), "--set", "model.name=mine.raising:Net")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    with pytest.raises(InputError) as error:
        schema.load(RunConfig, mine / "mine.yaml", ["model.name=mine.raising:Net"])
    what = rf"model: cannot import 'mine.raising:Net' \({RAISED[text]}\)"
    assert re.search(f"{what}$", error.value.what)
    assert error.value.remedy == "fix it, or run in the folder that holds it"


def test_ctrl_c_while_an_own_module_is_imported_is_no_error_of_its(mine: Path) -> None:
    (mine / "mine" / "raising.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        schema.load(RunConfig, mine / "mine.yaml", ["model.name=mine.raising:Net"])


@pytest.mark.parametrize(
    "raised", ["SystemExit(0)", "ZeroDivisionError()", "BaseException()", "ValueError('not so')"]
)
def test_whatever_an_own_class_raises_of_its_values_is_one_sentence(
    mine: Path, raised: str
) -> None:
    text = (mine / "mine" / "classes.py").read_text()
    check = (
        "\n\n    def __post_init__(self) -> None:\n        if self.width > 50:\n            raise "
    )
    (mine / "mine" / "classes.py").write_text(
        text.replace("    width: int = 40", f"    width: int = 40{check}{raised}")
    )
    assert schema.load(RunConfig, mine / "mine.yaml").model.width == 40
    sentence = (
        "not so"
        if "so" in raised
        else r"mine.classes:SineNet cannot be built with these values \(\w+: .*\): fix"
    )
    with pytest.raises(InputError, match=f"model: (Value error, )?{sentence}"):
        schema.load(RunConfig, mine / "mine.yaml", ["model.width=60"])


@pytest.fixture
def bundled(mine: Path) -> Path:
    """A bundle of classes that import a neighbour, with its recipe, and a run that left it."""
    neighbours(mine)
    with (mine / "mine" / "classes.py").open("a") as file:
        file.write("\nimport helpers\n")
    done = train(mine, "workers.max=0", "algorithm.inner_steps=1")
    assert done.returncode == 0, done.stderr
    return mine / "run" / "bundle"


def loading(folder: Path, uri: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"from metatrain import bundle; bundle.load({str(uri)!r}); import helpers; "
        "print(helpers.__file__)"
    )
    full = [sys.executable, "-c", code]
    return subprocess.run(
        full, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_source_is_in_the_run_and_in_its_bundle_with_its_checksums(
    mine: Path, bundled: Path
) -> None:
    manifest = json.loads((bundled / "manifest.json").read_text())
    assert set(manifest) == {
        "meta.safetensors",
        "recipe.yaml",
        "code/helpers.py",
        "code/mine/classes.py",
    }
    for name in ("helpers.py", "mine/classes.py"):
        source = (mine / name).read_bytes()
        assert (
            (bundled / "code" / name).read_bytes()
            == (mine / "run" / "code" / name).read_bytes()
            == source
        )
        assert manifest[f"code/{name}"]["sha256"] == hashlib.sha256(source).hexdigest()


def test_a_bundle_loads_silently_if_its_modules_are_the_same_here(
    mine: Path, bundled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (mine / "mine" / "near.py").write_text("x = 2\n")  # which they do not import
    assert bundle.load(str(bundled))[0].model.name == "mine.classes:SineNet"
    assert not caplog.records


@pytest.mark.parametrize("name", ["helpers.py", "mine/classes.py"])
def test_a_bundle_loads_with_a_warning_if_they_differ(
    mine: Path, bundled: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (mine / name).open("a") as file:
        file.write("\n# another line\n")
    assert bundle.load(str(bundled))[0].model.name == "mine.classes:SineNet"
    said = (
        f"{name} here differs from what {bundled} was trained with, which its code/ "
        "holds: results may differ"
    )
    assert caplog.messages == [said]
    done = command("evaluate", str(bundled), "--set", "workers.max=0")
    assert done.returncode == 0
    assert said in done.stderr


@pytest.mark.ray
def test_code_of_a_bundle_is_run_only_if_python_is_told_to_look_there(
    mine: Path, bundled: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    moved = shutil.copytree(bundled, elsewhere / "a bundle")
    done = loading(elsewhere, moved)
    assert done.returncode == 1
    sentence = (
        f"{moved} needs mine.classes:Parabolas, which cannot be imported here "
        "(ModuleNotFoundError: No module named "
        f"'mine'): its source is in {moved}/code; read it, and if you trust it, set "
        f"PYTHONPATH='{moved}/code'"
    )
    assert done.stderr.splitlines()[-1] == f"metatrain.errors.InputError: {sentence}"
    (moved / "code" / "__pycache__").mkdir()
    (moved / "code" / "__pycache__" / "helpers.pyc").write_bytes(b"Python's, beside it")
    done = loading(elsewhere, moved, PYTHONPATH=f"{moved}/code")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{moved}/code/helpers.py\n", "")
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "classes.py").write_text("")  # something else of that name
    done = loading(elsewhere, moved)
    assert (
        "which cannot be imported here (AttributeError: module 'mine.classes' has no attribute"
        in done.stderr
    )


def test_a_bundle_without_code_loads(bundled: Path) -> None:
    files = {
        name: data
        for name, data in bundle.read_directory(str(bundled)).items()
        if not name.startswith("code/")
    }
    bundle.write_directory(str(bundled.parent / "older"), files)
    assert bundle.load(str(bundled.parent / "older"))[0].model.name == "mine.classes:SineNet"


def test_what_does_not_belong_into_a_bundle_is_refused(bundled: Path, tmp_path: Path) -> None:
    files = bundle.read_directory(str(bundled))
    (tmp_path / "secret").write_text("mine")
    for name in (
        "other",
        "code",
        "codes/x.py",
        "code/data.bin",
        "code/mine/inner.so",
        "code/large.py",
    ):
        data = bytes(1 << 20) if "large" in name else b"x"
        where = tmp_path / "odd" / name.replace("/", "-")
        bundle.write_directory(
            str(where),
            {**{n: d for n, d in files.items() if name != "code" or "code" not in n}, name: data},
        )
        with pytest.raises(InputError, match="is not a bundle"):
            bundle.load(str(where))
    plain = config(SINUSOID, outer__steps=1, output=str(tmp_path / "plain"))
    run.train(plain)
    whole = bundle.read_directory(str(tmp_path / "plain" / "bundle"))
    bundle.write_directory(
        str(tmp_path / "with"), {**whole, "code/sitecustomize.py": b"raise SystemExit"}
    )
    with pytest.raises(
        InputError, match="is not a bundle: its code/ is not the source of its recipe's own classes"
    ):
        bundle.load(str(tmp_path / "with"))
    outside = [
        "../secret",
        "code/../../secret",
        f"{tmp_path}/secret",
        "code//x.py",
        "./recipe.yaml",
        "code/./x.py",
        "",
    ]
    digest = hashlib.sha256(b"mine").hexdigest()
    for name in [*outside, "code\\..\\secret", "c:secret", "code/\0.py"]:
        manifest = json.loads((bundled / "manifest.json").read_text()) | {
            name: {"bytes": 4, "sha256": digest}
        }
        shutil.copytree(bundled, tmp_path / "tricked", dirs_exist_ok=True)
        (tmp_path / "tricked" / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(
            InputError, match=r"is damaged \(its manifest names other files than its own"
        ):
            bundle.load(str(tmp_path / "tricked"))
    (tmp_path / "tricked" / "manifest.json").write_text(json.dumps(sorted(files)))
    with pytest.raises(InputError, match="is damaged"):
        bundle.load(str(tmp_path / "tricked"))
    (bundled / "code" / "helpers.py").write_text("x = 2\n")
    with pytest.raises(InputError, match=r"is damaged: code/helpers.py is not what was saved"):
        bundle.load(str(bundled))


def test_source_that_is_too_large_is_not_recorded(
    mine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    settings = added(mine, "#" * (1 << 20))
    ready = run.prepare(settings)
    assert ready.code == {}
    assert (
        "the source of your own modules is not recorded: it is 1.0 MiB, the limit is 1"
        in caplog.messages
    )


def test_source_is_recorded_as_it_was_when_training_started(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (mine / "mine" / "classes.py").read_bytes()
    settings = schema.load(RunConfig, mine / "mine.yaml", [*LESS, "workers.max=0", "output=run"])
    save = bundle.save

    def edited(*arguments: Any) -> None:
        (mine / "mine" / "classes.py").write_bytes(before + b"# later\n")
        save(*arguments)

    monkeypatch.setattr(bundle, "save", edited)
    run.train(settings)
    assert Path("run/bundle/code/mine/classes.py").read_bytes() == before


@pytest.mark.ray
def test_source_is_in_mlflow(mine: Path) -> None:
    from mlflow.tracking import MlflowClient

    assert train(mine, "workers.max=0", f"tracking.uri={store(mine)}").returncode == 0
    client = MlflowClient(store(mine))
    (found,) = client.search_runs([client.get_experiment_by_name("Parabolas").experiment_id])
    assert "code" in {a.path for a in client.list_artifacts(found.info.run_id)}
    assert [a.path for a in client.list_artifacts(found.info.run_id, "code/mine")] == [
        "code/mine/classes.py"
    ]


def test_the_algorithm_in_20_lines_of_the_page_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (text,) = blocks("CONTRIBUTING.md", "python")
    body = text.partition("@dataclass")[2].splitlines()
    assert len([line for line in body if line.strip()]) <= 22
    (tmp_path / "mine.py").write_text(text)
    shutil.copytree(RECIPES, tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (printed,) = (line for line in commands("CONTRIBUTING.md") if not line.startswith("make"))
    sets = [item for value in (*LESS, "workers.max=0", "output=run") for item in ("--set", value)]
    program, *arguments = shlex.split(printed)
    assert program == "metatrain"
    done = command(*arguments, *sets)
    assert done.returncode == 0, done.stderr
    learned = bundle.load("run/bundle")[0].algorithm
    assert (learned.name, learned.strength) == ("mine:Proximal", 1.0)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("    def module(", r"the model's `module` fails for .* \(SystemExit: 0\)"),
        (
            "    def bind(",
            r"a class of yours ended the process in `bind` or `init` \(SystemExit: 0\)",
        ),
    ],
)
def test_a_class_that_ends_the_process_when_it_is_bound_is_one_sentence(
    mine: Path, line: str, what: str
) -> None:
    (mine / "mine").rename(mine / "ending")  # modules of the other name may be imported already
    text = (mine / "mine.yaml").read_text().replace("mine.classes:", "ending.classes:")
    (mine / "mine.yaml").write_text(text)
    path = mine / "ending" / "classes.py"
    before, method, rest = path.read_text().partition(line)
    head, colon, body = rest.partition(":\n")
    path.write_text(f"{before}{method}{head}{colon}        raise SystemExit(0)\n{body}")
    with pytest.raises(InputError, match=what):
        prepare(schema.load(RunConfig, mine / "mine.yaml").recipe())
