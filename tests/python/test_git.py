"""`onnx-osplus text` as git's textconv: what docs/review.md says, in a real repository."""

import os
import re
import shutil
import subprocess

import onnx
import pytest
from conftest import ROOT, TINY, tool_path
from onnx import numpy_helper

MANUAL = (ROOT / "docs" / "review.md").read_text()


def readme_lines():
    """The three lines, from the manual: one of .gitattributes and two of configuration."""
    attributes = re.search(r"echo '(\*\.onnx diff=onnx)' >> \.gitattributes", MANUAL)
    configuration = re.findall(r"git config (diff\.onnx\.\w+) (?:'([^']+)'|(\S+))", MANUAL)
    assert attributes and len(configuration) == 2
    return attributes[1], [(key, quoted or plain) for key, quoted, plain in configuration]


@pytest.fixture
def repository(tmp_path):
    """A function that runs git in a repository of its own, with the tool on its path."""
    folder, tools = tmp_path / "repository", tmp_path / "bin"
    folder.mkdir()
    tools.mkdir()
    (tools / "onnx-osplus").symlink_to(tool_path())
    environment = {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "GIT_CONFIG_NOSYSTEM": "1",
        **{f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }

    def git(*arguments):
        done = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    git("init", "-q")
    git.folder = folder
    return git


def commit_two_models(git):
    """The same model twice: in the second one a node has another attribute and a weight another element."""
    shutil.copy(TINY.model, git.folder / "model.onnx")
    git("add", ".")
    git("commit", "-qm", "first")
    model = onnx.load(TINY.model)
    norm = next(n for n in model.graph.node if n.op_type == "LayerNormalization")
    next(a for a in norm.attribute if a.name == "epsilon").f = 0.125
    weight = next(t for t in model.graph.initializer if "key.weight" in t.name)
    array = numpy_helper.to_array(weight).copy()
    array[0, 0] = 77.0
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, git.folder / "model.onnx")
    git("add", ".")
    git("commit", "-qm", "second")
    return norm.name, weight.name


def test_git_shows_what_changed(repository):
    git = repository
    attributes, configuration = readme_lines()
    (git.folder / ".gitattributes").write_text(attributes + "\n")
    for key, value in configuration:
        git("config", key, value)
    norm, weight = commit_two_models(git)
    for command in (["diff", "HEAD~1"], ["show"], ["log", "-p", "-1"]):
        # Twice: the second time from the cache.
        for _ in range(2):
            text = git(*command)
            changed = [line for line in text.splitlines() if re.match(r"[-+](?![-+])", line)]
            assert "Binary files" not in text and len(changed) == 4, text
            assert [line[0] for line in changed if norm in line and "LayerNormalization" in line] == ["-", "+"]
            assert any("epsilon = 0.125" in line for line in changed)
            of_weight = [line for line in changed if weight in line]
            assert len(of_weight) == 2 and "77" in of_weight[1] and "77" not in of_weight[0]


def test_without_the_three_lines_it_is_a_binary_file(repository):
    commit_two_models(repository)
    assert "Binary files" in repository("diff", "HEAD~1")


def test_the_text_beside_the_model(repository):
    """For hosted reviews, which run no textconv: the hook of the manual keeps a text file, and the check of CI sees if not."""
    git = repository
    block = next(b for b in re.findall(r"```sh\n(.*?)```", MANUAL, re.DOTALL) if "pre-commit" in b)
    hook = block.split("\n", 1)[1]
    path = git.folder / ".git" / "hooks" / "pre-commit"
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n" + hook)
    path.chmod(0o755)
    norm, _ = commit_two_models(git)
    text = git("show", "--stat", "HEAD")
    assert "model.onnx.txt" in text
    changed = git("show", "HEAD", "--", "model.onnx.txt")
    assert f"[{norm}]" in changed or norm in changed
    assert "epsilon = 0.125" in changed
