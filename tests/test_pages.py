"""What the pages print: each command and each Python block runs, only smaller, and both languages
say the same.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import yaml
from cases import GLYPHS
from pages import FEWER, LESS, ROOT, Home, blocks, commands, end, fenced
from services import S3, Nodes

from cluster import run
from cluster.config import RunConfig
from metatrain import schema, storage

# In an order in which their commands work. tests/test_infra.py runs the commands of
# docs/cluster.md.
ORDER = [
    "README",
    "data",
    "tables",
    "texts",
    "in-context",
    "results",
    "algorithms",
    "protocols",
    "performance",
    "sweeps",
    "architecture",
    "cluster",
    "faults",
]
FOUND = [path for path in (ROOT / "docs").glob("*.md") if not path.name.endswith(".zh.md")]
BOTH = [
    "README",
    *(f"docs/{path.stem}" for path in sorted(FOUND, key=lambda path: ORDER.index(path.stem))),
]
PAGES = [page for page in BOTH if page != "docs/cluster"]
COMMANDS = list(
    dict.fromkeys(command for page in PAGES for command in commands(f"{page}.md"))
)  # once each
PYTHON = [(page, block) for page in PAGES for block in blocks(f"{page}.md", "python")]
COMMENT = re.compile(r"(^|\s+)#\s.*$", re.MULTILINE)
LANGUAGES = pytest.mark.parametrize("page", BOTH)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("pages"))


@pytest.mark.ray
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(command: str, home: Home, nodes: Nodes) -> None:
    if command.startswith("make"):
        # this environment, whatever its age
        make = f"make -o .venv/.installed {command.removeprefix('make ')}"
        if command == "make demo":
            assert (
                home.run(f"{make} ARGS='{LESS}'").splitlines()[-1].startswith("result: accuracy=")
            )
        elif "TORCH=cpu" in command:
            (index,) = set(re.findall(r"--index-url (\S+?)`", (ROOT / "README.md").read_text()))
            assert f"--index-url {index} torch torchvision\n" in home.run(
                f"{command} -n -W pyproject.toml"
            )
        else:
            assert "/bin/pytest" in home.run(f"{make} -n")  # which is what runs this
    elif command == "pip install .":
        assert "ray-metatrain" in home.run(
            "pip install --dry-run --no-index --no-deps --no-build-isolation ."
        )
    elif command.startswith("source"):
        assert Path(home.run(f"{command} && which metatrain").strip()).samefile(
            home.folder / ".venv/bin/metatrain"
        )
    elif command.startswith("export"):
        assert (
            command == "export RAY_API_SERVER_ADDRESS=http://HEAD:8265"
        )  # as `on_the_cluster` has it
    elif command.startswith("metatrain ui"):
        assert end(home.start(command, until="MLflow: http://127.0.0.1:")) == 0
    elif "s3://" in command:
        bucket = next(iter(re.findall(r"s3://(\w+)", command)))
        urlopen(Request(f"{nodes.environment['AWS_ENDPOINT_URL']}/{bucket}", method="PUT")).close()
        less = FEWER if "/sweeps/" in command else LESS if "submit" in command else ""
        out = home.run(
            f"{command} {less}".replace("http://HEAD:8265", nodes.address),
            on_the_cluster(home, nodes),
        )
        assert out.splitlines()[-1].startswith("result: " if less else "use it with ")
    else:
        check(command, home)


def on_the_cluster(home: Home, nodes: Nodes) -> dict[str, str]:
    """The environment of who sends jobs to the tests' cluster."""
    shared = {
        name: nodes.environment[name]
        for name in nodes.environment
        if re.match("RAY_|AWS_|MLFLOW_", name)
    }
    return home.environment | shared | {"RAY_API_SERVER_ADDRESS": nodes.address}


def check(command: str, home: Home) -> None:
    """Run a command that needs no cluster."""
    if "omniglot" in command:
        source = Path(os.environ.get("METATRAIN_DATA", "")) / "omniglot"
        if not (source / "images_background.zip").exists():
            pytest.skip("METATRAIN_DATA has no omniglot/images_background.zip")
        if "import" in command:
            command = f"{command} --source {source}"  # not downloaded
    if command.startswith("metatrain tune") and "--dry-run" not in command:
        command = f"{command} {FEWER}"
    elif re.match("metatrain (train|evaluate|pretrain)", command):
        less = LESS if command.startswith("metatrain train") else ""
        if command.startswith("metatrain pretrain"):
            less = "--set pretraining.steps=2 --set pretraining.examples_per_step=8"
        # `make demo` has workers; a GPU may not be here.
        command += f" {less} --set workers.max=0 --set workers.gpus=0"
    alone = " && " in command or command.startswith("metatrain tune")  # a process of its own
    out = (home.run if alone else home.call)(command).splitlines()
    assert out
    if re.search("--dry-run|--profile", command):
        assert any(line.startswith(("the run, ", "trace: ", "time: ")) for line in out)
    elif re.match("metatrain (train|evaluate|tune)", command):
        assert out[-1].startswith("result: ")
    elif command.startswith("metatrain adapt"):
        second = "csv" if ".csv" in command else "png"
        assert out[-1] == f"written: adapted/predictions.json adapted/predictions.{second}"
        assert (home.folder / "adapted" / f"predictions.{second}").exists()


@pytest.mark.ray
def test_a_sweep_as_a_job_leaves_parent_and_children(home: Home, nodes: Nodes, s3: S3) -> None:
    """The one that docs/sweeps.md sends, after the commands."""
    from mlflow.tracking import MlflowClient

    where = "s3://bucket/sweeps/rates"
    client = MlflowClient(nodes.environment["MLFLOW_TRACKING_URI"])
    parent = client.get_run(json.loads(storage.read(f"{where}/mlflow.json"))["run_id"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert len(children) == 2
    assert {each.info.status for each in (parent, *children)} == {"FINISHED"}
    assert len({each.data.tags["metatrain.job"] for each in (parent, *children)}) == 1
    names = {info.base_name for info in storage.listing(where)}
    assert {
        "sweep.yaml",
        "recipe.yaml",
        "journal.jsonl",
        "result.json",
        "trials",
        "figures",
        "bundle",
    } <= names
    assert "tune" not in names
    (score,) = run.evaluate(where, ["workers.max=0"])
    assert score.mean == json.loads(storage.read(f"{where}/result.json"))["scores"][0]["mean"]
    sweep = ROOT / "recipes" / "sweeps" / "sinusoid_rates.yaml"
    again = nodes.submit(sweep, "--set", f"output={where}")
    assert again.returncode == 2
    or_else = "pass --resume auto to continue it, or give another output"
    assert again.stderr.endswith(f"failed: {where} already holds a sweep: {or_else}\n")


def test_every_yaml_block_is_a_file_of_the_recipes_or_what_a_recipe_takes() -> None:
    files = [yaml.safe_load(path.read_text()) for path in (ROOT / "recipes").rglob("*.yaml")]
    for page in BOTH:
        for block in blocks(f"{page}.md", "yaml"):
            tree = yaml.safe_load(block)
            assert tree in files or schema.parse(RunConfig, GLYPHS | tree, page)


@pytest.mark.ray
def test_the_python_of_all_pages_runs(home: Home) -> None:
    """After the commands, in one process, each block with names of its own."""
    program = "".join(
        f"print('---')\nexec(compile({text!r}, {page!r}, 'exec'), {{}})\n" for page, text in PYTHON
    )
    (home.folder / "blocks.py").write_text(program)
    printed = re.split(r"^---\n", home.run("python blocks.py"), flags=re.MULTILINE)[1:]
    assert len(printed) == len(PYTHON)
    assert all(printed)
    for (_, text), out in zip(PYTHON, printed, strict=True):
        if "few.csv" in text:
            assert len(re.findall(r"\d+\.\d+", out)) == 15  # a price for each row of new.csv
        elif "open_data" in text:
            assert len(re.findall(r"\d{3}", out)) == 5
        elif "new" in text and "glob" in text:
            assert len(out.splitlines()) == 10  # images in new/


def test_the_first_page_is_short() -> None:
    for name in ("README.md", "README.zh.md"):
        lines = (ROOT / name).read_text().splitlines()
        assert len(lines) <= 130
        assert max(map(len, lines)) <= 120
    (code,) = blocks("README.md", "python")
    assert len([line for line in code.splitlines() if line]) == 6


def test_every_paper_is_one_file_of_under_100_lines() -> None:
    for path in (ROOT / "metatrain" / "algorithms").glob("*.py"):
        shared = path.name.startswith("inner_")
        assert shared or len(path.read_text().splitlines()) < 100


@LANGUAGES
def test_both_languages_have_the_same_sections_code_pictures_and_links(page: str) -> None:
    english, chinese = f"{page}.md", f"{page}.zh.md"
    assert sections(english) == sections(chinese)
    assert code(english) == code(chinese)
    assert links(english) == links(chinese)
    assert tables(english) == tables(chinese)


def prose(name: str) -> str:
    return re.sub(r"^```.*?^```$", "", (ROOT / name).read_text(), flags=re.MULTILINE | re.DOTALL)


def headings(name: str) -> list[str]:
    return re.findall(r"^#+ .*$", prose(name), re.MULTILINE)


def sections(name: str) -> list[int]:
    return [len(heading.partition(" ")[0]) for heading in headings(name)]


def code(name: str) -> list[str]:
    """Each block without comments; a drawing may have words in it."""
    return [
        "a drawing" if "-->" in text else f"{kind} {COMMENT.sub('', text)}"
        for kind, text in fenced(name)
    ]


def links(name: str) -> list[str]:
    """Where links and pictures point to, as from the English page."""
    found = re.findall(r"\]\(([^)]+)\)", prose(name))
    plain = [re.sub(r"\.zh\.md", ".md", re.sub(r"\.md#.*", ".md", link)) for link in found]
    return sorted(plain)


def tables(name: str) -> list[int]:
    """The columns of each row."""
    rows = [line for line in prose(name).splitlines() if line.startswith("|")]
    return [len(re.findall(r"(?<!\\)\|", row)) for row in rows]


@pytest.mark.parametrize(
    "name",
    [f"{page}{ending}" for page in BOTH for ending in (".md", ".zh.md")]
    + ["infra/README.md", "CONTRIBUTING.md", "CHANGELOG.md"],
)
def test_what_is_named_exists(name: str) -> None:
    text, folder = (ROOT / name).read_text(), (ROOT / name).parent
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        if not link.startswith("http"):
            assert (folder / path).exists(), link
            target = (folder / path).resolve().relative_to(ROOT).as_posix() if path else name
            assert not anchor or anchor in map(slug, headings(target)), link
    for path in re.findall(
        r"`((?:metatrain|cluster|tuning|tests|recipes|benchmarks|infra|docs)/[\w./]*)`", text
    ):
        assert (ROOT / path).exists(), path
    if "README" in name or "results" in name:
        for recipe in re.findall(r"^\| `([a-z]\w*)` \|", text, re.MULTILINE):
            assert (ROOT / "recipes" / f"{recipe}.yaml").exists(), recipe


def slug(heading: str) -> str:
    """A heading's anchor."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-")


def test_contributing_names_targets_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [line for line in commands("CONTRIBUTING.md") if line.startswith("make")]
    assert len(targets) == 4
    for command in targets:
        assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE)
