"""What several tests share: a private data cache, one local Ray, one storage, two nodes."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import torch
from cases import languages
from matplotlib.figure import Figure
from pretended_gpu import Gpu, pretended
from services import S3, Nodes, cache_in, drawing, mlflow_in

from metatrain import figures
from metatrain.data import sources, texts
from metatrain.data.images import ImageStore
from metatrain.data.sources import import_data


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give all tests of a file, and of files that share a service, to one of pytest's processes."""
    from xdist.scheduler import LoadScopeScheduling

    class ByService(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return service_of(config.rootpath / file) or file

    config.option.loadscopereorder = False  # but as `pytest_collection_modifyitems` has it
    return ByService(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no process of pytest works alone at the end."""
    items.sort(key=lambda item: LONGEST.get(service_of(item.path) or "", len(LONGEST)))


# Files that are a service's alone have enough tests to be worth a Ray of their own.
ALONE = ("test_jobs.py", "test_sweep.py")
LONGEST = {name: at for at, name in enumerate((*ALONE, "nodes: Nodes", "ray_cluster"))}


@cache
def service_of(file: Path) -> str | None:
    """What the tests of a file share with those of others, if they do."""
    if file.name in ALONE:
        return file.name
    text = file.read_text()
    return next((name for name in ("nodes: Nodes", "ray_cluster") if name in text), None)


@pytest.fixture(scope="session", autouse=True)
def _private_caches(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No test touches the user's data cache, MLflow or Ray."""
    compiler = re.sub(r"\W", "", os.environ.get("CXX", ""))
    # pytest keeps this folder: compiling the kernels takes seconds.
    kernels = request.config.cache.mkdir(f"kernels{compiler}")
    kernels.chmod(0o700)  # whatever the umask: else nothing in it is loaded
    os.environ["METATRAIN_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    (Path(os.environ["METATRAIN_CACHE"]) / ".compiled").symlink_to(kernels)
    texts.store("invented", languages(), 32).save()
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    # Ray gives a worker, and a dashboard, a minute to start, which a busy machine may exceed,
    # the more so as it lets its workers step back behind everything else, such as other tests.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    os.environ["RAY_worker_register_timeout_seconds"] = "600"  # noqa: SIM112
    os.environ["RAY_DASHBOARD_STARTUP_TIMEOUT_S"] = "600"
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test that draws from torch's own generator draws the same, whatever ran before it."""
    torch.manual_seed(0)


def _undrawn(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="session", autouse=True)
def _no_pictures() -> Iterator[None]:
    """Pictures are built and not drawn, which takes more than half the time of a short run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", _undrawn)
        yield


@pytest.fixture
def pictures() -> Iterator[None]:
    """Pictures are drawn: for tests that look at one."""
    with drawing():
        yield


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and stores that a test leaves in the working directory are its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def gpu() -> Iterator[type[Gpu]]:
    """A GPU that is pretended."""
    torch.set_num_threads(1)
    with pretended() as found:
        yield found
    sources.on_device.cache_clear()


@pytest.fixture(scope="session")
def ray_cluster(_s3: S3) -> Iterator[None]:
    """A local Ray with more CPU slots than this machine may have, and one for a GPU; it knows the
    storage.
    """
    import ray

    from cluster.pools.ray_connection import _init_local

    with pytest.MonkeyPatch.context() as patch:
        for name, value in _s3.environment.items():
            patch.setenv(name, value)
        _init_local({"num_cpus": 4, "num_gpus": 1, "log_to_driver": False})
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def _omniglot_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real Omniglot, imported once into a cache of its own, which pytest's processes share."""
    source = Path(os.environ.get("METATRAIN_DATA", "")) / "omniglot"
    if not (source / "images_background.zip").exists():
        pytest.skip("METATRAIN_DATA has no omniglot/images_background.zip")
    own = tmp_path_factory.getbasetemp()
    top = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with (top / "omniglot.lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (top / "omniglot").exists():
            patch.setenv("METATRAIN_CACHE", str(cache_in(top / "omniglot")))
            import_data("omniglot", source)
    return top / "omniglot"


@pytest.fixture
def omniglot(_omniglot_cache: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    monkeypatch.setenv("METATRAIN_CACHE", str(_omniglot_cache))
    return ImageStore.open("omniglot")


@pytest.fixture(scope="session")
def _s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    log = tmp_path_factory.mktemp("s3") / "log"
    command = [sys.executable, str(Path(__file__).parent / "s3.py"), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            port, read_only = map(int, process.stdout.readline().split())
            urlopen(Request(f"http://127.0.0.1:{port}/bucket", method="PUT")).close()
            keys = {
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            keys["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
            yield S3(keys, f"http://127.0.0.1:{read_only}", log)
        finally:
            process.kill()


@pytest.fixture
def s3(_s3: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    for name, value in _s3.environment.items():
        monkeypatch.setenv(name, value)
    return _s3


@pytest.fixture(scope="module")
def mlflow_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with mlflow_in(tmp_path_factory.mktemp("mlflow")) as served:
        yield served


@pytest.fixture(scope="session")
def nodes(_s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Two nodes with a cache each, that know a storage and an MLflow server."""
    folder = tmp_path_factory.mktemp("nodes")
    with mlflow_in(folder) as (server, _):
        nodes = Nodes(folder, _s3.environment | {"MLFLOW_TRACKING_URI": server})
        try:
            nodes.start("head", METATRAIN_CACHE=str(nodes.caches[0]))
            nodes.start("worker", METATRAIN_CACHE=str(nodes.caches[1]))
            yield nodes
        finally:
            nodes.end()
