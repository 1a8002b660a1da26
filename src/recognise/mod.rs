//! Recognisers see through exporters: each turns a subgraph, in any export form, into one typed view.
//!
//! A recogniser never changes the graph. What almost matched is kept with the reason ([`NearMiss`]), so that a
//! user learns why a block was left alone.

mod attention;
mod contrib;
mod decomposed;
mod layout;
mod linear;
mod magnitude;
mod moments;
mod norm;
mod rotation;
mod transparent;
mod weight;

pub use attention::{Attention, Attentions, Product, attentions, is_attention};
pub use contrib::{Composite, MICROSOFT, composite, microsoft_op};
pub use layout::{Layout, asks_rank, moved_back, other_layout, unmoved};
pub use linear::{Bias, Linear, LinearForm};
pub use magnitude::{magnitude, over_magnitude, uncast};
pub use norm::{Norm, NormKind, NormParam};
pub use rotation::{WrittenRotation, rotation_part};
pub use transparent::{Passage, passage, see_through};

use oxc_index::IndexVec;

use crate::graph::{NodeId, View};

oxc_index::define_index_type! {
    /// A Linear, as its position in [`Recognised::linears`].
    pub struct LinearId = u32;
}

oxc_index::define_index_type! {
    /// A norm, as its position in [`Recognised::norms`].
    pub struct NormId = u32;
}

/// Something that looked like a block this tool knows, and why it is not one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearMiss {
    /// The node at which the match failed.
    pub node: NodeId,
    /// That node's name.
    pub name: String,
    /// What it might have been: "Linear", "LayerNormalization", "RMSNormalization".
    pub kind: &'static str,
    /// What was expected and what was found.
    pub reason: String,
}

/// Everything recognised in one graph, each list in graph order.
#[derive(Debug, Default)]
pub struct Recognised {
    /// The Linear layers.
    pub linears: IndexVec<LinearId, Linear>,
    /// The normalizations.
    pub norms: IndexVec<NormId, Norm>,
    /// What did not match, and why.
    pub near_misses: Vec<NearMiss>,
}

/// Runs every recogniser over the graph.
pub fn recognise(view: &View) -> Recognised {
    let mut found = Recognised::default();
    for (id, _) in view.nodes() {
        match linear::match_at(view, id) {
            Some(Ok(linear)) => _ = found.linears.push(linear),
            Some(Err(reason)) => found.miss(view, id, "Linear", reason),
            None => {}
        }
        match norm::match_at(view, id) {
            Some(Ok(norm)) => _ = found.norms.push(norm),
            Some(Err((kind, reason))) => found.miss(view, id, kind.op_type(), reason),
            None => {}
        }
    }
    found
}

impl Recognised {
    fn miss(&mut self, view: &View, node: NodeId, kind: &'static str, reason: String) {
        self.near_misses.push(NearMiss {
            node,
            name: view.node_name(node).to_owned(),
            kind,
            reason,
        });
    }
}
