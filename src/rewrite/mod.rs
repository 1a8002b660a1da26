//! From decisions to patches: [`clean()`] removes what exporters leave behind, [`fold_sizes()`] stores what
//! fixed sizes tell, [`take_apart()`] frees Linears from operators
//! that hold them, migration ([`migrate()`]) folds shift and scale into constants and writes rotations before the Linears, [`correct_biases`] takes mean errors off
//! the biases, quantization ([`quantize()`], [`quantize_attention`]) inserts QuantizeLinear and DequantizeLinear.

mod affine;
mod attention;
mod blocks;
mod clean;
mod correct;
mod dequantize;
mod embeddings;
mod fold_sizes;
mod linear;
mod migrate;
mod quantize;
mod rotate;
mod take_apart;
mod to_matmul;

pub use affine::{Affine, Rotated};
pub use attention::{AttentionParams, FLOAT16_OPSET, quantize_attention};
pub use blocks::{BLOCKS_OPSET, BlockForm, BlockPlan, BlockWeight, quantize_in_blocks};
pub use clean::clean;
pub use correct::correct_biases;
pub use dequantize::{Dequantized, dequantize};
pub use embeddings::{
    EmbeddingForm, EmbeddingTable, embedding_tables, quantize_embeddings, quantized_table,
};
pub use fold_sizes::fold_sizes;
pub use linear::Precision;
pub use migrate::{migrate, migrate_in};
pub use quantize::{
    Activation, IntegerProduct, IntegerProducts, Magnitude, QuantizePlan, Rounded, WeightStorage,
    nearest, quantize, quantize_as_operators,
};
pub use take_apart::take_apart;
pub use to_matmul::{Rewritten, to_matmul};

use thiserror::Error;

use crate::graph::{Patch, PatchError};
use crate::onnx::proto::NodeProto;

/// Why a model could not be rewritten.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RewriteError {
    /// The edits contradict each other or break the graph: a defect of this tool.
    #[error("internal error: {0}; please report this with the model")]
    Patch(#[from] PatchError),
    /// A constant that was recognised can no longer be read.
    #[error("the constant `{0}` cannot be read")]
    Constant(String),
    /// A float16 number would overflow: γ' or W' does not fit the type of the file.
    #[error(
        "`{name}` would hold {value} after migration, which its type {dtype} cannot; leave its Linears in float"
    )]
    Overflow {
        /// The constant.
        name: String,
        /// The number that does not fit.
        value: f32,
        /// The type in the file.
        dtype: &'static str,
    },
}

/// Makes a node one of ONNX Runtime's own operators, whose domain the model then imports.
fn microsoft(node: &mut NodeProto, operator: &str, patch: &mut Patch) {
    const DOMAIN: &str = "com.microsoft";
    patch.import(DOMAIN, 1);
    node.op_type = Some(operator.to_owned());
    node.domain = Some(DOMAIN.to_owned());
}
