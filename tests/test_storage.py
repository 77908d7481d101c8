"""Outputs and data sets may lie on a storage: a run resumes from there, a machine fetches a data
set once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from cases import GLYPHS, SINUSOID, config
from photos import album
from pyarrow import fs
from services import S3, command

from cluster import checkpoint, run
from metatrain import bundle, storage, yaml_reader
from metatrain.core import InputError
from metatrain.data import remote
from metatrain.data.sources import open_data
from metatrain.storage import Folder


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That of another machine."""
    monkeypatch.setenv("METATRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pushed(s3: S3) -> str:
    """The address of a data set, whose file was not asked for yet."""
    remote.push(open_data("glyphs"), "s3://bucket/data/glyphs")
    s3.log.write_text("")
    return "s3://bucket/data/glyphs"


@pytest.mark.ray  # takes long
@pytest.mark.usefixtures("pictures")
def test_a_run_whose_output_is_a_storage_goes_on_from_there(s3: S3, tmp_path: Path) -> None:
    where = "s3://bucket/runs/sinusoid"
    settings = config(
        SINUSOID, outer__steps=6, checkpoint__every_steps=2, output=str(tmp_path / "here")
    )
    _, expected = run.train(settings)
    run.train(config(SINUSOID, outer__steps=3, checkpoint__every_steps=2, output=where))
    with pytest.raises(
        InputError, match="s3://bucket/runs/sinusoid already holds a run: pass --resume auto"
    ):
        run.train(config(SINUSOID, outer__steps=6, checkpoint__every_steps=2, output=where))
    folder, scores = run.train(
        config(SINUSOID, outer__steps=6, checkpoint__every_steps=2, output=where), resume="auto"
    )
    assert scores == expected
    assert run.evaluate(where, ["workers.max=0"]) == expected
    assert [info.base_name for info in storage.listing(f"{where}/checkpoints")] == [
        "step-00000004",
        "step-00000006",
    ]
    steps = [
        json.loads(line)["step"]
        for line in storage.read(f"{where}/metrics.jsonl").decode().splitlines()
    ]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert json.loads(storage.read(f"{where}/result.json"))["scores"][0]["mean"] == expected[0].mean
    assert folder.names("figures/*.png") == [
        f"{where}/figures/{name}.png" for name in ("adaptation_curve", "example", "learning_curve")
    ]
    assert all(storage.is_file(name) for name in folder.names("figures/*.png"))
    assert bundle.find(where) == f"{where}/bundle"
    again, _ = run.train(
        config(SINUSOID, outer__steps=8), resume=where
    )  # where it came from is its output
    assert (str(again), checkpoint.load(where).scalars["version"]) == (where, 8)


def test_a_storage_that_cannot_be_written_to_is_one_sentence(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.read_only)
    with pytest.raises(
        InputError, match=r"cannot write s3://bucket/x/\S+ \(.*ACCESS_DENIED.*\): check its address"
    ):
        run.train(config(SINUSOID, outer__steps=1, output="s3://bucket/x"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.environment["AWS_ENDPOINT_URL"])
    with pytest.raises(InputError, match="cannot write s3://no-bucket/x/"):
        run.train(config(SINUSOID, outer__steps=1, output="s3://no-bucket/x"))


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("s3://me:secret@bucket/x", "a storage address holds a password"),
        ("s3://bucket/x?region=a", r"has options after a '\?'.*give them in the environment"),
        ("s3://me:sec/ret@bucket/x", "a storage address holds a password"),
        ("s3://bucket/x?key=secret", r"has options after a '\?'"),
        ("nonsense://x", "cannot use nonsense://x as storage"),
        *((uri, "an address is '") for uri in ("s3://", "gs://", "://", "s3://[", "http://[/x")),
        ("https://host/x", "https://host/x is a page's address, where no files are read"),
        ("s3:/bucket/x", "a place is '"),
        ("http:/host/x", "a place is '"),
        ("~/x", "a path is '~/x'"),
        ("a\0b", r"a path is 'a\\x00b'"),
    ],
)
def test_an_address_is_an_address(uri: str, sentence: str) -> None:
    for opened in (storage.filesystem, lambda uri: storage.filesystem(str(Folder(uri)))):
        with pytest.raises(InputError, match=sentence) as refused:
            opened(uri)
        assert "secret" not in str(refused.value)


def test_a_file_is_read_up_to_its_bound_wherever_it_is(tmp_path: Path) -> None:
    for address in (str(tmp_path / "x"), f"file://{tmp_path}/y"):
        storage.write(address, b"12345")
        assert storage.read(address, 5) == b"12345"
        with pytest.raises(InputError, match="has 5 bytes") as refused:
            storage.read(address, 4)
        assert refused.value.expected == "at most 4"
    tracemalloc.start()
    assert storage.read(str(tmp_path / "x")) == b"12345"
    assert tracemalloc.get_traced_memory()[1] < 10**6  # and not the bound
    tracemalloc.stop()
    assert storage.read("/proc/self/status")  # which has more bytes than it says
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(1 << 40)  # of which the disk holds nothing
    for place in (tmp_path / "huge.yaml", f"file://{tmp_path}/huge.yaml"):
        with pytest.raises(InputError, match="1,099,511,627,776 bytes"):
            yaml_reader.read(place)


def test_a_path_of_this_machine_is_no_address(tmp_path: Path) -> None:
    assert storage.local(str(tmp_path), "--source") == tmp_path
    for place in ("s3://bucket/x", "http://me:secret@host/x", Path("http://me:secret@host/x")):
        with pytest.raises(InputError, match=r"--source is .* expected a path on this") as refused:
            storage.local(place, "--source")
        assert "secret" not in str(refused.value)


def test_a_write_that_breaks_off_leaves_what_was_there(tmp_path: Path) -> None:
    for address in (str(tmp_path / "x"), f"file://{tmp_path}/y"):
        storage.write(address, b"whole")
        nothing: Any = None
        with pytest.raises(TypeError):
            storage.write(address, nothing)
        assert storage.read(address) == b"whole"


def interrupted(uri: str, data: bytes) -> None:
    raise KeyboardInterrupt


def test_a_bundle_that_is_replaced_is_whole_or_not_there(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder("s3://bucket/replaced")
    for version in (b"1", b"2"):
        bundle.write_directory(str(folder / "bundle"), {"x": version})
        with monkeypatch.context() as patch:
            patch.setattr(storage, "write", interrupted)
            with pytest.raises(KeyboardInterrupt):
                folder.sync()
        assert not bundle.is_complete("s3://bucket/replaced/bundle")
        folder.sync()
        assert bundle.read_directory("s3://bucket/replaced/bundle") == {"x": version}


def test_a_copy_is_of_what_changed_and_its_manifest_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(f"file://{tmp_path}/away")
    bundle.write_directory(str(folder / "bundle"), {"a": b"1", "z": b"2"})
    written: list[str] = []

    def write(uri: str, data: bytes, write: Any = storage.write) -> None:
        written.append(uri.removeprefix(f"{folder}/"))
        write(uri, data)

    monkeypatch.setattr(storage, "write", write)
    folder.sync()
    assert sorted(written[:2]) == ["bundle/a", "bundle/z"]
    assert written[2:] == ["bundle/manifest.json"]
    (folder / "new").write_text("3")
    folder.sync()
    folder.sync()
    assert written[3:] == ["new"]


def test_a_local_folder_is_its_own_copy(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "run")
    folder.create()
    (folder / "x").write_text("1")
    folder.sync()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["x"]


def test_a_data_set_is_fetched_once_and_known_by_its_checksum(
    s3: S3, pushed: str, own_cache: Path
) -> None:
    settings = config(GLYPHS, family__data=pushed, outer__steps=1, evaluation__tasks=2)
    ready = run.prepare(settings)
    (size,) = {path.stat().st_size for path in own_cache.glob("fetched/glyphs-*/images.arrow")}
    assert sum(s3.asked("GET", "data/glyphs/images.arrow")) == size
    before = len(s3.log.read_text())
    assert open_data(pushed, ready.config.family.checksum).checksum == ready.config.family.checksum
    assert (
        len(s3.log.read_text()) == before
    )  # nothing was asked: a worker that comes back needs no network


@pytest.mark.ray
def test_processes_of_a_machine_fetch_one_copy(s3: S3, pushed: str, own_cache: Path) -> None:
    code = f"from metatrain.data.sources import open_data; print(open_data({pushed!r}).checksum)"
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = {process.communicate()[0] for process in started}
    assert said == {f"{open_data('glyphs').checksum}\n"}
    (size,) = {path.stat().st_size for path in own_cache.glob("fetched/glyphs-*/images.arrow")}
    assert sum(s3.asked("GET", "data/glyphs/images.arrow")) == size


def test_a_copy_that_broke_off_goes_on(s3: S3, pushed: str, own_cache: Path) -> None:
    whole = remote.fetch(pushed)
    data = (whole / "images.arrow").read_bytes()
    shutil.rmtree(whole)
    partial = own_cache / "fetched" / f".{whole.name}.partial"
    partial.mkdir()
    (partial / "images.arrow").write_bytes(data[: len(data) // 2])
    s3.log.write_text("")
    assert (remote.fetch(pushed) / "images.arrow").read_bytes() == data
    assert sum(s3.asked("GET", "data/glyphs/images.arrow")) == len(data) - len(data) // 2
    assert not partial.exists()


def test_what_is_not_what_was_pushed_is_refused_and_not_kept(
    s3: S3, pushed: str, own_cache: Path
) -> None:
    data = storage.read(f"{pushed}/images.arrow")
    storage.write(f"{pushed}/images.arrow", data[:-1] + bytes([data[-1] ^ 1]))
    for _ in range(2):
        with pytest.raises(InputError, match=r"its checksum differs.*push the data set again"):
            remote.fetch(pushed)
    assert not [
        path for path in (own_cache / "fetched").glob("*") if not path.name.endswith(".lock")
    ]
    manifest = json.loads(storage.read(f"{pushed}/manifest.json"))
    storage.write(
        f"{pushed}/manifest.json", json.dumps(manifest | {"content": "../../elsewhere"}).encode()
    )
    with pytest.raises(InputError, match=r"manifest\.json is damaged"):
        remote.fetch(pushed)
    with pytest.raises(
        InputError,
        match=r"s3://bucket/none holds no data set .*: put one there with `metatrain data push",
    ):
        remote.fetch("s3://bucket/none")


def test_the_commands_for_data_elsewhere(tmp_path: Path) -> None:
    where = tmp_path / "shared" / "drawn"
    done = command("data", "push", "glyphs", str(where))
    assert done.stdout.splitlines()[-1] == f"use it with --set family.data={where}"
    assert command("data", "check", str(where)).returncode == 0
    assert (
        "could be the name of a data set: give a path with a /"
        in command("data", "push", "glyphs", "drawn").stderr
    )


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def mine(own_cache: Path, tmp_path: Path) -> Path:
    """The folder of a small data set of one's own, which nothing else can draw again."""
    album(tmp_path / "photos", range(4), 2)
    assert command("data", "import", "mine", "--source", str(tmp_path / "photos")).returncode == 0
    return own_cache / "mine"


@pytest.mark.parametrize(
    "target",
    [
        "cache/mine/",
        "./cache/mine",
        "{here}/cache/mine",
        "{here}/cache/../cache/mine//",
        "{here}/photos/../cache/mine",
        "{here}/link",
        "{here}/linked/mine",
        "file://{here}/cache/mine",
        "file://{here}/link/",
        "file://{here}/a/../cache/mine",
        "cache/other/",
        "cache/mine/below",
        "cache/fetched/mine",
        "cache/",
        "{here}/moved",
    ],
)
def test_a_data_set_is_not_pushed_onto_itself_or_into_the_cache(
    target: str, mine: Path, tmp_path: Path
) -> None:
    if target.endswith("moved"):  # the data set is a link in the cache to where it was put
        mine.rename(tmp_path / "moved")
        mine.symlink_to(tmp_path / "moved")
    (tmp_path / "link").symlink_to(mine)
    (tmp_path / "linked").symlink_to(mine.parent)
    before = files_in(tmp_path)
    done = command("data", "push", "mine", target.format(here=tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        "is in this machine's data cache, where the data set is already: give a folder outside of"
        in done.stderr
    )
    assert files_in(tmp_path) == before
    assert command("data", "check", "mine").returncode == 0


def test_a_folder_of_other_files_is_refused_and_kept(mine: Path, tmp_path: Path) -> None:
    bundle.write_directory(str(tmp_path / "bundle"), {"x": b"1"})  # which has a manifest.json, too
    (tmp_path / "photos" / "manifest.json").write_text("{}")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"content": "text"}')
    before = files_in(tmp_path)
    for target, holds in (
        ("bundle/", "manifest.json, x"),
        ("photos/", "kind 00, kind 01, kind 02"),
        ("web/", "manifest.json"),
        (f"file://{tmp_path}/web", "manifest.json"),
        ("/", ""),
        ("file:///", ""),
    ):
        done = command("data", "push", "mine", target)
        assert done.returncode == 2
        assert f"holds {holds}" in done.stderr
        assert (
            "and no data set: give a new folder, an empty one, or one that a data set was pushed to"
            in done.stderr
        )
    assert (
        "is a file: give a folder for the data set"
        in command("data", "push", "mine", "./web/manifest.json").stderr
    )
    assert files_in(tmp_path) == before


def test_a_newer_version_replaces_an_earlier_one_and_what_a_push_left(
    mine: Path, tmp_path: Path
) -> None:
    empty, used = tmp_path / "empty", tmp_path / "used"
    empty.mkdir()
    for target in (empty, used):
        assert command("data", "push", "mine", str(target)).returncode == 0
    (used / "README").write_text("whose this is")
    album(tmp_path / "photos", range(4, 5), 2)
    assert command("data", "import", "mine", "--source", str(tmp_path / "photos")).returncode == 0
    assert command("data", "push", "mine", str(used)).returncode == 0
    assert open_data(str(used)).checksum == open_data("mine").checksum
    assert files_in(used).keys() == {"README", "images.arrow", "manifest.json"}
    (empty / "manifest.json").write_text("{")
    (empty / "images.arrow").rename(
        empty / "images.arrow.partial"
    )  # as a machine that lost its power left it
    (empty / "images.arrow").write_bytes(b"half")
    assert command("data", "push", "mine", str(empty)).returncode == 0
    assert open_data(str(empty)).checksum == open_data("mine").checksum
    os.link(
        mine / "images.arrow", tmp_path / "images.arrow"
    )  # the same file by another name is not written through
    (used / "images.arrow").unlink()
    (used / "images.arrow").symlink_to(mine / "images.arrow")
    assert command("data", "push", "mine", str(used)).returncode == 0
    assert not (used / "images.arrow").is_symlink()
    assert command("data", "check", "mine").returncode == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("no space left")])
def test_a_push_that_fails_leaves_what_was_there(
    error: BaseException, mine: Path, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: str, target: str, *systems: object) -> None:
        if isinstance(systems[1], fs.LocalFileSystem):
            Path(target).write_bytes(b"half")
        raise error

    for target in (str(tmp_path / "pushed"), f"s3://bucket/kept/{type(error).__name__}"):
        remote.push(open_data("mine"), target)
        before = {
            info.base_name: storage.read(f"{target}/{info.base_name}")
            for info in storage.listing(target)
        }
        with monkeypatch.context() as patch:
            patch.setattr(fs, "copy_files", fail)
            with pytest.raises(
                KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InputError
            ):
                remote.push(open_data("mine"), target)
        after = {
            info.base_name: storage.read(f"{target}/{info.base_name}")
            for info in storage.listing(target)
        }
        assert after == before
        storage.write(f"{target}/other/notes.txt", b"1")
        storage.remove(f"{target}/manifest.json")
        with pytest.raises(InputError, match=r"holds images\.arrow, other and no data set"):
            remote.push(open_data("mine"), target)
