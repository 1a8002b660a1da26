import shutil
import subprocess
from pathlib import Path

import pytest
from cases import prepare


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=200, help="how many processes are killed at random moments [200]")


@pytest.fixture(scope="session")
def preload(tmp_path_factory):
    """Environment of a process whose calls of the system can be made to fail or to wait: see faults.c."""
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    source = Path(__file__).resolve().parent / "faults.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("ready"))


@pytest.fixture
def folder(ready, tmp_path):
    """A folder with every file that commands read."""
    shutil.copytree(ready, tmp_path, dirs_exist_ok=True)
    return tmp_path
