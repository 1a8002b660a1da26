from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import Any, Literal, Protocol, TypeAlias, TypedDict

from typing_extensions import Unpack

from ._result import Candidate as Candidate
from ._result import Diff as Diff
from ._result import Result as Result

__version__: str

class OsplusError(Exception): ...
class UsageError(OsplusError): ...
class NothingToQuantize(OsplusError): ...

class MetricError(OsplusError):
    float: float
    quantized: float
    least: float

class _Message(Protocol):
    def SerializeToString(self) -> bytes: ...

class _Reader(Protocol):
    def get_next(self) -> Mapping[str, Any] | None: ...

Path: TypeAlias = str | PathLike[str]
Model: TypeAlias = Path | bytes | _Message
Calibration: TypeAlias = Path | Mapping[str, Any] | Iterable[Any] | _Reader
Progress: TypeAlias = bool | Callable[[str, int, int], object] | None
Target: TypeAlias = Literal["ort", "tensorrt", "openvino", "portable"]

class _Data(TypedDict, total=False):
    tokenizer: Path
    preprocessor: Path
    column: str | list[str]
    max_length: int
    samples: int
    batch: int
    threads: int

class _Inspect(_Data, total=False):
    target: Target
    weight_bits: int
    activation_bits: int

class _Labels(TypedDict, total=False):
    label_column: str
    metric_output: str

class _Verify(_Data, _Labels, total=False):
    no_layers: bool
    metric: Literal["accuracy", "f1", "matthews", "spearman", "pearson", "auc"]
    min_metric: str

class _Stats(_Inspect, total=False):
    shard: str
    with_data: bool
    seed: int
    force: bool

class _Quantize(_Inspect, _Labels, total=False):
    eval_samples: int
    stats: Path | list[Path]
    preset: str
    format: Literal["qdq", "qoperator", "matmulnbits", "float"]
    method: Literal["osplus", "smoothquant", "none"]
    weight_granularity: str
    weight_symmetry: Literal["auto", "symmetric", "asymmetric"]
    weight_only: bool
    max_raised: float
    activation_granularity: Literal["per-tensor", "per-token", "per-group", "float"]
    reduce_range: bool
    weights_as_float_qdq: bool
    attention: Literal["auto", "float", "int8"]
    embeddings: Literal["float", "int8", "int4"]
    include: str
    exclude: str
    keep_float: int | float | str
    min_sqnr: float
    no_extra_nodes: bool
    max_slowdown: float
    clean: bool
    no_fold_sizes: bool
    seed: int
    report: Path | list[Path]
    no_layers: bool
    external_data: bool
    no_metadata: bool
    force: bool

def quantize(
    model: Model,
    calibration: Calibration | None,
    out: Path | None = None,
    *,
    progress: Progress = None,
    metric: Callable[[Candidate], float] | Literal["accuracy", "f1", "matthews", "spearman", "pearson", "auc"] | None = None,
    min_metric: float | str | None = None,
    labels: Any = None,
    eval: Calibration | None = None,
    **options: Unpack[_Quantize],
) -> Result: ...
def stats(
    model: Model, calibration: Calibration, out: Path, *, progress: Progress = None, **options: Unpack[_Stats]
) -> PathLike[str]: ...
def verify(
    float_model: Model,
    quantized: Model,
    calibration: Calibration,
    *,
    progress: Progress = None,
    labels: Any = None,
    **options: Unpack[_Verify],
) -> dict[str, Any]: ...
def inspect(
    model: Model, calibration: Calibration | None = None, *, progress: Progress = None, **options: Unpack[_Inspect]
) -> dict[str, Any]: ...
def data(
    model: Model,
    calibration: Calibration,
    *,
    tokenizer: Path | None = None,
    preprocessor: Path | None = None,
    column: str | list[str] = ...,
    max_length: int | None = None,
    samples: int | None = None,
) -> list[dict[str, Any]]: ...
def lint(model: Model, target: Target = "portable") -> list[dict[str, Any]]: ...
def diff(before: Model, after: Model) -> Diff: ...
