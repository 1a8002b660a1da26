"""Text as data: what the tool feeds a model with is what `transformers` makes of the same text, number by number.

The digest of the arrays stands in the metadata of a result, so two runs whose files are equal were fed the same.
"""

import json
import shutil
from collections import Counter

import numpy as np
import onnx
import pytest
from conftest import ROOT, run_tool
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 3000


def sentences(count=100):
    """Texts of many lengths with all that documents have: words, code, numbers, other scripts."""
    files = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md"))
    lines = [line.strip() for file in files for line in file.read_text().splitlines()]
    lines = [line for line in lines if len(line) > 3]
    step = len(lines) // (count - 6)
    own = ["Größe und Maß: naïve café", "Привет, мир!", "こんにちは世界、元気ですか", "a" * 300, "emoji 🙂🙂  spaces", "x"]
    return [lines[i * step] for i in range(count - len(own))] + own


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # Counted and not trained: the trainer numbers equally frequent pieces differently in every run.
    split = tokenizer.pre_tokenizer.pre_tokenize_str
    words = Counter(word for text in sentences(1000) for word, _ in split(tokenizer.normalizer.normalize_str(text)))
    characters = sorted({character for word in words for character in word})[:300]
    frequent = [word for word, _ in sorted(words.items(), key=lambda item: (-item[1], item[0])) if len(word) > 1]
    pieces = [*special, *characters, *(f"##{character}" for character in characters), *frequent][:VOCABULARY]
    tokenizer.model = models.WordPiece({piece: at for at, piece in enumerate(pieces)}, unk_token="[UNK]")
    tokenizer.add_special_tokens(special)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return tokenizer, {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(sentences(1000), trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer, {"pad_token": "<pad>", "eos_token": "<|endoftext|>", "padding_side": "left"}


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=VOCABULARY, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(sentences(1000), trainer)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ids
    )
    return tokenizer, {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


KINDS = {"wordpiece": wordpiece, "byte-level": byte_level, "unigram": unigram}


def text_model(path, inputs=("input_ids", "attention_mask", "token_type_ids"), shape=("batch", "sequence")):
    """A norm and a Linear on embedded tokens, with a use of every input."""
    rng = np.random.default_rng(0)
    width = 16
    weights = {
        "table": rng.normal(size=(VOCABULARY, width)),
        "types": rng.normal(size=(2, width)),
        "places": rng.normal(size=(512, width)),
        "gamma": np.r_[np.full(width - 1, 1.0), 30.0],
        "beta": np.zeros(width),
        "weight": rng.normal(size=(width, width)),
    }
    nodes = [helper.make_node("Gather", ["table", inputs[0]], ["x0"])]
    tables = {"token_type_ids": "types", "position_ids": "places"}
    for name in inputs[1:]:
        value = f"x{len(nodes)}"
        last = nodes[-1].output[0]
        if name in tables:
            nodes += [helper.make_node("Gather", [tables[name], name], [f"of_{name}"])]
        else:
            weights.setdefault("axis", None)
            nodes += [
                helper.make_node("Cast", [name], ["real"], to=TensorProto.FLOAT),
                helper.make_node("Unsqueeze", ["real", "axis"], [f"of_{name}"]),
            ]
        nodes += [helper.make_node("Add", [last, f"of_{name}"], [value])]
    nodes += [
        helper.make_node("LayerNormalization", [nodes[-1].output[0], "gamma", "beta"], ["normed"]),
        helper.make_node("MatMul", ["normed", "weight"], ["y"]),
    ]
    initializers = [
        numpy_helper.from_array(np.array([2]) if value is None else value.astype(np.float32), name)
        for name, value in weights.items()
    ]
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*shape, width])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def hubs(tmp_path_factory):
    """A folder per kind of tokenizer, as a hub has it."""
    folders = {}
    for kind, make in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        tokenizer, config = make()
        tokenizer.save(str(folder / "tokenizer.json"))
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 40}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        folders[kind] = folder
    return folders


def hub(hubs, kind, folder, **changes):
    """A copy of a folder, in which configuration may be changed."""
    copy = shutil.copytree(hubs[kind], folder / "hub")
    if changes:
        file = copy / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return copy


def same_bytes(model, text, arrays, folder, *options):
    """Quantizes with text and with arrays; gives what was said of the text."""
    np.savez(folder / "data.npz", **arrays)
    results = []
    for name, calib, given in (("text", text, options), ("arrays", folder / "data.npz", ())):
        out = folder / f"{name}.onnx"
        done = run_tool(model, out, "--calib", calib, "--max-slowdown", 0, "-v", *given)
        assert done.returncode == 0, done.stderr
        results.append((out.read_bytes(), done.stdout))
    assert results[0][0] == results[1][0]
    return results[0][1]


def expected(folder, first, second=None, names=None, **options):
    """What transformers makes of the text."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    names = names or ["input_ids", "attention_mask", "token_type_ids"]
    tokenizer.model_input_names = names
    made = tokenizer(first, second, padding=True, truncation=True, return_tensors="np", **options)
    return {name: made[name].astype(np.int64) for name in names if name in made}


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_texts_are_what_transformers_makes_of_them(kind, hubs, tmp_path):
    folder = hub(hubs, kind, tmp_path)
    model = text_model(folder / "model.onnx")
    text = tmp_path / "sentences.txt"
    text.write_text("\n\n".join(sentences()) + "\n")
    said = same_bytes(model, text, expected(folder, sentences()), tmp_path)
    assert f"text is tokenized by {folder / 'tokenizer.json'}" in said.replace("\n           ", " ")
    assert "were cut to 40 tokens (model_max_length of tokenizer_config.json)" in said.replace("\n           ", " ")


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_in_every_kind_of_table(kind, hubs, tmp_path):
    folder = hub(hubs, kind, tmp_path)
    (folder / "onnx").mkdir()
    model = text_model(folder / "onnx" / "model.onnx")
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"]}))
    first, second = sentences()[:40], sentences()[40:80]
    arrays = expected(folder, first, second)
    rows = [{"query": a, "id": i, "passage": b, "other": b} for i, (a, b) in enumerate(zip(first, second))]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "pairs.json").write_text(json.dumps({"version": 1, "data": rows}))
    quoted = ['"' + a.replace('"', '""') + '",7,"' + b.replace('"', '""') + '"' for a, b in zip(first, second)]
    (tmp_path / "pairs.csv").write_text("query,id,passage\n" + "\n".join(quoted) + "\n", encoding="utf-8-sig")
    for name in ("pairs.jsonl", "pairs.json", "pairs.csv"):
        case = tmp_path / f"of-{name}"
        case.mkdir()
        said = same_bytes(model, tmp_path / name, arrays, case)
        assert "text is taken from `query` and `passage`" in said
    case = tmp_path / "turned"
    case.mkdir()
    columns = ("--column", "passage", "--column", "query")
    same_bytes(model, tmp_path / "pairs.jsonl", expected(folder, second, first), case, *columns)


def test_columns_that_are_not_clear_are_listed(hubs, tmp_path):
    folder = hub(hubs, "wordpiece", tmp_path)
    model = text_model(folder / "model.onnx")
    (tmp_path / "a.tsv").write_text("title\tbody\tstars\nA\tB\t3\n" * 9)
    done = run_tool(model, tmp_path / "out.onnx", "--calib", tmp_path / "a.tsv")
    assert done.returncode == 1
    assert "`title`, `body`, `stars`" in done.stderr and "--column NAME" in done.stderr
    done = run_tool(model, tmp_path / "out.onnx", "--calib", tmp_path / "a.tsv", "--column", "text")
    assert "has no column `text`; its columns are `title`, `body`, `stars`" in done.stderr


def test_padding_and_length_as_the_configuration_says(hubs, tmp_path):
    """Left padding counts positions from the first token; a length in tokenizer.json is the last to be asked."""
    folder = hub(hubs, "byte-level", tmp_path, model_max_length=int(1e30))
    names = ["input_ids", "attention_mask", "position_ids"]
    model = text_model(folder / "model.onnx", names)
    texts = sentences()[:30]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    file = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(20)
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>", length=128, pad_to_multiple_of=8)
    tokenizer.save(str(file))
    arrays = expected(folder, texts, names=names[:2], max_length=20)
    places = arrays["attention_mask"].cumsum(axis=1) - 1
    arrays["position_ids"] = np.where(arrays["attention_mask"] == 1, places, 1)
    assert arrays["input_ids"].shape[1] == 20 and (arrays["attention_mask"][:, 0] == 0).any()
    same_bytes(model, tmp_path / "texts.txt", arrays, tmp_path)


@pytest.mark.parametrize("limit", ["max_seq_length", "--max-length", "max_position_embeddings", "the file"])
def test_who_limits_the_length(limit, hubs, tmp_path):
    folder = hub(hubs, "wordpiece", tmp_path)
    shape = ("batch", 24) if limit == "the file" else ("batch", "sequence")
    model = text_model(folder / "model.onnx", shape=shape)
    texts = sentences()[:30]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    options = ["--max-length", 24] if limit == "--max-length" else []
    if limit == "max_seq_length":
        (folder / "sentence_bert_config.json").write_text(json.dumps({limit: 24}))
    if limit == "max_position_embeddings":
        (folder / "config.json").write_text(json.dumps({limit: 26, "model_type": "roberta", "pad_token_id": 1}))
    same_bytes(model, tmp_path / "texts.txt", expected(folder, texts, max_length=24), tmp_path, *options)


def test_without_a_mask_nothing_is_padded(hubs, tmp_path):
    folder = hub(hubs, "wordpiece", tmp_path)
    model = text_model(folder / "model.onnx", ["input_ids"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    texts = sentences()
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    by_length = {}
    for text in texts:
        ids = tokenizer(text, truncation=True)["input_ids"]
        by_length.setdefault(len(ids), []).append(ids)
    groups = sorted(by_length.items(), key=lambda group: (-len(group[1]), group[0]))
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    for i, (_, rows) in enumerate(groups):
        np.savez(arrays / f"{i:03}.npz", input_ids=np.array(rows, np.int64))
    outs = []
    for name, calib in (("text", tmp_path / "texts.txt"), ("arrays", arrays)):
        out = tmp_path / f"{name}.onnx"
        done = run_tool(model, out, "--calib", calib, "--max-slowdown", 0)
        assert done.returncode == 0, done.stderr
        outs.append(out.read_bytes())
    assert outs[0] == outs[1]


def test_samples_are_spread_over_the_file(hubs, tmp_path):
    folder = hub(hubs, "wordpiece", tmp_path)
    model = text_model(folder / "model.onnx")
    texts = sentences()
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    chosen = [texts[i * len(texts) // 40] for i in range(40)]
    same_bytes(model, tmp_path / "texts.txt", expected(folder, chosen), tmp_path, "--samples", 40)
    (tmp_path / "many.txt").write_text("\n".join(texts * 3))
    case = tmp_path / "many"
    case.mkdir()
    many = [(texts * 3)[i * 300 // 128] for i in range(128)]
    said = same_bytes(model, tmp_path / "many.txt", expected(folder, many), case)
    assert "128 of the 300 rows" in said


def test_verify_and_inspect_read_text_too(hubs, tmp_path):
    folder = hub(hubs, "wordpiece", tmp_path)
    model = text_model(tmp_path / "model.onnx")
    text = tmp_path / "texts.txt"
    text.write_text("\n".join(sentences()))
    given = ["--calib", text, "--tokenizer", folder]
    done = run_tool(model, tmp_path / "out.onnx", *given)
    assert done.returncode == 0, done.stderr
    done = run_tool("verify", model, tmp_path / "out.onnx", *given, "--min-sqnr", 10)
    assert done.returncode == 0 and "on 100 rows" in done.stdout, done.stderr
    done = run_tool("inspect", model, *given)
    assert done.returncode == 0, done.stderr


def test_what_is_missing_is_said(hubs, tmp_path):
    folder = hub(hubs, "wordpiece", tmp_path)
    model = text_model(tmp_path / "model.onnx")
    text = tmp_path / "texts.txt"
    text.write_text("\n".join(sentences()))
    out = tmp_path / "out.onnx"

    def told(*options, calib=text):
        done = run_tool(model, out, "--calib", calib, *options)
        assert done.returncode == 1 and not out.exists(), done.stdout
        assert len(done.stderr) < 600
        return done.stderr

    assert "--tokenizer DIR" in told()
    assert "holds no tokenizer.json" in told("--tokenizer", tmp_path)
    assert "no room for text beside the 3" in told("--tokenizer", folder, "--max-length", 3)
    assert "holds arrays" in told("--tokenizer", folder, calib=ROOT / "models" / "tiny" / "calib.npz")
    (tmp_path / "latin.txt").write_bytes("a\nGrö\n".encode("latin-1"))
    assert "line 2 is not UTF-8" in told("--tokenizer", folder, calib=tmp_path / "latin.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "holds no text" in told("--tokenizer", folder, calib=tmp_path / "empty.txt")
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    assert "line 2 is no JSON" in told("--tokenizer", folder, calib=tmp_path / "broken.jsonl")
    (tmp_path / "no.parquet").write_bytes(b"PAR1 no PAR1")
    assert "is no Parquet" in told("--tokenizer", folder, calib=tmp_path / "no.parquet")
    (folder / "tokenizer.json").write_text("{}")
    assert "is no tokenizer that can be read" in told("--tokenizer", folder)


def test_a_tokenizer_is_never_written_over(hubs, tmp_path):
    folder = hub(hubs, "wordpiece", tmp_path)
    model = text_model(folder / "model.onnx")
    text = tmp_path / "texts.txt"
    text.write_text("\n".join(sentences()))
    done = run_tool(model, folder / "tokenizer.json", "--calib", text, "--force")
    assert done.returncode == 1 and "is the same file as the configuration of the model" in done.stderr
    assert (folder / "tokenizer.json").stat().st_size > 1000
