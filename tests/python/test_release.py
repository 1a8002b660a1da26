"""scripts/release-check on repositories that are ready and that are not; CITATION.cff by its schema."""

import json
import re
import shutil
import subprocess
import tomllib
from importlib import resources

import jsonschema
import pytest
import yaml
from conftest import ROOT

FILES = ["Cargo.toml", "Cargo.lock", "python/Cargo.toml", "CITATION.cff", "CHANGELOG.md", "docs/review.md", "scripts/release-check"]
VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]


def git(folder, *words):
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def ready(tmp_path):
    """A repository whose version could be tagged."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    log = (tmp_path / "CHANGELOG.md").read_text()
    (tmp_path / "CHANGELOG.md").write_text(re.sub(r"^## .*$", f"## {VERSION} (2026-12-01)", log, count=1, flags=re.MULTILINE))
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "x")
    return tmp_path


def check(folder, *options):
    done = subprocess.run([folder / "scripts/release-check", "--no-package", *options], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_what_is_ready_is_told_so(ready):
    assert check(ready) == (0, f"{VERSION}: ready\n")
    assert check(ready, "--tag", f"v{VERSION}") == (1, f"there is no tag v{VERSION}\n{VERSION}: 1 to do\n")
    git(ready, "tag", f"v{VERSION}")
    assert check(ready, "--tag", f"v{VERSION}")[0] == 0
    assert f"the tag is v9.9.9, the version v{VERSION}" in check(ready, "--tag", "v9.9.9")[1]


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("CITATION.cff", f"version: {VERSION}", "version: 9.9.9", "CITATION.cff says 9.9.9"),
        ("docs/review.md", f"@v{VERSION}", "@v9.9.9", "docs/review.md says 9.9.9"),
        ("CHANGELOG.md", "(2026-12-01)", "(unreleased)", "has no date"),
        ("CHANGELOG.md", f"## {VERSION} ", "## 9.9.9 ", "the newest entry of CHANGELOG.md says 9.9.9"),
        ("Cargo.toml", f'version = "{VERSION}"', 'version = "9.9.9"', f"Cargo.lock says {VERSION}, Cargo.toml 9.9.9"),
    ],
)
def test_what_is_missing_is_told(ready, name, old, new, said):
    text = (ready / name).read_text()
    assert old in text
    (ready / name).write_text(text.replace(old, new, 1))
    status, out = check(ready)
    assert status == 1 and said in out and "not committed" in out
    git(ready, "commit", "-qam", "y")
    assert "not committed" not in check(ready)[1]


def test_a_version_is_tagged_once(ready):
    git(ready, "tag", f"v{VERSION}")
    git(ready, "commit", "-q", "--allow-empty", "-m", "later")
    status, out = check(ready)
    assert status == 1 and "is there already" in out and "raise the version" in out


def test_the_package_of_this_repository():
    done = subprocess.run([ROOT / "scripts/release-check"], capture_output=True, text=True, timeout=300)
    # Dates and commits come with the release; what the package holds does not.
    assert "package" not in done.stdout and "says" not in done.stdout, done.stdout


def test_the_citation_is_valid():
    schema = json.loads((resources.files("check_jsonschema") / "builtin_schemas/vendor/citation-file-format.json").read_text())
    value = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    jsonschema.validate(value, schema, cls=jsonschema.validators.validator_for(schema))
    assert value["preferred-citation"]["year"] == 2023 and "Outlier Suppression+" in value["preferred-citation"]["title"]
