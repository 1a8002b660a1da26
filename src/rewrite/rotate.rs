//! A rotation as nodes of the graph, before the Linears of a site.
//!
//! ```text
//! x: [.., K] ── Reshape([0, .., A, B]) ── MatMul(·, H_B) ── MatMul(H_A, ·) ── Reshape([0, .., K]) ── x (H_Aᵀ ⊗ H_B)
//! ```
//!
//! A 0 in the target of a Reshape keeps the size that is there, so every axis but the last may be of any length. The
//! products are in the type of x, in float: A + B multiplications per element beside the N of the Linear.
//!
//! Another run knows these MatMuls by their form ([`crate::recognise::rotation_part`]), whatever tools have made of their names.

use std::collections::BTreeMap;

use ndarray::Array2;

use super::RewriteError;
use super::affine::Rotated;
use super::linear::NewConstant;
use crate::graph::{Names, Patch};
use crate::onnx::node::make_node;
use crate::onnx::proto::NodeProto;
use crate::onnx::{DataType, op, tensor};

/// The constants of all rotations of a model: those of equal elements are one.
#[derive(Default)]
pub(super) struct Rotations {
    /// H by its size and type.
    matrices: BTreeMap<(usize, DataType), String>,
    /// Targets of Reshapes.
    shapes: BTreeMap<Vec<i64>, String>,
}

impl Rotations {
    /// The four nodes from the value `before` to the value `after`, with names from that of the node `base`; new constants go
    /// into `patch`.
    pub(super) fn chain(
        &mut self,
        rotated: &Rotated,
        dtype: DataType,
        (base, before, after): (&str, &str, &str),
        patch: &mut Patch,
        names: &mut Names,
    ) -> Result<Vec<NodeProto>, RewriteError> {
        let (a, b) = rotated.rotation.factors();
        let kept = vec![0; rotated.rank.saturating_sub(1)];
        let size = |n: usize| n as i64;
        let split = [kept.clone(), vec![size(a), size(b)]].concat();
        let joined = [kept, vec![size(rotated.rotation.channels())]].concat();
        let split = self.shape(split, "split_shape", base, patch, names);
        let joined = self.shape(joined, "joined_shape", base, patch, names);
        let inner = self.matrix(rotated.rotation.inner(), dtype, base, patch, names)?;
        let outer = rotated.rotation.outer();
        let outer = outer.map(|h| self.matrix(h, dtype, base, patch, names));
        let mut value = |suffix: &str| names.derive(after, suffix);
        let [first, second] = ["split", "inner"].map(&mut value);
        let third = outer.is_some().then(|| value("outer"));
        let mut node = |op: &str, suffix: &str, inputs: [&str; 2], output: &str| {
            let name = names.derive(base, suffix);
            make_node(op, &name, &inputs, &[output], vec![])
        };
        let mut nodes = vec![
            node(op::Reshape, "rotate_split", [before, &split], &first),
            node(op::MatMul, "rotate_inner", [&first, &inner], &second),
        ];
        let mixed = third.as_ref().unwrap_or(&second);
        if let Some(outer) = outer.transpose()? {
            nodes.push(node(op::MatMul, "rotate_outer", [&outer, &second], mixed));
        }
        nodes.push(node(op::Reshape, "rotate_joined", [mixed, &joined], after));
        Ok(nodes)
    }

    fn shape(
        &mut self,
        shape: Vec<i64>,
        suffix: &str,
        base: &str,
        patch: &mut Patch,
        names: &mut Names,
    ) -> String {
        let known = self.shapes.entry(shape.clone());
        let name = known.or_insert_with(|| {
            let name = names.derive(base, suffix);
            patch.add_initializer(tensor::from_i64(&name, &[shape.len()], &shape));
            name
        });
        name.clone()
    }

    fn matrix(
        &mut self,
        matrix: Array2<f32>,
        dtype: DataType,
        base: &str,
        patch: &mut Patch,
        names: &mut Names,
    ) -> Result<String, RewriteError> {
        let n = matrix.nrows();
        if let Some(known) = self.matrices.get(&(n, dtype)) {
            return Ok(known.clone());
        }
        let name = names.derive(base, &format!("rotation_{n}"));
        let new = NewConstant {
            shape: vec![n, n],
            data: matrix.iter().copied().collect(),
            dtype,
        };
        patch.add_initializer(new.into_tensor(&name)?);
        self.matrices.insert((n, dtype), name.clone());
        Ok(name)
    }
}
