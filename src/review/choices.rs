//! What a report says of choices that cost something: rotations before Linears cost time, embedding tables in 8 bits accuracy.

use serde::{Deserialize, Serialize};

use super::json::number;
use crate::rewrite::{EmbeddingForm, EmbeddingTable};

/// The rotation R = diag(d) P (H_Aᵀ ⊗ H_B) before the Linears of a site; see [`crate::solve::Rotation`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RotationReport {
    /// How it is written: "kronecker" (Reshape, two MatMuls, Reshape), "blocks" (Reshape, MatMul, Reshape; H_A is the identity),
    /// "heads" (folded into the columns of the Linear that makes V; H_A is the identity).
    pub form: String,
    /// A and B.
    pub factors: (usize, usize),
    /// The channels where d is −1, ascending; these signs are folded with the scale.
    pub negative: Vec<usize>,
    /// P: the channel in each place, where the channels stand in another order; it is folded into the Linears before.
    pub order: Option<Vec<u32>>,
    /// What it costs, in percent of the run time, by an estimate.
    #[serde(deserialize_with = "number")]
    pub percent: f64,
    /// Loss of the best choice without it over the loss with it, on calibration tokens that did not set the ranges, in dB.
    #[serde(deserialize_with = "number")]
    pub gain_db: f64,
}

/// What all rotations bought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RotationsReport {
    /// Sites that have one.
    pub sites: usize,
    /// What they cost together, in percent of the run time, by an estimate.
    #[serde(deserialize_with = "number")]
    pub percent: f64,
    /// The mean SQNR of the outputs on the held-out rows without them, in dB.
    #[serde(deserialize_with = "number")]
    pub sqnr_before_db: f64,
    /// And with them.
    #[serde(deserialize_with = "number")]
    pub sqnr_after_db: f64,
}

/// Embedding tables in 8 bits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct EmbeddingsReport {
    /// The tables.
    pub tables: Vec<TableReport>,
    /// Bits of an element.
    pub bits: u8,
    /// Elements of a row that share a scale; `None`: all of a row.
    pub block: Option<usize>,
    /// The mean SQNR of the outputs on the held-out rows with tables in float, in dB.
    #[serde(deserialize_with = "number")]
    pub sqnr_before_db: f64,
    /// And in 8 bits.
    #[serde(deserialize_with = "number")]
    pub sqnr_after_db: f64,
}

/// One embedding table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct TableReport {
    /// The name of the constant.
    pub name: String,
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub columns: usize,
    /// Bytes in float.
    pub bytes_before: usize,
    /// Bytes in 8 bits, scales included; and those in float, if something else reads the table too.
    pub bytes_after: usize,
}

impl EmbeddingsReport {
    /// The tables by their names, and the mean SQNR of the outputs without and with 8 bits, in dB.
    pub(crate) fn new(
        tables: &[(String, EmbeddingTable)],
        form: EmbeddingForm,
        [before, after]: [f64; 2],
    ) -> EmbeddingsReport {
        let table = |(name, table): &(String, EmbeddingTable)| TableReport {
            name: name.clone(),
            rows: table.rows,
            columns: table.columns,
            bytes_before: table.bytes(),
            bytes_after: table.quantized_bytes(form) + usize::from(table.shared) * table.bytes(),
        };
        EmbeddingsReport {
            tables: tables
                .iter()
                .filter(|(_, t)| t.takes(form))
                .map(table)
                .collect(),
            bits: form.bits(),
            block: form.block(),
            sqnr_before_db: before,
            sqnr_after_db: after,
        }
    }
}
