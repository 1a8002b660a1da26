"""The review of models between two commits, the action around it and the hooks of pre-commit, on real git histories."""

import json
import os
import re
import shutil
import subprocess
from importlib import resources

import jsonschema
import onnx
import pytest
import yaml
from conftest import ROOT, TINY, run_tool, tool_path
from onnx import numpy_helper
from test_diff_markdown import LIMIT

def vendored(name):
    """A schema that check-jsonschema brings along."""
    return json.loads((resources.files("check_jsonschema") / f"builtin_schemas/vendor/{name}.json").read_text())


SCRIPT = ROOT / "scripts" / "review"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    out = tmp_path_factory.mktemp("action") / "out.onnx"
    assert run_tool(TINY.model, out, "--calib", TINY.calib, "-q", "--max-slowdown", "0").returncode == 0
    return out


class Repository:
    def __init__(self, folder):
        self.folder, tools = folder / "repository", folder / "bin"
        self.folder.mkdir()
        tools.mkdir()
        (tools / "onnx-osplus").symlink_to(tool_path())
        people = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        self.environment = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1", **people}
        self.run("git", "init", "-qb", "main")

    def run(self, *words, status=0, **environment):
        done = subprocess.run([*map(str, words)], cwd=self.folder, env={**self.environment, **environment}, capture_output=True, text=True, timeout=300)
        assert status is None or done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def commit(self):
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "x", "--no-verify")

    def review(self, *options, base="main", status=0):
        """The comment, whose every block is one that the tools write."""
        out = self.folder.parent / "comment.md"
        out.unlink(missing_ok=True)
        done = self.run(SCRIPT, "--base", base, "--comment", out, *options, status=status)
        assert self.run("git", "status", "--porcelain").stdout == "" and self.run("git", "worktree", "list").stdout.count("\n") == 1
        if status == 2:
            assert not out.exists() and done.stderr
            return done.stderr
        text = out.read_text()
        assert len(text.encode()) <= LIMIT and text.startswith("<!-- onnx-osplus review -->\n")
        return text


@pytest.fixture
def repository(tmp_path):
    made = Repository(tmp_path)
    shutil.copy(TINY.model, made.folder / "model.onnx")
    shutil.copy(TINY.heldout, made.folder / "heldout.npz")
    made.commit()
    made.run("git", "checkout", "-qb", "change")
    return made


def change(path, element=0.25):
    model = onnx.load(path)
    weight = next(t for t in model.graph.initializer if "key.weight" in t.name)
    array = numpy_helper.to_array(weight).copy()
    array[0, 0] += element
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, path)


def test_a_changed_model_is_shown(repository):
    change(repository.folder / "model.onnx")
    repository.commit()
    text = repository.review()
    assert "<code>./base/model.onnx</code> → <code>./head/model.onnx</code>" in text and "1 constant" in text
    assert "✅ lint for portable" in text and "portable: nothing found" in text and "❌" not in text
    # main went on since: only what the branch did counts.
    repository.run("git", "checkout", "-q", "main")
    change(repository.folder / "model.onnx", 1.0)
    repository.commit()
    repository.run("git", "checkout", "-q", "change")
    assert repository.review() == text


def test_nothing_changed(repository):
    (repository.folder / "README").write_text("words")
    repository.commit()
    assert "No model changed." in repository.review("--verify", "model.onnx model.onnx heldout.npz 10")


def test_lint_and_verify_fail(repository, quantized):
    shutil.copy(quantized, repository.folder / "int8.onnx")
    repository.commit()
    text = repository.review("--target", "ort", "--verify", "model.onnx int8.onnx heldout.npz 30")
    assert "✅ verify <code>int8.onnx</code>" in text and "<code>int8.onnx</code> is new" in text
    text = repository.review("--target", "ort", "--verify", "model.onnx int8.onnx heldout.npz 90", status=1)
    assert "❌ verify <code>int8.onnx</code>" in text and "❌ 1 failed: <code>verify of int8.onnx</code>" in text
    text = repository.review("--target", "tensorrt", status=1)
    assert "❌ lint for tensorrt" in text and "T1-zero-point" in text
    said = repository.review("--verify", "model.onnx none.onnx heldout.npz 30", status=2)
    assert "QUANT none.onnx is not in HEAD" in said
    assert "merge-base" in repository.review(base="nowhere", status=2)
    for wrong in ["a b c", "a b c x"]:
        repository.review("--verify", wrong, status=2)


def test_a_folder_of_data_and_a_named_input(repository, quantized):
    import numpy as np

    folder = repository.folder / "data"
    folder.mkdir()
    arrays = dict(np.load(TINY.heldout))
    np.savez(folder / "a.npz", **{k: v[:8] for k, v in arrays.items()})
    shutil.copy(quantized, repository.folder / "int8.onnx")
    repository.commit()
    assert "✅ verify" in repository.review("--verify", "model.onnx int8.onnx data 30", "--target", "ort")


def test_removed_renamed_and_hostile_names(repository):
    (repository.folder / "sub dir").mkdir()
    hostile = "-@everyone <b>`x`<i>\n[a](b).onnx"
    shutil.copy(repository.folder / "model.onnx", repository.folder / "sub dir" / hostile)
    shutil.copy(TINY.model.parents[1] / "tiny-llama" / "model.onnx", repository.folder / "gone.onnx")
    repository.commit()
    repository.run("git", "branch", "-f", "start")
    (repository.folder / "gone.onnx").unlink()
    change(repository.folder / "sub dir" / hostile)
    (repository.folder / "model.onnx").rename(repository.folder / "moved.onnx")
    repository.commit()
    text = repository.review(base="start")
    assert "<code>gone.onnx</code> was removed" in text
    assert "./base/model.onnx</code> → <code>./head/moved.onnx</code>" in text and "The models are the same." in text
    assert "@everyone &lt;b&gt;&#96;x&#96;" in text and "<b>" not in text
    assert "\n[a](b)" not in text


def test_external_data_counts(repository):
    model = onnx.load(TINY.model)
    onnx.save(model, repository.folder / "big.onnx", save_as_external_data=True, location="big.onnx.data", size_threshold=64)
    repository.commit()
    repository.run("git", "branch", "-f", "start")
    data = bytearray((repository.folder / "big.onnx.data").read_bytes())
    data[3] ^= 1
    (repository.folder / "big.onnx.data").write_bytes(data)
    repository.commit()
    text = repository.review(base="start")
    assert "./head/big.onnx" in text and "constant" in text and "model.onnx</code> →" not in text.replace("big.onnx", "")


def test_a_file_that_is_no_model_fails(repository):
    (repository.folder / "model.onnx").write_bytes(b"```\n</details>")
    repository.commit()
    text = repository.review(status=1)
    assert "the models cannot be compared" in text and "❌ lint" in text


def test_many_models_fit(repository, quantized):
    for i in range(30):
        shutil.copy(TINY.model, repository.folder / f"m{i}.onnx")
    repository.commit()
    repository.run("git", "branch", "-f", "start")
    for i in range(30):
        shutil.copy(quantized, repository.folder / f"m{i}.onnx")
    repository.commit()
    text = repository.review("--target", "ort", base="start")
    said = re.search(r"(\d+) more models changed, for which a comment has no room", text)
    assert int(said[1]) + len(re.findall(r"<h3>", text)) == 30
    only = repository.review("--target", "ort", "--models", "m1?.onnx", base="start")
    assert "m2.onnx" not in only


def test_the_action_is_valid_and_runs(repository):
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    schema = vendored("github-actions")
    jsonschema.validate(action, schema, cls=jsonschema.validators.validator_for(schema))
    steps = {step["name"]: step for step in action["runs"]["steps"]}
    for step in steps.values():
        # What others wrote reaches the shell by the environment alone.
        assert "${{" not in step["run"]
        subprocess.run(["bash", "-n", "-c", step["run"]], check=True, timeout=30)
    change(repository.folder / "model.onnx")
    repository.commit()
    files = {name: str(repository.folder.parent / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    environment = {"SCRIPT": str(SCRIPT), "MODELS": "*.onnx\n", "TARGET": "portable", "VERIFY": "", "BASE": "main", "HEAD": "HEAD",
                   "RUNNER_TEMP": str(repository.folder.parent), **files}
    assert set(steps["Review"]["env"]) == {"SCRIPT", "MODELS", "TARGET", "VERIFY", "BASE", "HEAD"}
    repository.run("bash", "-eo", "pipefail", "-c", steps["Install onnx-osplus"]["run"], VERSION="")
    for verify, status in [("", 0), ("model.onnx model.onnx heldout.npz 10\n", 0), ("x y\n", 2)]:
        repository.run("bash", "-eo", "pipefail", "-c", steps["Review"]["run"], status=status, **{**environment, "VERIFY": verify})
    summary = (repository.folder.parent / "GITHUB_STEP_SUMMARY").read_text()
    assert "./head/model.onnx" in summary and "✅ verify" in summary
    said = dict(line.split("=", 1) for line in (repository.folder.parent / "GITHUB_OUTPUT").read_text().splitlines())
    assert said["status"] == "2" and said["comment-file"].endswith(".md")
    repository.run("bash", "-c", steps["Result"]["run"], STATUS="1", status=1)


def test_the_hooks_run_as_pre_commit_runs_them(repository, quantized):
    hooks = {hook["id"]: hook for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())}
    assert set(hooks) == {"onnx-lint", "onnx-text"}

    def run(hook, *more, status):
        hook = hooks[hook]
        staged = repository.run("git", "diff", "--cached", "--name-only", "--diff-filter=ACMR").stdout.split()
        files = [file for file in staged if re.search(hook["files"], file)]
        return repository.run(*hook["entry"].split(), *(more or hook["args"]), *files, status=status)

    change(repository.folder / "model.onnx")
    shutil.copy(quantized, repository.folder / "int8.onnx")
    repository.run("git", "add", "-A")
    run("onnx-lint", status=1)
    run("onnx-lint", "--target", "ort", status=0)
    assert run("onnx-text", status=1).stdout == "wrote int8.onnx.txt\nwrote model.onnx.txt\n"
    assert run("onnx-text", status=0).stdout == ""
    text = (repository.folder / "model.onnx.txt").read_text()
    assert text == run_tool("text", repository.folder / "model.onnx").stdout
    repository.commit()
    # Of another model, and missing.
    change(repository.folder / "model.onnx")
    (repository.folder / "int8.onnx.txt").unlink()
    done = repository.run("onnx-osplus", "text", "--check", "model.onnx", "int8.onnx", status=1)
    assert "model.onnx.txt is the text of another model\nint8.onnx.txt is missing\n" in done.stdout
    assert repository.run("onnx-osplus", "text", "model.onnx", "int8.onnx", status=2).stdout == ""
