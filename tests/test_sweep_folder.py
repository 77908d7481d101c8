"""A sweep whose driver was killed while it wrote its first files is resumed: no Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_space import load

from metatrain import storage
from metatrain.core import InputError
from tuning import search as searches
from tuning import sweep
from tuning.config import as_files
from tuning.search import Search


@pytest.fixture
def search(tmp_path: Path) -> Search:
    """Of a sweep that has an empty folder."""
    found = load(tmp_path, {"output": str(tmp_path / "out")})
    (tmp_path / "out").mkdir()
    return found


WRITTEN = ["recipe.yaml.partial", "recipe.yaml", "sweep.yaml.partial", "sweep.yaml"]


@pytest.mark.parametrize("state", [[0], [1], [1, 2], [1, 3]])
def test_a_sweep_begins_again_from_each_state_of_its_first_files(
    search: Search, state: list[int]
) -> None:
    files = as_files(search.sweep, search.base)
    for name in (WRITTEN[i] for i in state):
        text = files[name.removesuffix(".partial")]
        (search.folder / name).write_text(text[:9] if name.endswith(".partial") else text)
    (search.folder / ".lock").touch()
    with pytest.raises(InputError, match=r"is not empty and holds no|already holds a sweep"):
        sweep.check_folder(search, None)
    sweep.check_folder(search, "auto")
    assert not sweep._open(search).trials
    assert searches.changed(searches.load(search.folder / "sweep.yaml"), search) is None


def test_a_killed_driver_leaves_no_half_file_and_sweep_yaml_last(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[set[str]] = []
    write = storage.write

    def look(uri: str, data: bytes) -> None:
        left.append({path.name for path in (search.folder / "").iterdir()})
        write(uri, data)

    monkeypatch.setattr(storage, "write", look)
    sweep._open(search)
    assert left == [set(), {"recipe.yaml"}]


@pytest.mark.parametrize(
    "taken", [{"recipe.yaml": "name: mine\n"}, {"recipe.yaml.partial": "", "notes.txt": ""}]
)
def test_somebody_elses_files_are_no_begun_sweep(search: Search, taken: dict[str, str]) -> None:
    for name, text in taken.items():
        (search.folder / name).write_text(text)
    with pytest.raises(InputError, match="is not empty and holds no sweep"):
        sweep.check_folder(search, "auto")


@pytest.mark.parametrize("text", ["", '{"uri": "sql', "[]"])
def test_a_damaged_record_of_mlflow_ends_no_sweep(
    search: Search, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert sweep._run_id(search.folder) is None
    assert not caplog.messages
    (search.folder / "mlflow.json").write_text(text)
    assert sweep._run_id(search.folder) is None
    assert "mlflow.json is damaged" in caplog.text
    assert "the sweep gets another run in MLflow" in caplog.text
    (search.folder / "mlflow.json").write_text('{"uri": "http://h", "run_id": "abc"}')
    assert sweep._run_id(search.folder) == "abc"
