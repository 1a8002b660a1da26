//! Sites: where a per-channel affine x' = (x − z) / s can be applied, and who is touched by it.
//!
//! A site is a value read by Linears. Its *sink* is the place whose constants can take the affine for free; its
//! readers are split into those that absorb it (Linears: diag(s) W, b + z W) and those that need the value as
//! it was. Together they are all readers, subgraph captures and graph outputs included.

use crate::graph::{NodeId, Use, ValueId, View};
use crate::recognise::{Linear, NormKind, Passage, Recognised, passage};

/// The place whose constants take the affine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// γ' = γ / s, β' = (β − z) / s of `Recognised::norms[_]` (paper, section 4.1).
    Norm(usize),
    /// There is none, for this reason: the input is quantized as it is.
    None(String),
}

/// One value read by Linears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// x: the value whose last axis holds the channels.
    pub value: ValueId,
    /// Where the affine goes.
    pub sink: Sink,
    /// Indices into `Recognised::linears` of the readers that absorb the affine, in graph order.
    pub linears: Vec<usize>,
    /// The node inputs through which they read it: the Linear's own, or that of a Cast or Dropout before it.
    pub absorb: Vec<(NodeId, usize)>,
    /// Whether anything else reads the value and needs the exact inverse, x = x' s + z.
    pub restore: bool,
    /// Whether a shift is free here: the sink has a β (or can be given one), and every bias can take z W.
    pub allow_shift: bool,
}

impl Site {
    /// Whether the affine can be folded at all.
    pub fn has_sink(&self) -> bool {
        matches!(self.sink, Sink::Norm(_))
    }
}

/// Finds every site: first those behind norms, then the inputs of all remaining Linears, in graph order of their
/// first Linear. Every recognised Linear belongs to exactly one site.
pub fn find_sites(view: &View, found: &Recognised) -> Vec<Site> {
    let mut sites: Vec<Site> = Vec::new();
    let mut taken = vec![None::<usize>; found.linears.len()];
    let mut refused: Vec<(ValueId, String)> = Vec::new();
    for (index, norm) in found.norms.iter().enumerate() {
        let readers = readers(view, found, norm.output, norm.channels);
        if readers.linears.is_empty() {
            continue;
        }
        if readers.graph_output {
            let name = view.name(norm.output);
            refused.push((
                norm.output,
                format!("`{name}` is a graph output, which must stay as it is"),
            ));
            continue;
        }
        let fused_layer_norm = norm.fused && norm.kind == NormKind::Layer;
        let takes_shift = norm.beta.is_some() || fused_layer_norm;
        let biases_take_it = readers.linears.iter().all(|&l| !found.linears[l].odd_bias);
        for &l in &readers.linears {
            taken[l] = Some(sites.len());
        }
        sites.push(Site {
            value: norm.output,
            sink: Sink::Norm(index),
            linears: readers.linears,
            absorb: readers.absorb,
            restore: readers.others,
            allow_shift: takes_shift && biases_take_it,
        });
    }
    for (l, linear) in found.linears.iter().enumerate() {
        if taken[l].is_some() {
            continue;
        }
        taken[l] = Some(sites.len());
        let shared = sites.iter().position(|s| {
            !s.has_sink() && s.value == linear.input && {
                let first = &found.linears[s.linears[0]];
                first.channels_last() == linear.channels_last() && first.k == linear.k
            }
        });
        if let Some(site) = shared {
            sites[site].linears.push(l);
            sites[site].absorb.push((linear.node, 0));
            continue;
        }
        let reason = refused
            .iter()
            .find(|(value, _)| *value == linear.input)
            .map(|(_, reason)| reason.clone())
            .unwrap_or_else(|| no_sink(view, found, linear));
        sites.push(Site {
            value: linear.input,
            sink: Sink::None(reason),
            linears: vec![l],
            absorb: vec![(linear.node, 0)],
            restore: view.uses(linear.input).len() > 1,
            allow_shift: false,
        });
    }
    sites.sort_by_key(|s| s.linears[0]);
    sites
}

/// Why the input of a Linear has no sink.
fn no_sink(view: &View, found: &Recognised, linear: &Linear) -> String {
    if !linear.channels_last() {
        return "its channels are not on the last axis (Gemm with transA)".to_owned();
    }
    match view.producer(linear.input) {
        None => "it is a graph input".to_owned(),
        Some((node, _)) => {
            let op = view.node(node).op_type.as_deref().unwrap_or("?");
            match found.norms.iter().find(|n| n.output == linear.input) {
                Some(norm) => format!(
                    "`{}` has {} channels and the Linear {}",
                    norm.name, norm.channels, linear.k
                ),
                None => format!("it is computed by {op}, not by a normalization"),
            }
        }
    }
}

/// The readers of a value, seen through Identity, Dropout and Cast.
#[derive(Default)]
struct Readers {
    linears: Vec<usize>,
    absorb: Vec<(NodeId, usize)>,
    others: bool,
    graph_output: bool,
}

fn readers(view: &View, found: &Recognised, value: ValueId, channels: usize) -> Readers {
    let mut all = Readers::default();
    for reader in view.uses(value) {
        let Use::Node { node, input } = *reader else {
            all.graph_output |= matches!(reader, Use::GraphOutput(_));
            all.others = true;
            continue;
        };
        let linear = found
            .linears
            .iter()
            .position(|l| l.node == node && input == 0 && l.channels_last() && l.k == channels);
        if let Some(linear) = linear {
            all.linears.push(linear);
            all.absorb.push((node, input));
            continue;
        }
        let passed_on = match (passage(view, node), view.output(node, 0)) {
            (Some(passage), Some(output)) if input == 0 => {
                Some((passage, readers(view, found, output, channels)))
            }
            _ => None,
        };
        match passed_on {
            // Nothing but Linears behind it: it can carry x' in place of x.
            Some((_, behind)) if !behind.others && !behind.linears.is_empty() => {
                all.linears.extend(behind.linears);
                all.absorb.push((node, input));
            }
            // Others read it too, but it changes nothing: its Linears can read x' directly.
            Some((Passage::Same, behind)) => {
                all.linears.extend(behind.linears);
                all.absorb.extend(behind.absorb);
                all.others = true;
                all.graph_output |= behind.graph_output;
            }
            _ => all.others = true,
        }
    }
    all.linears.sort_unstable();
    all
}
