//! The profiles: one constant per target. The same as a table, with one column per target, is in ARCHITECTURE.md;
//! [`markdown`] makes it and a test compares.

use std::fmt::Write;

use super::profile::{GemmBias, Profile, Source};
use super::{MIN_OPSET, Target};

const MEASURED: &str = "tests/python/test_profiles.py";

const POOLS: &str = "tests/python/test_lint_rules.py";

const ORT_QUANTIZATION: &str =
    "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html";
const ORT_OUTPUT_DTYPE: &str = "https://github.com/microsoft/onnxruntime/issues/25526";
const TRT_TYPES: &str = "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-with-quantized-types.html";
const TRT_EXPLICIT: &str = "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html";
const TRT_QUANTIZE: &str =
    "https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/operators/Quantize.html";
const TRT_DEQUANTIZE: &str =
    "https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/operators/Dequantize.html";
const TRT_ATTENTION: &str = "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/transformers-fused-attention.html";
const OV_INT8: &str = "https://docs.openvino.ai/2024/documentation/openvino-ir-format/intermediate-representation-int8-inference.html";
const OV_SATURATION: &str = "https://docs.openvino.ai/latest/pot_saturation_issue.html";

/// ONNX Runtime on CPUs.
pub(super) const ORT: Profile = Profile {
    target: Target::Ort,
    name: "ort",
    runtimes: "ONNX Runtime",
    symmetric: false,
    share_activations: true,
    gemm_bias: GemmBias::Int32,
    scales_behind_split: false,
    int4_weights: true,
    no_matmulnbits: None,
    ragged_groups: true,
    zero_points_of_groups: true,
    unsigned_blocks: true,
    bits_of_blocks: &[4, 8],
    quantizes_behind_blocks: true,
    int8_attention: false,
    int8_gather: true,
    gathers_blocks: true,
    nan_guard_stops_attention: false,
    pools_keep_channels: true,
    no_qoperator: None,
    saturates: true,
    newest_opset: 27,
    sources: &[
        Source {
            rules: "R2, R4",
            says: "uint8 activations by int8 weights; one uint8 Q may serve several Linears",
            document: MEASURED,
        },
        Source {
            rules: "R1, R3, R5",
            says: "they fuse to MatMulIntegerToFloat, and to QGemm with an int32 bias",
            document: MEASURED,
        },
        Source {
            rules: "R6",
            says: "output_dtype=INT8 beside an int8 zero point: no session",
            document: ORT_OUTPUT_DTYPE,
        },
        Source {
            rules: "before VNNI",
            says: "U8S8 products saturate on AVX2 and AVX512; weights of 7 bits (reduce_range) do not",
            document: ORT_QUANTIZATION,
        },
    ],
};

/// TensorRT and TensorRT-RTX.
pub(super) const TENSORRT: Profile = Profile {
    target: Target::Tensorrt,
    name: "tensorrt",
    runtimes: "TensorRT, TensorRT-RTX",
    symmetric: true,
    share_activations: true,
    gemm_bias: GemmBias::AsItWas,
    scales_behind_split: true,
    int4_weights: false,
    no_matmulnbits: Some("TensorRT has no such operator"),
    ragged_groups: false,
    zero_points_of_groups: false,
    unsigned_blocks: false,
    bits_of_blocks: &[4],
    quantizes_behind_blocks: false,
    int8_attention: true,
    int8_gather: false,
    gathers_blocks: false,
    nan_guard_stops_attention: true,
    pools_keep_channels: true,
    no_qoperator: Some("TensorRT's parser rejects QLinearMatMul"),
    saturates: false,
    newest_opset: 27,
    sources: &[
        Source {
            rules: "T1, T2",
            says: "symmetric: signed INT8, every zero point 0, scales positive",
            document: TRT_QUANTIZE,
        },
        Source {
            rules: "T1",
            says: "of the integers only int8 and int4: a bias stays in float",
            document: TRT_DEQUANTIZE,
        },
        Source {
            rules: "T3, T5, T9",
            says: "activations per tensor, weights per channel; weights stored in int8 or as float before a Q",
            document: TRT_EXPLICIT,
        },
        Source {
            rules: "T7",
            says: "int8 fused attention: Q/DQ on q, k, v and on the softmax",
            document: TRT_ATTENTION,
        },
        Source {
            rules: "T1",
            says: "int4 is for weight-only quantization",
            document: TRT_TYPES,
        },
        Source {
            rules: "T1, T3, T5",
            says: "INT4 before a Cast cannot be built; what an engine for SM86 multiplies in int8",
            document: MEASURED,
        },
    ],
};

/// OpenVINO.
pub(super) const OPENVINO: Profile = Profile {
    target: Target::Openvino,
    name: "openvino",
    runtimes: "OpenVINO",
    symmetric: true,
    share_activations: true,
    gemm_bias: GemmBias::AsItWas,
    scales_behind_split: false,
    int4_weights: true,
    no_matmulnbits: None,
    ragged_groups: false,
    zero_points_of_groups: true,
    unsigned_blocks: true,
    bits_of_blocks: &[4, 8],
    quantizes_behind_blocks: true,
    int8_attention: false,
    int8_gather: true,
    gathers_blocks: false,
    nan_guard_stops_attention: true,
    pools_keep_channels: false,
    no_qoperator: Some("OpenVINO fails to convert QLinearMatMul"),
    saturates: true,
    newest_opset: 27,
    sources: &[
        Source {
            rules: "int8",
            says: "an operation with both inputs quantized runs in 8 bits",
            document: OV_INT8,
        },
        Source {
            rules: "before VNNI",
            says: "products saturate on SSE, AVX2 and AVX512; 7 bits for weights",
            document: OV_SATURATION,
        },
        Source {
            rules: "int8",
            says: "every FullyConnected runs in i8: Q shared or not, a bias in any form, INT4 behind a Cast",
            document: MEASURED,
        },
        Source {
            rules: "pools",
            says: "a value per channel behind a Reduce without kept axes, and then a Q: wrong results",
            document: POOLS,
        },
    ],
};

/// One file for all of them.
pub(super) const PORTABLE: Profile = Profile {
    target: Target::Portable,
    name: "portable",
    runtimes: "ONNX Runtime, TensorRT, OpenVINO",
    // TensorRT reads uint8 as int8 (T2).
    symmetric: true,
    // ONNX Runtime leaves half of the MatMuls in float behind a shared int8 Q (R4); TensorRT merges the copies (T9).
    share_activations: false,
    // TensorRT rejects int32 (T1); ONNX Runtime leaves a Gemm with a float bias in float (R5).
    gemm_bias: GemmBias::SeparateAdd,
    scales_behind_split: true,
    int4_weights: false,
    no_matmulnbits: Some("TensorRT has no such operator"),
    ragged_groups: false,
    zero_points_of_groups: false,
    unsigned_blocks: false,
    bits_of_blocks: &[4],
    quantizes_behind_blocks: false,
    int8_attention: false,
    int8_gather: false,
    gathers_blocks: false,
    nan_guard_stops_attention: false,
    pools_keep_channels: false,
    no_qoperator: Some("TensorRT rejects QLinearMatMul and OpenVINO fails to convert it"),
    saturates: true,
    newest_opset: 27,
    sources: &[
        Source {
            rules: "R4",
            says: "int8 activations fuse only with one DequantizeLinear per QuantizeLinear",
            document: MEASURED,
        },
        Source {
            rules: "R5, T1",
            says: "a Gemm with float bias stays in float, one with int32 bias is rejected: an Add behind it",
            document: MEASURED,
        },
        Source {
            rules: "R6",
            says: "int8 Q/DQ at every operator set, as long as output_dtype is not written",
            document: ORT_OUTPUT_DTYPE,
        },
    ],
};

/// All profiles as a table in Markdown, and the list of what each rests on.
pub fn markdown() -> String {
    let profiles = Target::ALL.map(Target::profile);
    let mut out = String::new();
    let mut row = |title: &str, cell: &dyn Fn(&Profile) -> String| {
        let cells: Vec<String> = profiles.iter().map(cell).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "| {title} | {} |", cells.join(" | "));
    };
    row("`--target`", &|p| format!("`{}`", p.name));
    row("---", &|_| "---".to_owned());
    row("runs on", &|p| p.runtimes.to_owned());
    row("activations, one constant scale per tensor", &|p| {
        let form = if p.symmetric {
            "int8, zero point 0"
        } else {
            "uint8, any zero point"
        };
        form.to_owned()
    });
    row("weights, per output channel or per tensor", &|_| {
        "int8, zero point 0".to_owned()
    });
    row("Linears with the same input", &|p| {
        let form = if p.share_activations {
            "share one Q → DQ"
        } else {
            "a Q → DQ each"
        };
        form.to_owned()
    });
    row("bias", &|p| {
        let form = match p.gemm_bias {
            GemmBias::Int32 => "rank 2: int32 in a Gemm; else float, [1, N]",
            GemmBias::SeparateAdd => "float, an Add behind the product",
            GemmBias::AsItWas => "float, where it was",
        };
        form.to_owned()
    });
    let yes_or_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    row("weight scales behind a product that is split", &|p| {
        yes_or_no(p.scales_behind_split)
    });
    row("weights of ≤ 4 bits as INT4", &|p| {
        if p.int4_weights {
            "from opset 21 on"
        } else {
            "no"
        }
        .to_owned()
    });
    row("float16, bfloat16", &|_| "float32 between Casts".to_owned());
    row("products of attention", &|p| {
        if p.int8_attention { "int8" } else { "float" }.to_owned()
    });
    row("`--embeddings int8`", &|p| yes_or_no(p.int8_gather));
    row("a Mul behind a pool without kept axes", &|p| {
        yes_or_no(p.pools_keep_channels)
    });
    row("`--format qoperator`", &|p| {
        yes_or_no(p.no_qoperator.is_none())
    });
    row("`--reduce-range` has a use", &|p| yes_or_no(p.saturates));
    row("operator sets", &|p| {
        format!("{MIN_OPSET} to {}", p.newest_opset)
    });
    for profile in &profiles {
        for source in profile.sources {
            let (rules, says, document) = (source.rules, source.says, source.document);
            let line = format!(
                "- `{}` {rules}: {says} ([source]({document}))",
                profile.name
            );
            let _ = write!(out, "\n{line}");
        }
    }
    out.push('\n');
    out
}
