import subprocess
from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=200, help="how many processes are killed at random moments [200]")


@pytest.fixture(scope="session")
def preload(tmp_path_factory):
    """Environment of a process whose calls of the system can be made to fail or to wait: see faults.c."""
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    source = Path(__file__).resolve().parent / "faults.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}
