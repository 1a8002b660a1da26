//! The graph: a read-only index over the file, and the only way to change it.
//!
//! [`View`] indexes one graph (producers, uses, constants, shapes) without owning or changing it. [`Patch`]
//! collects edits against that view together with the reason for them; [`apply`] carries them out and checks
//! the result. Inside, values and nodes are ids; names appear only at the edges.

pub mod axes;
mod blocked;
pub mod branches;
mod check;
mod constant;
mod cut;
mod fixed;
mod functions;
pub mod infer;
pub mod inline;
mod loops;
mod names;
pub mod opset;
mod patch;
mod size_inputs;
mod view;
pub mod work;

pub use blocked::{Blocked, Constants, Symmetry};
pub use check::{GraphError, check};
pub use constant::{Constant, blocks_of, is_orthogonal};
pub use cut::{Cut, cut, reached};
pub use fixed::{is_random, random_note};
pub use infer::constant_expression;
pub use inline::inline;
pub use loops::{loop_note, works_in_loops};
pub use names::Names;
pub use patch::{Patch, PatchError, apply, raise_ir};
pub use size_inputs::size_inputs;
pub use view::{NodeId, Source, Use, ValueId, View, names_read};
