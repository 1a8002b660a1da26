//! What changed in every operator of the standard domain, up to version 28 of the operator set.
//!
//! The facts are those of the ONNX operator change log. A version without a rule was read and found compatible: a node
//! that was valid before means the same in the new version (types were added, negative axes or broadcasting allowed,
//! an attribute or input added whose default is the old behaviour, or the text reworded).
//!
//! Texts that differ without a change of meaning: the output sizes of AveragePool 11 and 19 and MaxPool 12
//! (`ceil((n - k + 1) / s)` is `floor((n - k) / s) + 1`), OneHot 11 (gives a meaning to negative indices, which
//! version 9 forbids) and ReduceSum 13 and the others 18 with `noop_with_empty_axes = 0`.

use super::convert::*;
use crate::onnx::op;

/// The last version that this table describes. [`super::raise`] goes to [`super::NEWEST_TARGET`] at most.
pub const NEWEST: i64 = 28;

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
    /// The later versions, from 8 to [`NEWEST`], in which its definition changed.
    pub changed: &'static [i64],
    /// The changes that are not compatible.
    pub rules: &'static [(i64, Rule)],
    /// `true` for an operator that a runtime has in versions in which ONNX has none of that name.
    pub of_runtime: bool,
}

impl Operator {
    const fn with(mut self, rules: &'static [(i64, Rule)]) -> Self {
        self.rules = rules;
        self
    }

    /// ONNX Runtime's optimizer writes its fused norms into the standard domain of models of any version, and reads
    /// them there with one and the same meaning; LayerNormalization became ONNX's in version 17.
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

/// The history of one operator of the standard domain, if it exists in version [`NEWEST`] or existed before.
pub fn operator(name: &str) -> Option<&'static Operator> {
    OPERATORS
        .binary_search_by(|o| o.name.cmp(name))
        .ok()
        .map(|i| &OPERATORS[i])
}

const SCAN_8: &str =
    "version 8 runs over a batch axis and takes sequence lengths, version 9 does neither";

const ATTENTION_24: &str = "what `is_causal` means beside a mask was defined anew";

const LOG_SUM_28: &str = "version 28 takes no integers";

use Rule::{Convert, Refuse};

/// Every operator of the standard domain that exists in version [`NEWEST`] or existed before, by name.
pub const OPERATORS: &[Operator] = &[
    op(op::Abs, 1, &[13]),
    op(op::Acos, 7, &[22]),
    op(op::Acosh, 9, &[22]),
    op(op::Add, 1, &[13, 14]),
    op(op::AffineGrid, 20, &[]),
    op(op::And, 1, &[]),
    op(op::ArgMax, 1, &[11, 12, 13]),
    op(op::ArgMin, 1, &[11, 12, 13]),
    op(op::Asin, 7, &[22]),
    op(op::Asinh, 9, &[22]),
    op(op::Atan, 7, &[22]),
    op(op::Atanh, 9, &[22]),
    op(op::Attention, 23, &[24, 25]).with(&[(24, Refuse(ATTENTION_24))]),
    op(op::AveragePool, 1, &[10, 11, 19, 22]),
    op(op::BatchNormalization, 1, &[9, 14, 15]).with(&[
        (9, Convert(batch_normalization)),
        (14, Convert(batch_normalization_outputs)),
    ]),
    op(op::Bernoulli, 15, &[22]),
    op(op::BitCast, 26, &[]),
    op(op::BitShift, 11, &[28]),
    op(op::BitwiseAnd, 18, &[]),
    op(op::BitwiseNot, 18, &[]),
    op(op::BitwiseOr, 18, &[]),
    op(op::BitwiseXor, 18, &[]),
    op(op::BlackmanWindow, 17, &[]),
    op(op::Cast, 1, &[9, 13, 19, 21, 23, 24, 25, 28]),
    op(op::CastLike, 15, &[19, 21, 23, 24, 25]),
    op(op::CausalConvWithState, 27, &[]),
    op(op::Ceil, 1, &[13]),
    op(op::Celu, 12, &[28]),
    op(op::CenterCropPad, 18, &[]),
    op(op::Clip, 1, &[11, 12, 13]).with(&[(11, Convert(clip))]),
    op(op::Col2Im, 18, &[]),
    op(op::Compress, 9, &[11, 28]),
    op(op::Concat, 1, &[11, 13]),
    op(op::ConcatFromSequence, 11, &[]),
    op(op::Constant, 1, &[9, 11, 12, 13, 19, 21, 23, 24, 25]),
    op(op::ConstantOfShape, 9, &[20, 21, 23, 24, 25]),
    op(op::Conv, 1, &[11, 22]),
    op(op::ConvInteger, 10, &[]),
    op(op::ConvTranspose, 1, &[11, 22]).with(&[(11, Convert(conv_transpose))]),
    op(op::Cos, 7, &[22]),
    op(op::Cosh, 9, &[22]),
    op(op::CumProd, 26, &[]),
    op(op::CumSum, 11, &[14]),
    op(op::DFT, 17, &[20]).with(&[(20, Convert(dft))]),
    op(op::DeformConv, 19, &[22]),
    op(op::DepthToSpace, 1, &[11, 13, 28]),
    op(op::DequantizeLinear, 10, &[13, 19, 21, 23, 24, 25, 28]),
    op(op::Det, 11, &[22]),
    op(op::Div, 1, &[13, 14]),
    op(op::Dropout, 1, &[10, 12, 13, 22])
        .with(&[(10, Convert(dropout_mask)), (12, Convert(dropout))]),
    op(op::DynamicQuantizeLinear, 11, &[]),
    op(op::Einsum, 12, &[28]),
    op(op::Elu, 1, &[22]),
    op(op::Equal, 1, &[11, 13, 19]),
    op(op::Erf, 9, &[13]).with(&[(13, Convert(erf))]),
    op(op::Exp, 1, &[13]),
    op(op::Expand, 8, &[13]),
    op(op::EyeLike, 9, &[22]),
    op(op::Flatten, 1, &[9, 11, 13, 21, 23, 24, 25]),
    op(op::Floor, 1, &[13]),
    op(op::GRU, 1, &[14, 22]),
    op(op::Gather, 1, &[11, 13]),
    op(op::GatherElements, 11, &[13]),
    op(op::GatherND, 11, &[12, 13]),
    op(op::Gelu, 20, &[]),
    op(op::Gemm, 1, &[9, 11, 13]),
    op(op::GlobalAveragePool, 1, &[22]),
    op(op::GlobalLpPool, 1, &[22]),
    op(op::GlobalMaxPool, 1, &[22]),
    op(op::Greater, 1, &[9, 13]),
    op(op::GreaterOrEqual, 12, &[16]),
    op(op::GridSample, 16, &[20, 22]).with(&[(20, Convert(grid_sample))]),
    op(op::GroupNormalization, 18, &[21]).with(&[(21, Convert(group_normalization))]),
    op(op::HammingWindow, 17, &[]),
    op(op::HannWindow, 17, &[]),
    op(op::HardSigmoid, 1, &[22]),
    op(op::HardSwish, 14, &[22]),
    op(op::Hardmax, 1, &[11, 13]).with(&[(13, Convert(softmax))]),
    op(op::Identity, 1, &[13, 14, 16, 19, 21, 23, 24, 25]),
    op(op::If, 1, &[11, 13, 16, 19, 21, 23, 24, 25]),
    op(op::ImageDecoder, 20, &[]),
    op(op::InstanceNormalization, 1, &[22]),
    op(op::IsInf, 10, &[20]),
    op(op::IsNaN, 9, &[13, 20]),
    op(op::LRN, 1, &[13]),
    op(op::LSTM, 1, &[14, 22]),
    op(op::LayerNormalization, 1, &[17])
        .with(&[(17, Convert(layer_normalization))])
        .runtime(),
    op(op::LeakyRelu, 1, &[16]),
    op(op::Less, 1, &[9, 13]),
    op(op::LessOrEqual, 12, &[16]),
    op(op::LinearAttention, 27, &[]),
    op(op::Log, 1, &[13]),
    op(op::LogSoftmax, 1, &[11, 13]).with(&[(13, Convert(softmax))]),
    op(op::Loop, 1, &[11, 13, 16, 19, 21, 23, 24, 25]),
    op(op::LpNormalization, 1, &[22]),
    op(op::LpPool, 1, &[11, 18, 22]),
    op(op::MatMul, 1, &[9, 13]),
    op(op::MatMulInteger, 10, &[]),
    op(op::Max, 1, &[8, 12, 13]),
    op(op::MaxPool, 1, &[8, 10, 11, 12, 22]),
    op(op::MaxRoiPool, 1, &[22]),
    op(op::MaxUnpool, 9, &[11, 22]),
    op(op::Mean, 1, &[8, 13]),
    op(op::MeanVarianceNormalization, 9, &[13]),
    op(op::MelWeightMatrix, 17, &[]),
    op(op::Min, 1, &[8, 12, 13]),
    op(op::Mish, 18, &[22]),
    op(op::Mod, 10, &[13, 28]),
    op(op::Mul, 1, &[13, 14]),
    op(op::Multinomial, 7, &[22]),
    op(op::Neg, 1, &[13]),
    op(op::NegativeLogLikelihoodLoss, 12, &[13, 22]),
    op(op::NonMaxSuppression, 10, &[11]),
    op(op::NonZero, 9, &[13]),
    op(op::Not, 1, &[]),
    op(op::OneHot, 9, &[11, 28]),
    op(op::Optional, 15, &[28]),
    op(op::OptionalGetElement, 15, &[18, 28]),
    op(op::OptionalHasElement, 15, &[18, 28]),
    op(op::Or, 1, &[]),
    op(op::PRelu, 1, &[9, 16]),
    op(op::Pad, 1, &[11, 13, 18, 19, 21, 23, 24, 25]).with(&[(11, Convert(pad))]),
    op(op::Pow, 1, &[12, 13, 15]),
    op(op::QLinearConv, 10, &[]),
    op(op::QLinearMatMul, 10, &[21]),
    op(op::QuantizeLinear, 10, &[13, 19, 21, 23, 24, 25, 28]),
    op(op::RMSNormalization, 23, &[]),
    op(op::RNN, 1, &[14, 22]),
    op(op::RandomNormal, 1, &[22]),
    op(op::RandomNormalLike, 1, &[22]),
    op(op::RandomUniform, 1, &[22]),
    op(op::RandomUniformLike, 1, &[22]),
    op(op::Range, 11, &[27]),
    op(op::Reciprocal, 1, &[13]),
    op(op::ReduceL1, 1, &[11, 13, 18]).with(&[(18, Convert(reduce))]),
    op(op::ReduceL2, 1, &[11, 13, 18]).with(&[(18, Convert(reduce))]),
    op(op::ReduceLogSum, 1, &[11, 13, 18, 28])
        .with(&[(18, Convert(reduce)), (28, Refuse(LOG_SUM_28))]),
    op(op::ReduceLogSumExp, 1, &[11, 13, 18, 28])
        .with(&[(18, Convert(reduce)), (28, Refuse(LOG_SUM_28))]),
    op(op::ReduceMax, 1, &[11, 12, 13, 18, 20]).with(&[(18, Convert(reduce))]),
    op(op::ReduceMean, 1, &[11, 13, 18]).with(&[(18, Convert(reduce))]),
    op(op::ReduceMin, 1, &[11, 12, 13, 18, 20]).with(&[(18, Convert(reduce))]),
    op(op::ReduceProd, 1, &[11, 13, 18]).with(&[(18, Convert(reduce))]),
    op(op::ReduceSum, 1, &[11, 13]).with(&[(13, Convert(reduce))]),
    op(op::ReduceSumSquare, 1, &[11, 13, 18]).with(&[(18, Convert(reduce))]),
    op(op::RegexFullMatch, 20, &[]),
    op(op::Relu, 1, &[13, 14]),
    op(op::Reshape, 1, &[13, 14, 19, 21, 23, 24, 25]),
    op(op::Resize, 10, &[11, 13, 18, 19])
        .with(&[(11, Convert(resize)), (13, Convert(resize_inputs))]),
    op(op::ReverseSequence, 10, &[28]),
    op(op::RoiAlign, 10, &[16, 22]).with(&[(16, Convert(roi_align))]),
    op(op::RotaryEmbedding, 23, &[]),
    op(op::Round, 11, &[22]),
    op(op::STFT, 17, &[]),
    op(op::Scan, 8, &[9, 11, 16, 19, 21, 23, 24, 25]).with(&[(9, Refuse(SCAN_8))]),
    op(op::Scatter, 9, &[11]).with(&[(11, Convert(scatter))]),
    op(op::ScatterElements, 11, &[13, 16, 18]),
    op(op::ScatterND, 11, &[13, 16, 18]),
    op(op::Selu, 1, &[22]),
    op(op::SequenceAt, 11, &[]),
    op(op::SequenceConstruct, 11, &[]),
    op(op::SequenceEmpty, 11, &[]),
    op(op::SequenceErase, 11, &[]),
    op(op::SequenceInsert, 11, &[]),
    op(op::SequenceLength, 11, &[]),
    op(op::SequenceMap, 17, &[]),
    op(op::Shape, 1, &[13, 15, 19, 21, 23, 24, 25]),
    op(op::Shrink, 9, &[]),
    op(op::Sigmoid, 1, &[13]),
    op(op::Sign, 9, &[13]),
    op(op::SimplifiedLayerNormalization, 1, &[]).runtime(),
    op(op::Sin, 7, &[22]),
    op(op::Sinh, 9, &[22]),
    op(op::Size, 1, &[13, 19, 21, 23, 24, 25]),
    op(op::Slice, 1, &[10, 11, 13]).with(&[(10, Convert(slice))]),
    op(op::Softmax, 1, &[11, 13]).with(&[(13, Convert(softmax))]),
    op(op::SoftmaxCrossEntropyLoss, 12, &[13]),
    op(op::Softplus, 1, &[22]),
    op(op::Softsign, 1, &[22]),
    op(op::SpaceToDepth, 1, &[13, 28]),
    op(op::Split, 1, &[11, 13, 18]).with(&[(13, Convert(split)), (18, Convert(split_outputs))]),
    op(op::SplitToSequence, 11, &[24]),
    op(op::Sqrt, 1, &[13]),
    op(op::Squeeze, 1, &[11, 13, 21, 23, 24, 25]).with(&[(13, Convert(squeeze))]),
    op(op::StringConcat, 20, &[]),
    op(op::StringNormalizer, 10, &[]),
    op(op::StringSplit, 20, &[]),
    op(op::Sub, 1, &[13, 14]),
    op(op::Sum, 1, &[8, 13]),
    op(op::SwiGLU, 28, &[]),
    op(op::Swish, 24, &[]),
    op(op::Tan, 7, &[22]),
    op(op::Tanh, 1, &[13]),
    op(op::TensorScatter, 24, &[]),
    op(op::TfIdfVectorizer, 9, &[]),
    op(op::ThresholdedRelu, 10, &[22]),
    op(op::Tile, 1, &[13]),
    op(op::TopK, 1, &[10, 11, 24]).with(&[(10, Convert(top_k))]),
    op(op::Transpose, 1, &[13, 21, 23, 24, 25]),
    op(op::Trilu, 14, &[]),
    op(op::Unique, 11, &[28]),
    op(op::Unsqueeze, 1, &[11, 13, 21, 23, 24, 25]).with(&[(13, Convert(unsqueeze))]),
    op(op::Upsample, 1, &[9, 10]).with(&[(9, Convert(upsample_scales)), (10, Convert(upsample))]),
    op(op::Where, 9, &[16]),
    op(op::Xor, 1, &[]),
];
