"""Every command and every line of Python in the README runs as it stands there, in its order, only smaller."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from conftest import Nodes
from pages import FEWER, LESS, ROOT, Home, blocks, commands, end


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("readme"))


@pytest.mark.ray
@pytest.mark.parametrize("command", commands("README.md"))
def test_every_command_runs(command: str, home: Home, nodes: Nodes) -> None:
    if command.startswith("make"):
        make = f"make -o .venv/.installed {command.removeprefix('make ')}"  # this environment, whatever its age
        if command == "make demo":
            assert home.run(f"{make} ARGS='{LESS}'").splitlines()[-1].startswith("result: accuracy=")
        else:
            assert "/bin/pytest" in home.run(f"{make} -n")  # which is what runs this
    elif command.startswith("docker"):
        pytest.skip("it needs a container engine")
    elif command.startswith("metatrain ui"):
        assert end(home.start(command, until="MLflow: http://127.0.0.1:")) == 0
    else:
        if "omniglot" in command:
            source = Path(os.environ.get("METATRAIN_DATA", "")) / "omniglot"
            if not (source / "images_background.zip").exists():
                pytest.skip("METATRAIN_DATA has no omniglot/images_background.zip")
            if "import" in command:
                command = f"{command} --source {source}"  # not downloaded
        if command.startswith(("metatrain tune", "metatrain submit recipes/sweeps")) and "--dry-run" not in command:
            command = f"{command} {FEWER}"
        elif "metatrain submit" in command:
            command = f"{command} {LESS}"
        environment = None
        if "s3://" in command:  # on the tests' cluster, whose commands are those of compose
            bucket = next(iter(re.findall(r"s3://(\w+)", command)))
            urlopen(Request(f"{nodes.environment['AWS_ENDPOINT_URL']}/{bucket}", method="PUT")).close()
            command = command.replace("http://HEAD:8265", nodes.address)
            shared = {
                name: nodes.environment[name] for name in nodes.environment if re.match("RAY_|AWS_|MLFLOW_", name)
            }
            environment = home.environment | shared | {"RAY_API_SERVER_ADDRESS": nodes.address}
        out = home.run(re.sub(r"(metatrain train [^;]*)", rf"\1 {LESS} ", command), environment).splitlines()
        if re.search("metatrain train .*(--dry-run|--profile)", command):
            assert any(line.startswith(("the run, ", "trace: ")) for line in out)
        elif re.search("metatrain (train|evaluate|submit)", command) or FEWER in command:
            assert out[-1].startswith("result: ")
        if "metatrain adapt" in command:
            second = "csv" if ".csv" in command else "png"
            assert out[-1] == f"written: adapted/predictions.json adapted/predictions.{second}"
            assert (home.folder / "adapted" / f"predictions.{second}").exists()
        assert out or command.startswith("set")


@pytest.mark.ray
@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_python_example_runs(name: str, home: Home) -> None:
    code, table = blocks(name, "python")
    (home.folder / "table.py").write_text(table)
    assert len(re.findall(r"\d+\.\d+", home.run("python table.py"))) == 15  # a price for each row of new.csv
    (home.folder / "example.py").write_text(code)
    labels, *rows = home.run("python example.py").splitlines()
    assert len(ast.literal_eval(labels)) == 5
    assert len(rows) == 5
    statements = [line for line in code.splitlines() if line and not line.startswith("#")]
    assert len(statements) <= 10


def test_the_other_pages_have_no_other_commands() -> None:
    assert set(commands("README.zh.md")) < set(commands("README.md"))
    makefile = (ROOT / "Makefile").read_text()
    assert [line.split()[:1] for line in commands("CONTRIBUTING.md")] == 4 * [["make"]]
    for command in commands("CONTRIBUTING.md"):
        assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("name", ["README.md", "README.zh.md", "CONTRIBUTING.md", "CHANGELOG.md", "infra/README.md"])
def test_files_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    paths = re.findall(r"`((?:metatrain|cluster|tuning|tests|recipes)/[\w./]*)`", text)
    folder = (ROOT / name).parent
    assert all((folder / path).exists() for path in links)
    assert all((ROOT / path).exists() for path in paths)
    for recipe in re.findall(r"^\| `([a-z]\w*)` \|", text, re.MULTILINE):
        assert (ROOT / "recipes" / f"{recipe}.yaml").exists()
