//! What changed in every operator of the standard domain, up to version 13 of the operator set.
//!
//! The facts are those of the ONNX operator change log. A version without a rule was read and found compatible: a node
//! that was valid before means the same in the new version (types were added, negative axes or broadcasting allowed,
//! an attribute or input added whose default is the old behaviour, or the text reworded).
//!
//! Three texts that differ without a change of meaning: the output sizes of AveragePool 11 and MaxPool 12
//! (`ceil((n - k + 1) / s)` is `floor((n - k) / s) + 1`), OneHot 11 (gives a meaning to negative indices, which
//! version 9 forbids) and ReduceSum 13 with `noop_with_empty_axes = 0`.

use super::convert::*;

/// The version that [`super::raise`] raises to: the last one this table describes.
pub const TARGET: i64 = 13;

/// What becomes of a node when its operator's definition changes.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// Rewrites the node into the form of the new version, or refuses.
    Convert(Conversion),
    /// No node can be raised, for this reason.
    Refuse(&'static str),
}

/// One operator's history.
#[derive(Clone, Copy, Debug)]
pub struct Operator {
    /// The name in `NodeProto.op_type`.
    pub name: &'static str,
    /// The version of the operator set in which it first appeared.
    pub first: i64,
    /// The later versions, from 8 to [`TARGET`], in which its definition changed.
    pub changed: &'static [i64],
    /// The changes that are not compatible.
    pub rules: &'static [(i64, Rule)],
    /// `true` for an operator of a runtime and not of ONNX.
    pub of_runtime: bool,
}

impl Operator {
    const fn with(mut self, rules: &'static [(i64, Rule)]) -> Self {
        self.rules = rules;
        self
    }

    /// ONNX Runtime's optimizer writes its fused norms into the standard domain of models of any version, and reads
    /// them there with one and the same meaning.
    const fn runtime(mut self) -> Self {
        self.of_runtime = true;
        self
    }
}

const fn op(name: &'static str, first: i64, changed: &'static [i64]) -> Operator {
    Operator {
        name,
        first,
        changed,
        rules: &[],
        of_runtime: false,
    }
}

/// The history of one operator of the standard domain, if it exists in version [`TARGET`] or existed before.
pub fn operator(name: &str) -> Option<&'static Operator> {
    OPERATORS
        .binary_search_by(|o| o.name.cmp(name))
        .ok()
        .map(|i| &OPERATORS[i])
}

const SCAN_8: &str =
    "version 8 runs over a batch axis and takes sequence lengths, version 9 does neither";

use Rule::{Convert, Refuse};

/// Every operator of the standard domain that exists in version [`TARGET`] or existed before, by name.
pub const OPERATORS: &[Operator] = &[
    op("Abs", 1, &[13]),
    op("Acos", 7, &[]),
    op("Acosh", 9, &[]),
    op("Add", 1, &[13]),
    op("And", 1, &[]),
    op("ArgMax", 1, &[11, 12, 13]),
    op("ArgMin", 1, &[11, 12, 13]),
    op("Asin", 7, &[]),
    op("Asinh", 9, &[]),
    op("Atan", 7, &[]),
    op("Atanh", 9, &[]),
    op("AveragePool", 1, &[10, 11]),
    op("BatchNormalization", 1, &[9]).with(&[(9, Convert(batch_normalization))]),
    op("BitShift", 11, &[]),
    op("Cast", 1, &[9, 13]),
    op("Ceil", 1, &[13]),
    op("Celu", 12, &[]),
    op("Clip", 1, &[11, 12, 13]).with(&[(11, Convert(clip))]),
    op("Compress", 9, &[11]),
    op("Concat", 1, &[11, 13]),
    op("ConcatFromSequence", 11, &[]),
    op("Constant", 1, &[9, 11, 12, 13]),
    op("ConstantOfShape", 9, &[]),
    op("Conv", 1, &[11]),
    op("ConvInteger", 10, &[]),
    op("ConvTranspose", 1, &[11]).with(&[(11, Convert(conv_transpose))]),
    op("Cos", 7, &[]),
    op("Cosh", 9, &[]),
    op("CumSum", 11, &[]),
    op("DepthToSpace", 1, &[11, 13]),
    op("DequantizeLinear", 10, &[13]),
    op("Det", 11, &[]),
    op("Div", 1, &[13]),
    op("Dropout", 1, &[10, 12, 13]).with(&[(10, Convert(dropout_mask)), (12, Convert(dropout))]),
    op("DynamicQuantizeLinear", 11, &[]),
    op("Einsum", 12, &[]),
    op("Elu", 1, &[]),
    op("Equal", 1, &[11, 13]),
    op("Erf", 9, &[13]).with(&[(13, Convert(erf))]),
    op("Exp", 1, &[13]),
    op("Expand", 8, &[13]),
    op("EyeLike", 9, &[]),
    op("Flatten", 1, &[9, 11, 13]),
    op("Floor", 1, &[13]),
    op("GRU", 1, &[]),
    op("Gather", 1, &[11, 13]),
    op("GatherElements", 11, &[13]),
    op("GatherND", 11, &[12, 13]),
    op("Gemm", 1, &[9, 11, 13]),
    op("GlobalAveragePool", 1, &[]),
    op("GlobalLpPool", 1, &[]),
    op("GlobalMaxPool", 1, &[]),
    op("Greater", 1, &[9, 13]),
    op("GreaterOrEqual", 12, &[]),
    op("HardSigmoid", 1, &[]),
    op("Hardmax", 1, &[11, 13]).with(&[(13, Convert(softmax))]),
    op("Identity", 1, &[13]),
    op("If", 1, &[11, 13]),
    op("InstanceNormalization", 1, &[]),
    op("IsInf", 10, &[]),
    op("IsNaN", 9, &[13]),
    op("LRN", 1, &[13]),
    op("LSTM", 1, &[]),
    op("LayerNormalization", 1, &[]).runtime(),
    op("LeakyRelu", 1, &[]),
    op("Less", 1, &[9, 13]),
    op("LessOrEqual", 12, &[]),
    op("Log", 1, &[13]),
    op("LogSoftmax", 1, &[11, 13]).with(&[(13, Convert(softmax))]),
    op("Loop", 1, &[11, 13]),
    op("LpNormalization", 1, &[]),
    op("LpPool", 1, &[11]),
    op("MatMul", 1, &[9, 13]),
    op("MatMulInteger", 10, &[]),
    op("Max", 1, &[8, 12, 13]),
    op("MaxPool", 1, &[8, 10, 11, 12]),
    op("MaxRoiPool", 1, &[]),
    op("MaxUnpool", 9, &[11]),
    op("Mean", 1, &[8, 13]),
    op("MeanVarianceNormalization", 9, &[13]),
    op("Min", 1, &[8, 12, 13]),
    op("Mod", 10, &[13]),
    op("Mul", 1, &[13]),
    op("Multinomial", 7, &[]),
    op("Neg", 1, &[13]),
    op("NegativeLogLikelihoodLoss", 12, &[13]),
    op("NonMaxSuppression", 10, &[11]),
    op("NonZero", 9, &[13]),
    op("Not", 1, &[]),
    op("OneHot", 9, &[11]),
    op("Or", 1, &[]),
    op("PRelu", 1, &[9]),
    op("Pad", 1, &[11, 13]).with(&[(11, Convert(pad))]),
    op("Pow", 1, &[12, 13]),
    op("QLinearConv", 10, &[]),
    op("QLinearMatMul", 10, &[]),
    op("QuantizeLinear", 10, &[13]),
    op("RNN", 1, &[]),
    op("RandomNormal", 1, &[]),
    op("RandomNormalLike", 1, &[]),
    op("RandomUniform", 1, &[]),
    op("RandomUniformLike", 1, &[]),
    op("Range", 11, &[]),
    op("Reciprocal", 1, &[13]),
    op("ReduceL1", 1, &[11, 13]),
    op("ReduceL2", 1, &[11, 13]),
    op("ReduceLogSum", 1, &[11, 13]),
    op("ReduceLogSumExp", 1, &[11, 13]),
    op("ReduceMax", 1, &[11, 12, 13]),
    op("ReduceMean", 1, &[11, 13]),
    op("ReduceMin", 1, &[11, 12, 13]),
    op("ReduceProd", 1, &[11, 13]),
    op("ReduceSum", 1, &[11, 13]).with(&[(13, Convert(reduce_sum))]),
    op("ReduceSumSquare", 1, &[11, 13]),
    op("Relu", 1, &[13]),
    op("Reshape", 1, &[13]),
    op("Resize", 10, &[11, 13]).with(&[(11, Convert(resize)), (13, Convert(resize_inputs))]),
    op("ReverseSequence", 10, &[]),
    op("RoiAlign", 10, &[]),
    op("Round", 11, &[]),
    op("Scan", 8, &[9, 11]).with(&[(9, Refuse(SCAN_8))]),
    op("Scatter", 9, &[11]).with(&[(11, Convert(scatter))]),
    op("ScatterElements", 11, &[13]),
    op("ScatterND", 11, &[13]),
    op("Selu", 1, &[]),
    op("SequenceAt", 11, &[]),
    op("SequenceConstruct", 11, &[]),
    op("SequenceEmpty", 11, &[]),
    op("SequenceErase", 11, &[]),
    op("SequenceInsert", 11, &[]),
    op("SequenceLength", 11, &[]),
    op("Shape", 1, &[13]),
    op("Shrink", 9, &[]),
    op("Sigmoid", 1, &[13]),
    op("Sign", 9, &[13]),
    op("SimplifiedLayerNormalization", 1, &[]).runtime(),
    op("Sin", 7, &[]),
    op("Sinh", 9, &[]),
    op("Size", 1, &[13]),
    op("Slice", 1, &[10, 11, 13]).with(&[(10, Convert(slice))]),
    op("Softmax", 1, &[11, 13]).with(&[(13, Convert(softmax))]),
    op("SoftmaxCrossEntropyLoss", 12, &[13]),
    op("Softplus", 1, &[]),
    op("Softsign", 1, &[]),
    op("SpaceToDepth", 1, &[13]),
    op("Split", 1, &[11, 13]).with(&[(13, Convert(split))]),
    op("SplitToSequence", 11, &[]),
    op("Sqrt", 1, &[13]),
    op("Squeeze", 1, &[11, 13]).with(&[(13, Convert(squeeze))]),
    op("StringNormalizer", 10, &[]),
    op("Sub", 1, &[13]),
    op("Sum", 1, &[8, 13]),
    op("Tan", 7, &[]),
    op("Tanh", 1, &[13]),
    op("TfIdfVectorizer", 9, &[]),
    op("ThresholdedRelu", 10, &[]),
    op("Tile", 1, &[13]),
    op("TopK", 1, &[10, 11]).with(&[(10, Convert(top_k))]),
    op("Transpose", 1, &[13]),
    op("Unique", 11, &[]),
    op("Unsqueeze", 1, &[11, 13]).with(&[(13, Convert(unsqueeze))]),
    op("Upsample", 1, &[9, 10]).with(&[(9, Convert(upsample_scales)), (10, Convert(upsample))]),
    op("Where", 9, &[]),
    op("Xor", 1, &[]),
];
