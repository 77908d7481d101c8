"""A file, a folder or an address that a command cannot take is named in one sentence."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cases import SINUSOID
from matplotlib.figure import Figure

import tuning.cli
from cluster.jobs.sent import sent_files
from cluster.tracking.place import place_of
from metatrain import storage
from metatrain.core import InputError
from metatrain.data.folders import read_folder
from metatrain.data.pixels import stack
from metatrain.data.sources import import_data
from metatrain.figures.style import save
from tuning import search
from tuning.submission import read

SWEEP = {
    "name": "s",
    "recipe": "recipe.yaml",
    "space": {"outer.lr": {"loguniform": [0.001, 0.1]}},
    "budget": {"trials": 2, "steps": 10},
    "set": {"validation.every_steps": 5},
}


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe and a sweep."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump(SINUSOID))
    Path("sweep.yaml").write_text(yaml.safe_dump(SWEEP))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("tune sweep.yaml --resume nope --dry-run", "nope holds no sweep to continue"),
        ("train recipe.yaml --resume nope --dry-run", "nope holds no"),
        ("train recipe.yaml --init nope --dry-run", "model.weights: there is no nope"),
        ("data import mine --source s3://b/x", "--source is 's3://b/x', expected a path on this"),
        ("data import omniglot --source ftp://b/x", "--source is 'ftp://b/x', expected a path"),
        ("train recipe.yaml --profile s3://b/x", "--profile is 's3://b/x', expected a path"),
        ("tune s3://b/x.yaml", "a sweep file is 's3://b/x.yaml', expected a path on this"),
        ("train https://h/x.yaml", "https://h/x.yaml is a page's address, where no files"),
        ("adapt a --support a --query b --output s3://b/x", "--output is 's3://b/x', expected"),
        ("runs http://h/x", "http://h/x is a page's address"),
        ("ui http://h/x", "http://h/x/mlflow.json is a page's address"),
    ],
)
def test_a_command_says_what_it_takes(
    line: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["metatrain", *line.split()])
    with pytest.raises(SystemExit) as ended:
        tuning.cli.main()
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert shown.err.replace(f"{Path.cwd()}/", "").startswith(f"error: {sentence}")
    assert shown.err.count("\n") == 1
    assert not shown.out


@pytest.mark.parametrize("given", ["http://me:secret@h/x", Path("http://me:secret@h/x")])
def test_python_says_it_too(given: str | Path) -> None:
    for read_ in (lambda: read_folder("mine", given), lambda: import_data("omniglot", given)):
        with pytest.raises(InputError, match="expected a path on this machine") as refused:
            read_()
        assert "secret" not in str(refused.value)
    with pytest.raises(InputError, match=r"the path of an image is .* expected a path") as refused:
        stack([given], (1, 8, 8))
    assert "secret" not in str(refused.value)
    with pytest.raises(InputError, match="a sweep file is"):
        search.load(given)


def test_no_folder_is_named_after_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--send is 's3://b/x'"):
        sent_files(["s3://b/x"])
    monkeypatch.setenv("METATRAIN_CACHE", "s3://b/cache")
    with pytest.raises(InputError, match="METATRAIN_CACHE is 's3://b/cache'"):
        storage.cache()


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("config.yaml", "a folder is a run's folder: .*submit 'a folder/config.yaml' --resume"),
        ("sweep.yaml", "a folder is a sweep's folder: .*submit 'a folder/sweep.yaml' --resume"),
        ("other.yaml", "a folder is a folder: give a YAML file"),
    ],
)
def test_a_folder_that_is_submitted_names_the_command_that_continues_it(
    file: str, sentence: str
) -> None:
    Path("a folder").mkdir()
    Path("recipe.yaml").rename(f"a folder/{file}")
    for place in ("a folder", f"file://{Path.cwd()}/a folder"):
        with pytest.raises(InputError, match=sentence if "//" not in place else "folder"):
            read(place, [], None)


@pytest.mark.parametrize("text", ["[" * 100_000, "5", "{", '{"uri": 5}', " " * (2 << 20)])
def test_a_record_of_mlflow_that_is_none_is_refused(text: str) -> None:
    Path("mlflow.json").write_text(text)
    with pytest.raises(InputError, match=r"mlflow.json (is damaged|has 2,097,152 bytes)"):
        place_of(".")


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may have more than 4 kB, as on a disk that has no more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def drawn() -> Figure:
    figure = Figure()
    figure.add_subplot().plot([1, 2])
    return figure


@pytest.mark.usefixtures("full_disk")
@pytest.mark.ray
def test_a_full_disk_is_named_and_leaves_no_half_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Path("figures/a.png").absolute()
    with pytest.raises(InputError, match=r"cannot write \S*figures/a.png .* check its folder and"):
        save(drawn(), picture)
    assert not list(picture.parent.iterdir())
    monkeypatch.setenv("METATRAIN_CACHE", str(Path("cache").absolute()))
    with pytest.raises(InputError, match=r"cannot write \S*cache/glyphs .* check its free space"):
        import_data("glyphs", None)
    assert not list(Path("cache").iterdir())


def test_no_picture_is_written_through_a_link() -> None:
    Path("elsewhere").mkdir()
    Path("figures").symlink_to("elsewhere")
    with pytest.raises(InputError, match="figures is a link"):
        save(drawn(), Path("figures/a.png"))
    assert not list(Path("elsewhere").iterdir())
