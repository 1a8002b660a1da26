"""Images as data: what the tool feeds a model with is what `transformers` (its processors on Pillow) makes of the same files."""

import json

import numpy as np
import onnx
import pytest
from conftest import run_tool
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from transformers import (
    BeitImageProcessor,
    BitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)

PROCESSORS = {
    "vit": ViTImageProcessor(size={"height": 48, "width": 56}),
    "clip": CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 40, "width": 40}),
    "clip-pads": CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 41, "width": 37}),
    "bit": BitImageProcessor(size={"shortest_edge": 50}, crop_size=45, resample=3),
    "deit": DeiTImageProcessor(size={"height": 64, "width": 64}, crop_size={"height": 56, "width": 56}),
    "beit": BeitImageProcessor(size={"height": 40, "width": 40}, do_center_crop=False),
    "siglip": SiglipImageProcessor(size={"height": 32, "width": 32}),
    "convnext": ConvNextImageProcessor(size={"shortest_edge": 48}, crop_pct=0.875),
    "lanczos": ViTImageProcessor(size={"height": 48, "width": 48}, resample=1),
    "box": ViTImageProcessor(size={"height": 30, "width": 70}, resample=4),
    "hamming": ViTImageProcessor(size={"height": 70, "width": 30}, resample=5),
    "nearest": ViTImageProcessor(size={"height": 33, "width": 57}, resample=0),
    "only-rescaled": ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False, rescale_factor=1 / 127.5),
    "as-it-is": ViTImageProcessor(size={"height": 32, "width": 32}, do_rescale=False, do_normalize=False),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A hundred images of many sizes, forms and contents, in folders by class."""
    rng = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("images")
    for i in range(100):
        height, width = rng.integers(3, 180, 2)
        kind = i % 5
        if kind == 0:
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        elif kind == 1:
            y, x = np.mgrid[:height, :width]
            waves = np.stack([np.sin(x / 7 + i), np.cos(y / 5), np.sin((x + y) / 11)], -1)
            pixels = (127.5 + 127.5 * waves).astype(np.uint8)
        elif kind == 2:
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[height // 3 :, width // 2 :] = 255
        elif kind == 3:
            pixels = rng.integers(0, 256, (height, width), dtype=np.uint8)
        else:
            pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        image = Image.fromarray(pixels)
        if i % 10 == 6:
            image = image.convert("P")
        of = folder / f"class{i % 3}"
        of.mkdir(exist_ok=True)
        # Lossless ones: decoders of JPEG differ by one.
        name, options = [(f"{i:03}.png", {}), (f"{i:03}.bmp", {}), (f"{i:03}.webp", {"lossless": True})][i % 3]
        if name.endswith("bmp"):
            image = image.convert("RGB")
        image.save(of / name, **options)
    return folder


def pixel_model(path, channels_last=False, kind=TensorProto.FLOAT, size=("height", "width")):
    """A mean of every colour, a norm and a Linear."""
    rng = np.random.default_rng(0)
    weights = {"weight": rng.normal(size=(3, 8)), "gamma": np.array([1, 1, 9]), "beta": np.zeros(3)}
    shape = ["batch", *size, 3] if channels_last else ["batch", 3, *size]
    axes = [1, 2] if channels_last else [2, 3]
    nodes = [
        helper.make_node("Cast", ["pixel_values"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["real"], ["mean"], axes=axes, keepdims=0),
        helper.make_node("LayerNormalization", ["mean", "gamma", "beta"], ["normed"]),
        helper.make_node("MatMul", ["normed", "weight"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pixels",
        [helper.make_tensor_value_info("pixel_values", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def fed(package, model, data, **options):
    """All rows that the tool feeds, in one array."""
    batches = package.data(model, data, samples=1000, **options)
    return np.concatenate([batch["pixel_values"] for batch in batches])


def expected(processor, images):
    files = sorted(path for folder in sorted(images.iterdir()) for path in folder.iterdir())
    opened = [Image.open(file).convert("RGB") for file in files]
    return processor(opened, return_tensors="np")["pixel_values"]


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_hundred_images_are_what_transformers_makes_of_them(name, images, package, tmp_path):
    processor = PROCESSORS[name]
    (tmp_path / "onnx").mkdir()
    processor.save_pretrained(tmp_path)
    model = pixel_model(tmp_path / "onnx" / "model.onnx")
    ours, theirs = fed(package, model, images), expected(processor, images)
    assert ours.shape == theirs.shape and len(ours) == 100
    np.testing.assert_array_equal(ours, theirs.astype(np.float32))


def test_photographs_are_nearly_the_same(package, tmp_path):
    """JPEG decoders differ by a step or two of 255; an image that lies on its side is turned."""
    (tmp_path / "photos").mkdir()
    y, x = np.mgrid[:120, :160]
    for i in range(4):
        waves = np.stack([np.sin(x / 17 + i), np.cos(y / 15), np.sin((x + y) / 21)], -1)
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 3 else 1
        Image.fromarray((127.5 + 127.5 * waves).astype(np.uint8)).save(tmp_path / "photos" / f"{i}.jpg", quality=95, exif=exif)
    processor = PROCESSORS["vit"]
    processor.save_pretrained(tmp_path)
    model = pixel_model(tmp_path / "model.onnx")
    from PIL import ImageOps

    photos = [ImageOps.exif_transpose(Image.open(path)) for path in sorted((tmp_path / "photos").iterdir())]
    theirs = processor(photos, return_tensors="np")["pixel_values"]
    assert np.abs(fed(package, model, tmp_path / "photos") - theirs).max() <= 4 / 127.5


def test_the_layout_and_type_of_the_model(images, package, tmp_path):
    processor = PROCESSORS["vit"]
    processor.save_pretrained(tmp_path)
    theirs = expected(processor, images)
    last = pixel_model(tmp_path / "last.onnx", channels_last=True)
    np.testing.assert_array_equal(fed(package, last, images), theirs.transpose(0, 2, 3, 1).astype(np.float32))
    integers = pixel_model(tmp_path / "integers.onnx", kind=TensorProto.UINT8)
    raw = fed(package, integers, images)
    assert raw.dtype == np.uint8
    np.testing.assert_allclose(raw / 127.5 - 1, theirs, atol=1e-6)


def test_images_calibrate_and_verify(images, tmp_path):
    PROCESSORS["clip"].save_pretrained(tmp_path)
    model = pixel_model(tmp_path / "model.onnx", size=(40, 40))
    out = tmp_path / "out.onnx"
    done = run_tool(model, out, "--calib", images, "--samples", 40, "--max-slowdown", 0, "-v")
    assert done.returncode == 0, done.stderr
    assert "images are prepared by" in done.stdout
    # Named one by one they are the rows of one set.
    files = sorted((images / "class0").iterdir())[:9]
    done = run_tool("verify", model, out, *[word for file in files for word in ("--calib", file)])
    assert done.returncode == 0 and "on 9 rows" in done.stdout, done.stdout + done.stderr


def test_what_is_not_known_is_said(images, tmp_path):
    model = pixel_model(tmp_path / "model.onnx")
    out = tmp_path / "out.onnx"

    def told(config=None, data=images):
        if config is not None:
            (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
        done = run_tool(model, out, "--calib", data)
        assert done.returncode == 1 and not out.exists()
        return done.stderr

    assert "--preprocessor DIR" in told()
    assert "the step do_pad" in told({"image_processor_type": "OddImageProcessor", "do_pad": True, "size": 8})
    assert "states no size" in told({"image_processor_type": "OddImageProcessor"})
    assert "size that is not understood" in told({"image_processor_type": "ViTImageProcessor", "size": {"a": 1}})
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 40)
    assert "broken.png: is no image that can be read" in told({"image_processor_type": "ViTImageProcessor"}, broken)
