//! What the tool sees in a model: its architecture, blocks, sites with their sinks, Linears, near misses, what is
//! quantized already; and with data, which channels stick out and what plain quantization would do.
//!
//! For a site `x: [T, C]` with the largest magnitude m_j of channel j over all tokens:
//!
//! ```text
//! largest = max_j m_j      median = median_j m_j      ratio = largest / median
//! asymmetry = |high + low| / (high − low)  of the largest channel: 0 is centred on zero, 1 lies on one side of it
//! ```
//!
//! An asymmetry is what a shift takes away, a ratio what a scale does (Outlier Suppression+, sections 3 and 4.1). The same
//! ratio over tokens in place of channels (`tokens`) is what no scale per channel takes away.

mod facts;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};

use super::Energy;
use super::account::sink_of;
use super::quantized::{quantized_embeddings, quantized_linears};
use crate::calibrate::{ChannelStats, model_inputs};
use crate::graph::View;
use crate::onnx::op;
use crate::onnx::proto::{TensorProto, type_proto};
use crate::onnx::{DataType, Model};
use crate::recognise::{LinearForm, LinearId, Recognised, is_attention, rotation_part};
use crate::site::Site;
use crate::solve::{ActivationSpec, Fold, WeightSpec, damage};
pub use facts::{
    ANATOMY_SCHEMA, Anatomy, Architecture, BlockFacts, ChannelFacts, LinearFacts, ModelFacts,
    Outliers, PROVENANCE, Quantized, RotationFacts, SiteFacts, TokenFacts,
};
pub use tokens::Tokens;

/// What was recognised in a model, for [`anatomy`].
pub struct Subject<'a> {
    /// The model as it is in the file.
    pub original: &'a Model,
    /// The model in the form that was recognised.
    pub opened: &'a Model,
    /// What was recognised in it.
    pub found: &'a Recognised,
    /// Its sites.
    pub sites: &'a [Site],
    /// Shapes `[B, heads, S, S]` of the results of Softmaxes, as far as they are known.
    pub attention_shapes: &'a BTreeMap<String, Vec<usize>>,
    /// Statistics of the sites' values; empty without data.
    pub statistics: &'a BTreeMap<String, ChannelStats>,
    /// The largest tokens of the sites' values, and what ids they have; empty without data.
    pub tokens: &'a Tokens,
    /// How the damage is computed.
    pub bits: (ActivationSpec, WeightSpec),
}

/// Everything that is seen in a model, but near misses and notes that are known outside.
pub fn anatomy(subject: &Subject) -> Anatomy {
    let Subject {
        original,
        opened,
        found,
        ..
    } = *subject;
    let view = View::new(opened);
    let count = |op: &str| {
        let nodes = opened.graph().node.iter();
        nodes.filter(|n| n.op_type() == op).count()
    };
    let linears = found.linears.iter().map(|l| LinearFacts {
        name: l.name.clone(),
        op: match l.form {
            LinearForm::MatMul => op::MatMul,
            LinearForm::Gemm { .. } => op::Gemm,
        }
        .to_owned(),
        k: l.k,
        n: l.n,
        bias: l.bias.is_some() || l.odd_bias,
        dtype: l.dtype.as_str_name().to_owned(),
    });
    let quantized = Quantized {
        quantize_linear: count(op::QuantizeLinear),
        dequantize_linear: count(op::DequantizeLinear),
        dynamic_quantize_linear: count(op::DynamicQuantizeLinear),
        linears: quantized_linears(&view)
            .into_iter()
            .map(|(_, linear)| linear)
            .collect(),
        embeddings: quantized_embeddings(&view),
    };
    let names = found.linears.iter().map(|l| l.name.as_str());
    let names = names.chain(quantized.linears.iter().map(|l| l.name.as_str()));
    let metadata = original.proto.metadata_props.iter();
    let own = metadata.filter(|e| e.key().starts_with(PROVENANCE));
    let (activation, weight) = subject.bits;
    Anatomy {
        schema: ANATOMY_SCHEMA,
        model: model_facts(original),
        provenance: own
            .map(|e| (e.key().to_owned(), e.value().to_owned()))
            .collect(),
        architecture: architecture(subject, &view, names),
        linears: linears.collect(),
        sites: subject
            .sites
            .iter()
            .map(|site| site_facts(subject, &view, site))
            .collect(),
        bits: (activation.bits, weight.bits),
        rotations: rotations(&view),
        quantized,
        ..Anatomy::default()
    }
}

fn rotations(view: &View) -> Vec<RotationFacts> {
    let part = |(node, _)| Some((node, rotation_part(view, node)?));
    let parts = view.nodes().filter_map(part);
    let whole = parts.filter(|(node, rotation)| *node == rotation.inner);
    let facts = whole.map(|(node, rotation)| RotationFacts {
        name: view.node_name(node).to_owned(),
        factors: rotation.factors,
        blocks: rotation.outer.is_none(),
    });
    facts.collect()
}

impl Anatomy {
    /// The sites in the order of the damage, worst first; those without data keep their order.
    pub fn worst_sites(&self) -> Vec<&SiteFacts> {
        let db = |s: &SiteFacts| s.damage.map_or(f64::INFINITY, |d| d.sqnr_db());
        let mut sites: Vec<&SiteFacts> = self.sites.iter().collect();
        sites.sort_by(|a, b| db(a).total_cmp(&db(b)));
        sites
    }
}

fn model_facts(model: &Model) -> ModelFacts {
    let (proto, graph) = (&model.proto, model.graph());
    let mut operators: BTreeMap<String, usize> = BTreeMap::new();
    for node in &graph.node {
        let name = match node.domain() {
            "" | "ai.onnx" => node.op_type().to_owned(),
            domain => format!("{domain}.{}", node.op_type()),
        };
        *operators.entry(name).or_default() += 1;
    }
    let mut types: BTreeMap<String, u64> = BTreeMap::new();
    let mut parameters = 0;
    for tensor in &graph.initializer {
        let elements = elements(tensor);
        parameters += elements;
        let dtype = DataType::try_from(tensor.data_type()).unwrap_or_default();
        *types.entry(dtype.as_str_name().to_owned()).or_default() += bytes(dtype, elements);
    }
    let by_size = |list: BTreeMap<String, u64>| {
        let mut list: Vec<_> = list.into_iter().collect();
        list.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        list
    };
    let operators = operators.into_iter().map(|(op, n)| (op, n as u64));
    let operators = by_size(operators.collect()).into_iter();
    let outputs = graph.output.iter().map(|o| {
        let tensor = o.r#type.as_ref().and_then(|t| t.value.as_ref());
        match tensor {
            Some(type_proto::Value::TensorType(t)) => {
                let dtype = DataType::try_from(t.elem_type()).unwrap_or_default();
                format!("{}: {}", o.name(), crate::calibrate::type_name(dtype))
            }
            _ => o.name().to_owned(),
        }
    });
    let inputs = model_inputs(model).unwrap_or_default();
    ModelFacts {
        ir_version: proto.ir_version(),
        opsets: proto
            .opset_import
            .iter()
            .map(|o| (o.domain().to_owned(), o.version()))
            .collect(),
        producer: format!("{} {}", proto.producer_name(), proto.producer_version())
            .trim()
            .to_owned(),
        inputs: inputs.iter().map(ToString::to_string).collect(),
        outputs: outputs.collect(),
        nodes: graph.node.len(),
        functions: proto.functions.len(),
        operators: operators.map(|(op, n)| (op, n as usize)).collect(),
        parameters,
        weight_bytes: by_size(types),
    }
}

fn elements(tensor: &TensorProto) -> u64 {
    tensor.dims.iter().map(|&d| d.max(0) as u64).product()
}

/// Bytes of so many elements; types that have none of their own (strings) count nothing.
fn bytes(dtype: DataType, elements: u64) -> u64 {
    match dtype {
        DataType::Int4 | DataType::Uint4 => elements.div_ceil(2),
        DataType::Double | DataType::Int64 | DataType::Uint64 => 8 * elements,
        DataType::Float | DataType::Int32 | DataType::Uint32 => 4 * elements,
        DataType::Float16 | DataType::Bfloat16 | DataType::Int16 | DataType::Uint16 => 2 * elements,
        DataType::String | DataType::Undefined => 0,
        _ => elements,
    }
}

fn architecture<'n>(
    subject: &Subject,
    view: &View,
    names: impl Iterator<Item = &'n str>,
) -> Architecture {
    let mut norms: BTreeMap<String, usize> = BTreeMap::new();
    for norm in &subject.found.norms {
        *norms.entry(norm.kind.op_type().to_owned()).or_default() += 1;
    }
    let mut heads = Vec::new();
    let mut attentions = 0;
    for (id, node) in view.nodes() {
        let is_operator = node.op_type().contains(op::Attention);
        let is_softmax = node.op_type() == op::Softmax && is_attention(view, id);
        if !is_operator && !is_softmax {
            continue;
        }
        attentions += 1;
        let stated = ["num_heads", "q_num_heads"].into_iter();
        let stated = stated
            .filter_map(|a| crate::onnx::node::attr_i(node, a))
            .next();
        let shape = node
            .output
            .first()
            .and_then(|o| subject.attention_shapes.get(o));
        let measured = shape.filter(|s| s.len() == 4).map(|s| s[1]);
        heads.extend(stated.and_then(|h| usize::try_from(h).ok()).or(measured));
    }
    Architecture {
        norms,
        attentions,
        hidden: most_common(subject.found.norms.iter().map(|n| n.channels)),
        heads: most_common(heads.into_iter()),
        blocks: blocks(names),
    }
}

/// The most frequent number; of equally frequent ones the largest.
fn most_common(numbers: impl Iterator<Item = usize>) -> Option<usize> {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    numbers.for_each(|n| *counts.entry(n).or_default() += 1);
    counts
        .into_iter()
        .max_by_key(|&(n, count)| (count, n))
        .map(|(n, _)| n)
}

/// What is numbered in names: of "/encoder/layer.3/attention/MatMul" it is 3 of "encoder/layer". Where several parts are
/// numbers, it is the first that differs among the names ("/model/model.0/encoder/layer.3/MatMul"). A name without a
/// number, and a number that occurs in one Linear only (as in "MatMul_7"), belong to no block.
fn blocks<'n>(names: impl Iterator<Item = &'n str>) -> Vec<BlockFacts> {
    let numbered: Vec<Vec<(String, u64)>> = names.map(numbered_parts).collect();
    let mut seen: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for (prefix, number) in numbered.iter().flatten() {
        seen.entry(prefix).or_default().insert(*number);
    }
    let mut numbers: BTreeMap<String, BTreeMap<u64, usize>> = BTreeMap::new();
    for parts in &numbered {
        let differs = parts
            .iter()
            .find(|(prefix, _)| seen[prefix.as_str()].len() > 1);
        if let Some((prefix, number)) = differs.or(parts.first()) {
            let of_prefix = numbers.entry(prefix.clone()).or_default();
            *of_prefix.entry(*number).or_default() += 1;
        }
    }
    let mut blocks: Vec<BlockFacts> = numbers
        .into_iter()
        .filter(|(_, numbers)| numbers.values().any(|&linears| linears > 1))
        .map(|(name, numbers)| BlockFacts {
            name,
            count: numbers.len(),
            linears: numbers.values().sum(),
        })
        .collect();
    blocks.sort_by_key(|b| std::cmp::Reverse(b.linears));
    blocks
}

/// Every number among the parts of a name, with what stands before it.
fn numbered_parts(name: &str) -> Vec<(String, u64)> {
    let mut before: Vec<&str> = Vec::new();
    let mut found = Vec::new();
    for part in name.split(['/', '.']).filter(|part| !part.is_empty()) {
        if let Ok(number) = part.parse::<u64>() {
            found.push((before.join("/"), number));
        }
        before.push(part);
    }
    found
}

fn site_facts(subject: &Subject, view: &View, site: &Site) -> SiteFacts {
    let found = subject.found;
    let (kind, sink, reason) = sink_of(found, site);
    let value = view.name(site.value);
    let stats = subject.statistics.get(value);
    let reason = match &site.sink {
        crate::site::Sink::Explicit(reason) => Some(reason.clone()),
        _ => reason,
    };
    let linears: BTreeSet<LinearId> = site.linears.iter().copied().collect();
    SiteFacts {
        value: value.to_owned(),
        kind: kind.to_owned(),
        sink,
        reason,
        shift: site.has_sink() && site.allow_shift,
        restore: site.restore,
        linears: linears
            .iter()
            .map(|&l| found.linears[l].name.clone())
            .collect(),
        outliers: stats.map(|stats| subject.tokens.explain(value, stats, outliers(stats))),
        damage: stats.and_then(|stats| site_damage(subject, view, site, stats)),
    }
}

fn site_damage(
    subject: &Subject,
    view: &View,
    site: &Site,
    stats: &ChannelStats,
) -> Option<Energy> {
    let folds = [0, 1].map(|i| Fold {
        min: &stats.folds[i].min,
        max: &stats.folds[i].max,
        sample: stats.folds[i].sample.view(),
        weights: None,
    });
    let (activation, weight) = &subject.bits;
    let mut total = Energy::default();
    for &l in &site.linears {
        let linear = &subject.found.linears[l];
        let w = linear.load_weight(view)?;
        if w.nrows() != stats.folds[0].sample.ncols() {
            return None;
        }
        let bias = linear.load_bias(view);
        let bias = bias.as_ref().map(|b| b.view());
        let (signal, error) = damage(&folds, w.view(), bias, (activation, weight));
        total.signal += signal;
        total.error += error;
    }
    Some(total)
}

/// How the channels of a value differ.
pub fn outliers(stats: &ChannelStats) -> Outliers {
    let [a, b] = &stats.folds;
    let ends = a.min.iter().zip(&b.min).zip(a.max.iter().zip(&b.max));
    let channels = ends
        .enumerate()
        .map(|(channel, ((a, b), (c, d)))| ChannelFacts {
            channel,
            min: a.min(*b),
            max: c.max(*d),
        });
    let mut channels: Vec<ChannelFacts> = channels.collect();
    let magnitude = |c: &ChannelFacts| c.min.abs().max(c.max.abs());
    let fold = |start: f32, pick: fn(f32, f32) -> f32, of: fn(&ChannelFacts) -> f32| {
        channels.iter().map(of).fold(start, pick)
    };
    let range = (
        fold(f32::INFINITY, f32::min, |c| c.min),
        fold(f32::NEG_INFINITY, f32::max, |c| c.max),
    );
    channels.sort_by(|a, b| magnitude(b).total_cmp(&magnitude(a)));
    let largest = channels.first().map_or(0.0, magnitude);
    let median = match channels.len() {
        0 => 0.0,
        n if n % 2 == 1 => magnitude(&channels[n / 2]),
        n => (magnitude(&channels[n / 2 - 1]) + magnitude(&channels[n / 2])) / 2.0,
    };
    let asymmetry = channels.first().map_or(0.0, |c| {
        let extent = c.max - c.min;
        match extent > 0.0 {
            // Beyond zero it is on one side, however far.
            true => ((c.max + c.min).abs() / extent).min(1.0),
            false => f32::from(largest > 0.0),
        }
    });
    channels.truncate(3);
    Outliers {
        range,
        largest,
        median,
        ratio: (median > 0.0).then(|| largest / median),
        asymmetry,
        channels,
        ..Outliers::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::FoldStats;
    use ndarray::Array2;

    fn stats(min: [&[f32]; 2], max: [&[f32]; 2]) -> ChannelStats {
        let fold = |i: usize| FoldStats {
            min: min[i].to_vec(),
            max: max[i].to_vec(),
            tokens: 1,
            sample: Array2::zeros((0, min[i].len())),
            places: Vec::new(),
            weights: None,
        };
        ChannelStats {
            rank: 3,
            folds: [fold(0), fold(1)],
        }
    }

    #[test]
    fn outliers_are_of_both_halves() {
        let o = outliers(&stats(
            [&[-1.0, 10.0, -2.0, 0.0], &[-3.0, 20.0, -1.0, 0.0]],
            [&[1.0, 40.0, 2.0, 0.5], &[1.0, 30.0, 4.0, 0.0]],
        ));
        assert_eq!(o.range, (-3.0, 40.0));
        assert_eq!((o.largest, o.median), (40.0, 3.5));
        assert_eq!(o.ratio, Some(40.0 / 3.5));
        // 10 to 40 never crosses zero.
        assert_eq!(o.asymmetry, 1.0);
        let order: Vec<usize> = o.channels.iter().map(|c| c.channel).collect();
        assert_eq!(order, [1, 2, 0]);
        assert_eq!((o.channels[0].min, o.channels[0].max), (10.0, 40.0));
    }

    #[test]
    fn a_centred_channel_has_no_asymmetry_and_silence_no_ratio() {
        let centred = outliers(&stats([&[-5.0], &[-4.0]], [&[5.0], &[3.0]]));
        assert_eq!(centred.asymmetry, 0.0);
        let silent = outliers(&stats(
            [&[0.0, 0.0], &[0.0, 0.0]],
            [&[0.0, 0.0], &[0.0, 0.0]],
        ));
        assert_eq!((silent.ratio, silent.asymmetry), (None, 0.0));
        let one = outliers(&stats([&[-6.0], &[-6.0]], [&[2.0], &[2.0]]));
        assert_eq!(one.asymmetry, 0.5);
    }

    #[test]
    fn blocks_are_what_is_numbered_in_names() {
        let names = [
            "/encoder/layer.0/attention/q/MatMul",
            "/encoder/layer.0/output/MatMul",
            "/encoder/layer.11/attention/q/MatMul",
            "model.layers.2.mlp.up",
            "model.layers.2.mlp.down",
            "/model/model.0/layer.1/q/MatMul",
            "/model/model.0/layer.1/k/MatMul",
            "/model/model.0/layer.2/q/MatMul",
            "/model/model.0/layer.2/k/MatMul",
            "pooler/dense/MatMul",
            "node/7",
        ];
        let found = blocks(names.into_iter());
        let block = |name: &str, count, linears| BlockFacts {
            name: name.to_owned(),
            count,
            linears,
        };
        assert_eq!(
            found,
            [
                block("model/model/0/layer", 2, 4),
                block("encoder/layer", 2, 3),
                block("model/layers", 1, 2)
            ]
        );
    }

    #[test]
    fn the_most_frequent_number_wins() {
        assert_eq!(most_common([12, 64, 12].into_iter()), Some(12));
        assert_eq!(most_common([4, 8].into_iter()), Some(8));
        assert_eq!(most_common([].into_iter()), None);
    }
}
