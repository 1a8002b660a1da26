//! Sites: where a per-channel affine x' = (x − z) / s can be applied, and who is touched by it.
//!
//! A site is a value read by Linears. Its *sink* is the place whose constants can take the affine for free; its
//! readers are split into those that absorb it (Linears: diag(s) W, b + z W) and those that need the value as
//! it was. Together they are all readers, subgraph captures and graph outputs included.

mod compound;
mod contrib;
mod heads;
mod labels;
mod reduce;
mod reorder;
mod response;
mod rules;
mod sizes;
mod stream;
mod trace;

use crate::graph::{NodeId, Use, ValueId, View};
use crate::onnx::node::attr_ints;
use crate::onnx::op;
use crate::recognise::{Linear, LinearForm, LinearId, NormId, Passage, Recognised, passage};

pub use reorder::Columns;
pub use response::{Response, ResponseKind, response};
pub use stream::{behind, normed_stream};
pub use trace::{Fold, Place, Shapes, Trace};

/// The place whose constants take the affine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// γ' = γ / s, β' = (β − z) / s of `Recognised::norms[_]` (paper, section 4.1).
    Norm(NormId),
    /// Constants further back, reached through operators that the affine commutes with.
    Traced(Trace),
    /// No constant can be reached, for this reason: one Mul on the way to the Linears alone. It costs run time.
    Explicit(String),
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
    /// The readers that absorb the affine, in graph order.
    pub linears: Vec<LinearId>,
    /// The node inputs through which they read it: the Linear's own, or that of a Cast or Dropout before it.
    pub absorb: Vec<(NodeId, usize)>,
    /// Reshapes and Transposes that something besides Linears reads: a copy of each hands x' to these node inputs, the node
    /// itself stays with the value as it was.
    pub copies: Vec<(NodeId, Vec<(NodeId, usize)>)>,
    /// Per entry of `linears`, the rank of what it reads where a Reshape makes it another one than that of `value`.
    pub ranks: Vec<Option<usize>>,
    /// Whether anything else reads the value and needs the exact inverse, x = x' s + z.
    pub restore: bool,
    /// Whether a shift is free here: the sink has a β (or can be given one), and every bias can take z W.
    pub allow_shift: bool,
    /// D, where R may mix the D channels of every head, and folds like a scale.
    pub mixable: Option<usize>,
    /// The Linears whose columns, each from its first on, are the channels, if those may stand in any order.
    pub reorder: Vec<Columns>,
}

impl Site {
    /// Whether a scale may be negative where it is folded: everywhere but before a Relu.
    pub fn allow_signs(&self) -> bool {
        !matches!(&self.sink, Sink::Traced(trace) if trace.positive)
    }

    /// Whether the affine can be folded at all.
    pub fn has_sink(&self) -> bool {
        !matches!(self.sink, Sink::None(_))
    }
}

/// The names of the values whose shapes [`find_sites`] can use: those between Linear inputs and what produces them.
pub fn wanted_shapes(view: &View, found: &Recognised) -> Vec<String> {
    let behind_norm = |l: &&Linear| !found.norms.iter().any(|n| n.output == l.input);
    let mut values: Vec<ValueId> = found
        .linears
        .iter()
        .filter(|l| l.channels_last())
        .filter(behind_norm)
        .flat_map(|l| trace::values_on_the_way(view, found, l.input))
        .collect();
    values.sort_unstable();
    values.dedup();
    values
        .into_iter()
        .map(|v| view.name(v).to_owned())
        .collect()
}

/// Finds every site: first those behind norms, then the inputs of all remaining Linears, in graph order of their
/// first Linear. Every recognised Linear belongs to exactly one site.
///
/// `shapes` are those of one run, for the values of [`wanted_shapes`]; a value without a shape has no traced sink.
/// `extra_nodes` allows explicit ones.
pub fn find_sites(
    view: &View,
    found: &Recognised,
    shapes: &Shapes,
    extra_nodes: bool,
) -> Vec<Site> {
    let mut sites: Vec<Site> = Vec::new();
    let mut taken = oxc_index::index_vec![false; found.linears.len()];
    let mut refused: Vec<(ValueId, String)> = Vec::new();
    for (index, norm) in found.norms.iter_enumerated() {
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
        let takes_shift = norm.beta.is_some() || norm.beta_slot.is_some();
        for &(l, _) in &readers.linears {
            taken[l] = true;
        }
        let (linears, ranks): (Vec<LinearId>, _) = readers.linears.into_iter().unzip();
        sites.push(Site {
            value: norm.output,
            sink: Sink::Norm(index),
            allow_shift: takes_shift && biases_take_shift(found, &linears),
            linears,
            absorb: readers.absorb,
            copies: readers.copies,
            ranks,
            restore: readers.others,
            mixable: None,
            reorder: Vec::new(),
        });
    }
    for (l, linear) in found.linears.iter_enumerated() {
        if taken[l] {
            continue;
        }
        let shared = sites.iter().position(|s| {
            !s.has_sink() && s.value == linear.input && {
                let first = &found.linears[s.linears[0]];
                first.channels_last() == linear.channels_last() && first.k == linear.k
            }
        });
        if let Some(site) = shared {
            sites[site].linears.push(l);
            sites[site].absorb.push((linear.node, 0));
            sites[site].ranks.push(None);
            continue;
        }
        sites.push(Site {
            value: linear.input,
            sink: Sink::None(String::new()),
            linears: vec![l],
            absorb: vec![(linear.node, 0)],
            copies: Vec::new(),
            ranks: vec![None],
            restore: false,
            allow_shift: false,
            mixable: None,
            reorder: Vec::new(),
        });
    }
    for site in sites.iter_mut().filter(|s| !s.has_sink()) {
        let linear = &found.linears[site.linears[0]];
        let refusal = refused.iter().find(|(value, _)| *value == linear.input);
        let traced = match refusal {
            Some((_, reason)) => Err(reason.clone()),
            None => reach(view, found, shapes, site),
        };
        if linear.channels_last() {
            site.reorder = reorder::reorderable(view, found, site.value, &site.absorb, linear.k);
        }
        match traced {
            Ok(trace) => {
                site.allow_shift = trace.allow_shift && biases_take_shift(found, &site.linears);
                let readers = users(&site.absorb);
                site.mixable = heads::mixable(view, found, shapes, site.value, &readers, &trace);
                site.sink = Sink::Traced(trace);
            }
            Err(reason) if extra_nodes && linear.channels_last() => {
                site.sink = Sink::Explicit(reason);
            }
            Err(reason) => site.sink = Sink::None(reason),
        }
    }
    sites.sort_by_key(|s| s.linears[0]);
    sites
}

/// Whether every one of these Linears has room for z W in its bias.
fn biases_take_shift(found: &Recognised, linears: &[LinearId]) -> bool {
    linears.iter().all(|&l| !found.linears[l].odd_bias)
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
            if let Some(miss) = found.near_misses.iter().find(|m| m.node == node) {
                return format!("`{}` is not folded: {}", miss.name, miss.reason);
            }
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

/// Node inputs as uses of a value.
fn users(inputs: &[(NodeId, usize)]) -> Vec<Use> {
    let reader = |&(node, input): &(NodeId, usize)| Use::Node { node, input };
    inputs.iter().map(reader).collect()
}

/// The constants behind the input of a site's Linears, or why none can be reached.
fn reach(view: &View, found: &Recognised, shapes: &Shapes, site: &Site) -> Result<Trace, String> {
    let linear = &found.linears[site.linears[0]];
    if !linear.channels_last() || !shapes.contains_key(view.name(site.value)) {
        return Err(no_sink(view, found, linear));
    }
    let readers = users(&site.absorb);
    let mut trace = trace::trace(view, found, shapes, site.value, &readers)?;
    // One scale for all channels moves nothing from one to another.
    if let Some(ties) = &trace.ties {
        let free = ties
            .iter()
            .enumerate()
            .filter(|&(c, &g)| c as u32 == g)
            .count();
        if free < 2 {
            return Err("all its channels share one constant".to_owned());
        }
    }
    trace
        .folds
        .retain(|f| f.channels.iter().any(Option::is_some));
    Ok(trace)
}

/// The readers of a value, seen through Identity, Dropout, Cast, Reshape and Transpose.
#[derive(Default)]
struct Readers {
    /// Index into `Recognised::linears`, and the rank it reads if that is another one.
    linears: Vec<(LinearId, Option<usize>)>,
    absorb: Vec<(NodeId, usize)>,
    /// See [`Site::copies`].
    copies: Vec<(NodeId, Vec<(NodeId, usize)>)>,
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
        // x' has the shape of x.
        if matches!(view.op(node), op::Shape | op::Size) {
            continue;
        }
        let linear = found
            .linears
            .position(|l| l.node == node && input == 0 && l.channels_last() && l.k == channels);
        if let Some(linear) = linear {
            all.linears.push((linear, None));
            all.absorb.push((node, input));
            continue;
        }
        let passed_on = match (passes(view, node), view.output(node, 0)) {
            (Some(pass), Some(output)) if input == 0 => {
                Some((pass, readers(view, found, output, channels)))
            }
            _ => None,
        };
        match passed_on {
            // Nothing but Linears behind it: it can carry x' in place of x.
            Some((pass, behind)) if !behind.others && !behind.linears.is_empty() => {
                match carried(found, pass, behind.linears) {
                    Some(linears) => {
                        all.linears.extend(linears);
                        all.absorb.push((node, input));
                    }
                    None => all.others = true,
                }
            }
            // Others read the new rows too: the Linears get a copy of the node.
            Some((pass @ Pass::Rows(_), behind))
                if !behind.linears.is_empty()
                    && !behind.graph_output
                    && behind.copies.is_empty() =>
            {
                if let Some(linears) = carried(found, pass, behind.linears) {
                    all.linears.extend(linears);
                    all.copies.push((node, behind.absorb));
                }
                all.others = true;
            }
            // Nothing but Shape behind it.
            Some((_, behind)) if !behind.others => {}
            // Others read it too, but it changes nothing: its Linears can read x' directly.
            Some((Pass::Same, behind)) => {
                all.linears.extend(behind.linears);
                all.absorb.extend(behind.absorb);
                all.copies.extend(behind.copies);
                all.others = true;
                all.graph_output |= behind.graph_output;
            }
            _ => all.others = true,
        }
    }
    all.linears.sort_unstable();
    all
}

/// The Linears behind a node that hands them x', with the ranks they then read. `None` if a rank must be known and is
/// not.
fn carried(
    found: &Recognised,
    pass: Pass,
    behind: Vec<(LinearId, Option<usize>)>,
) -> Option<Vec<(LinearId, Option<usize>)>> {
    let reshaped = |(linear, rank): (LinearId, Option<usize>)| match pass {
        Pass::Rows(new) => (linear, rank.or(new)),
        _ => (linear, rank),
    };
    let carried: Vec<_> = behind.into_iter().map(reshaped).collect();
    let unknown = matches!(pass, Pass::Rows(None))
        && carried
            .iter()
            .any(|&(l, r)| r.is_none() && needs_rank(found, l));
    (!unknown).then_some(carried)
}

/// How a node hands on the channels of its input.
#[derive(Clone, Copy)]
enum Pass {
    Same,
    FloatCast,
    /// The rows are grouped anew or put into another order, to a value of this rank where it is known. What has C channels
    /// on its last axis before and after keeps them: the elements stay in their row-major order, or, in a Transpose, the
    /// last axis stays the last.
    Rows(Option<usize>),
}

fn passes(view: &View, node: NodeId) -> Option<Pass> {
    match passage(view, node) {
        Some(Passage::Same) => return Some(Pass::Same),
        Some(Passage::FloatCast) => return Some(Pass::FloatCast),
        None => {}
    }
    match view.op(node) {
        op::Flatten => Some(Pass::Rows(Some(2))),
        op::Transpose => {
            let order = attr_ints(view.node(node), "perm")?;
            let stays = order.last() == Some(&(order.len() as i64 - 1));
            stays.then_some(Pass::Rows(Some(order.len())))
        }
        op::Reshape => Some(Pass::Rows(
            view.input(node, 1).and_then(|target| length(view, target)),
        )),
        _ => None,
    }
}

/// The number of elements of a target shape.
fn length(view: &View, target: ValueId) -> Option<usize> {
    if let Some(ints) = view.constant(target).and_then(|c| c.into_ints()) {
        return Some(ints.len());
    }
    let (node, _) = view.producer(target)?;
    match view.op(node) {
        op::Concat => (0..view.node(node).input.len())
            .map(|slot| length(view, view.input(node, slot)?))
            .sum(),
        op::Identity | op::Cast => length(view, view.input(node, 0)?),
        // A shape has one axis, so what was unsqueezed is a number.
        op::Unsqueeze => Some(1),
        _ => match view.shape(target)?.as_slice() {
            &[length] => length,
            _ => None,
        },
    }
}

/// Whether a Linear is quantized in different forms for rank 2 and for others.
fn needs_rank(found: &Recognised, linear: LinearId) -> bool {
    let linear = &found.linears[linear];
    linear.form == LinearForm::MatMul && linear.added_bias().is_some()
}
