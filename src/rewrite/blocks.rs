//! Weights in groups, which the paper's fine-grained setting and every deployed language model have: com.microsoft.MatMulNBits
//! in the place of a Linear, or its weight behind a DequantizeLinear with blocks.
//!
//! ```text
//! x ── MatMulNBits(B: [N, G, group · bits / 8], scales: [N, G], zero points) ── Add(b) ── y
//! x ───────────────────────────────────────────────────────────┐
//! W: (U)INT4 or (U)INT8 [K, N] ── DequantizeLinear(block_size) ─┴─ MatMul ── Add(b) ── y
//! ```
//!
//! MatMulNBits has unsigned integers, the lowest bits of a byte first, and zero points that are `2^(bits − 1)` where none are
//! given; at accuracy level 4 it quantizes its activations to 8 bits per group. ONNX Runtime makes the same operator of the
//! second form, OpenVINO multiplies its unsigned form in integers, and TensorRT takes the signed one. A Linear in float16 or
//! bfloat16 is computed between two Casts, as everywhere; a Gemm is written as product and Add.

use std::collections::BTreeMap;
use std::sync::Arc;

use ndarray::Array2;

use super::RewriteError;
use super::linear::{NewConstant, times};
use super::microsoft;
use crate::graph::{Names, Patch, ValueId, View};
use crate::onnx::node::{int_attr, ints_attr, make_node};
use crate::onnx::op;
use crate::onnx::proto::{NodeProto, TensorProto};
use crate::onnx::{DataType, tensor};
use crate::recognise::{Linear, LinearForm, LinearId, Recognised};
use crate::solve::QuantizedWeight;

/// The operator set that has 4-bit types and blocks, and the IR version that knows them.
pub const BLOCKS_OPSET: (i64, i64) = (21, 10);

/// A weight in groups.
#[derive(Clone, Debug)]
pub struct BlockWeight {
    /// Its integers, scales and zero points.
    pub weight: Arc<QuantizedWeight>,
    /// Bits of an integer in the file: 2, 4 or 8.
    pub bits: u8,
}

/// What is written for a Linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockForm {
    /// com.microsoft.MatMulNBits.
    MatMulNBits {
        /// 4: activations in 8 bits per group; 0: activations in float.
        accuracy_level: i64,
    },
    /// DequantizeLinear with blocks, before a MatMul.
    DequantizeLinear {
        /// UINT4 and UINT8 with their middle as zero point; else INT4 and INT8.
        unsigned: bool,
    },
}

/// What is quantized: the Linears without an entry stay in float.
#[derive(Clone, Debug)]
pub struct BlockPlan {
    /// Per Linear.
    pub weights: BTreeMap<LinearId, BlockWeight>,
    /// The form of all.
    pub form: BlockForm,
}

/// The patches that write the planned Linears, one per Linear.
///
/// # Errors
/// A constant that cannot be read.
pub fn quantize_in_blocks(
    view: &View,
    found: &Recognised,
    plan: &BlockPlan,
    names: &mut Names,
) -> Result<Vec<Patch>, RewriteError> {
    let mut writer = Writer {
        view,
        form: plan.form,
        names,
        weights: BTreeMap::new(),
    };
    let planned = plan.weights.iter();
    let write = |(&l, weight): (&LinearId, &BlockWeight)| writer.write(&found.linears[l], weight);
    planned.map(write).collect()
}

/// The initializers of one weight, and the attributes that go with them.
#[derive(Clone)]
struct Stored {
    /// Integers, scales, and zero points if there are any.
    inputs: Vec<String>,
    group: usize,
    bits: u8,
}

struct Writer<'a, 'm> {
    view: &'a View<'m>,
    form: BlockForm,
    names: &'a mut Names,
    /// Weights already written: what they are made of, their orientation and factor, the bits.
    weights: BTreeMap<((ValueId, String), bool, u32, u8), Stored>,
}

impl Writer<'_, '_> {
    fn write(&mut self, linear: &Linear, weight: &BlockWeight) -> Result<Patch, RewriteError> {
        let mut patch = Patch::new(format!("weight of `{}` in groups", linear.name));
        let x = self.input(linear, &mut patch);
        let stored = self.stored(linear, weight, &mut patch);
        let mut node = self.view.node(linear.node).clone();
        let computed = node.input.get(2).filter(|c| !c.is_empty()).cloned();
        node.attribute.clear();
        match self.form {
            BlockForm::MatMulNBits { accuracy_level } => {
                microsoft(&mut node, op::MatMulNBits, &mut patch);
                node.input = [vec![x], stored.inputs.clone()].concat();
                let attributes = [
                    ("K", linear.k as i64),
                    ("N", linear.n as i64),
                    ("accuracy_level", accuracy_level),
                    ("bits", i64::from(stored.bits)),
                    ("block_size", stored.group as i64),
                ];
                let attributes = attributes.map(|(name, value)| int_attr(name, value));
                node.attribute.extend(attributes);
            }
            BlockForm::DequantizeLinear { .. } => {
                let (w, dequantize) = self.dequantize(linear, &stored);
                patch.insert_before(linear.node, dequantize);
                node.op_type = Some(op::MatMul.to_owned());
                node.input = vec![x, w];
            }
        }
        self.output(linear, node, computed, &mut patch)?;
        Ok(patch)
    }

    /// The input of `linear` as float32 rows.
    fn input(&mut self, linear: &Linear, patch: &mut Patch) -> String {
        let mut x = self.view.name(linear.input).to_owned();
        let mut before = |writer: &mut Self, op: &str, suffix: &str, attribute| {
            let output = writer.names.derive(&x, suffix);
            let name = writer.names.derive(&linear.name, op);
            let node = make_node(op, &name, &[&x], &[&output], vec![attribute]);
            patch.insert_before(linear.node, node);
            x = output;
        };
        if !linear.channels_last() {
            before(self, op::Transpose, "rows", ints_attr("perm", &[1, 0]));
        }
        if linear.dtype != DataType::Float {
            let to = int_attr("to", DataType::Float as i64);
            before(self, op::Cast, "float32", to);
        }
        x
    }

    /// The node of the product with what stands behind it: a Cast to the type of the file, the bias of a Gemm.
    fn output(
        &mut self,
        linear: &Linear,
        mut node: NodeProto,
        computed: Option<String>,
        patch: &mut Patch,
    ) -> Result<(), RewriteError> {
        let output = self.view.output(linear.node, 0);
        let output = output.map_or("", |v| self.view.name(v)).to_owned();
        let bias = match linear.form {
            LinearForm::MatMul => None,
            LinearForm::Gemm { beta, .. } => match (linear.load_bias(self.view), computed) {
                (Some(_), Some(stored)) if beta == 1.0 => Some(stored),
                (Some(b), _) => {
                    let name = self.names.derive(&linear.name, "bias");
                    let new = NewConstant {
                        shape: vec![linear.n],
                        data: b.to_vec(),
                        dtype: linear.dtype,
                    };
                    patch.add_initializer(new.into_tensor(&name)?);
                    Some(name)
                }
                (None, Some(c)) => Some(times(linear, &c, beta, patch, self.names)),
                (None, None) => None,
            },
        };
        let mut after = Vec::new();
        let mut value = output;
        if let Some(bias) = bias {
            let product = self.names.derive(&value, "product");
            let add = self.names.derive(&linear.name, op::Add);
            after.push(make_node(
                op::Add,
                &add,
                &[&product, &bias],
                &[&value],
                vec![],
            ));
            value = product;
        }
        if linear.dtype != DataType::Float {
            let wide = self.names.derive(&value, "float32");
            let cast = self.names.derive(&value, op::Cast);
            let to = vec![int_attr("to", linear.dtype as i64)];
            after.push(make_node(op::Cast, &cast, &[&wide], &[&value], to));
            value = wide;
        }
        node.output[0] = value;
        patch.replace(linear.node, node);
        for node in after.into_iter().rev() {
            patch.insert_after(linear.node, node);
        }
        Ok(())
    }

    /// The DequantizeLinear of a weight.
    fn dequantize(&mut self, linear: &Linear, stored: &Stored) -> (String, NodeProto) {
        let name = self.view.name(linear.weight);
        let output = self.names.derive(name, "dequantized");
        let node = self.names.derive(name, op::DequantizeLinear);
        let inputs: Vec<&str> = stored.inputs.iter().map(String::as_str).collect();
        let attributes = vec![
            int_attr("axis", 0),
            int_attr("block_size", stored.group as i64),
        ];
        let node = make_node(op::DequantizeLinear, &node, &inputs, &[&output], attributes);
        (output, node)
    }

    /// The initializers of a weight: new ones, or those of another Linear with the same weight.
    fn stored(&mut self, linear: &Linear, weight: &BlockWeight, patch: &mut Patch) -> Stored {
        let (transposed, alpha) = match linear.form {
            LinearForm::Gemm { trans_b, alpha, .. } => (trans_b, alpha),
            LinearForm::MatMul => (false, 1.0),
        };
        let derivation = self.view.derivation(linear.weight);
        let key = (derivation, transposed, alpha.to_bits(), weight.bits);
        if let Some(known) = self.weights.get(&key) {
            return known.clone();
        }
        let base = self.view.name(linear.weight);
        let group = weight.weight.group.unwrap_or(linear.k);
        let mut derive = |suffix: &str| self.names.derive(base, suffix);
        let names = [derive("quantized"), derive("scale"), derive("zero_point")];
        let tensors = match self.form {
            BlockForm::MatMulNBits { .. } => packed(&names, weight, group),
            BlockForm::DequantizeLinear { unsigned } => blocked(&names, weight, group, unsigned),
        };
        let stored = Stored {
            inputs: tensors.iter().map(|t| t.name().to_owned()).collect(),
            group,
            bits: weight.bits,
        };
        for tensor in tensors {
            patch.add_initializer(tensor);
        }
        self.weights.insert(key, stored.clone());
        stored
    }
}

/// Zero points, `[G · N]`, if there are any.
fn zero_points(weight: &QuantizedWeight) -> Option<&[i8]> {
    Some(&weight.zero_point[..]).filter(|z| !z.is_empty())
}

/// The inputs of MatMulNBits: B `[N, G, group · bits / 8]`, scales `[N, G]`, zero points `[N, ⌈G · bits / 8⌉]`.
fn packed(names: &[String; 3], weight: &BlockWeight, group: usize) -> Vec<TensorProto> {
    let BlockWeight { weight, bits } = weight;
    let (k, n) = weight.q.dim();
    let (groups, middle) = (k.div_ceil(group), 1i32 << (bits - 1));
    let unsigned = |q: i8| (i32::from(q) + middle) as u8;
    // What fills up the last group is multiplied by zeros.
    let column = |c: usize| {
        let column = weight.q.column(c);
        let filled = column.iter().map(|&q| unsigned(q)).collect::<Vec<_>>();
        [filled, vec![0; groups * group - k]].concat()
    };
    let data: Vec<u8> = (0..n)
        .flat_map(|c| tensor::packed(&column(c), *bits))
        .collect();
    let width = group * usize::from(*bits) / 8;
    let scales: Vec<f32> = by_column(&weight.scale, n).collect();
    let mut tensors = vec![
        tensor::from_u8(&names[0], &[n, groups, width], &data),
        tensor::from_f32(&names[1], &[n, groups], &scales, DataType::Float),
    ];
    if let Some(zeros) = zero_points(weight) {
        let zeros: Vec<u8> = by_column(zeros, n).map(unsigned).collect();
        let rows = zeros.chunks(groups).map(|row| tensor::packed(row, *bits));
        let rows: Vec<Vec<u8>> = rows.collect();
        let width = rows.first().map_or(0, Vec::len);
        tensors.push(tensor::from_u8(&names[2], &[n, width], &rows.concat()));
    }
    tensors
}

/// `[G, N]` in the order of `[N, G]`.
fn by_column<T: Copy>(rows: &[T], n: usize) -> impl Iterator<Item = T> {
    (0..n).flat_map(move |c| rows.iter().copied().skip(c).step_by(n))
}

/// The inputs of DequantizeLinear: W `[K, N]`, scales and zero points `[G, N]`.
fn blocked(
    names: &[String; 3],
    weight: &BlockWeight,
    group: usize,
    unsigned: bool,
) -> Vec<TensorProto> {
    let BlockWeight { weight, bits } = weight;
    let (k, n) = weight.q.dim();
    let shape = [k.div_ceil(group), n];
    let middle = 1i32 << (bits - 1);
    let integers = |name: &str, shape: &[usize], data: &[i8]| -> TensorProto {
        let raised = || data.iter().map(|&q| (i32::from(q) + middle) as u8);
        match (bits, unsigned) {
            (4, false) => tensor::from_i4(name, shape, data),
            (4, true) => tensor::from_u4(name, shape, &raised().collect::<Vec<_>>()),
            (_, false) => tensor::from_i8(name, shape, data),
            (_, true) => tensor::from_u8(name, shape, &raised().collect::<Vec<_>>()),
        }
    };
    let q: Vec<i8> = rows_of(&weight.q);
    let none = vec![0; shape[0] * n];
    let zeros = zero_points(weight).unwrap_or(&none);
    vec![
        integers(&names[0], &[k, n], &q),
        tensor::from_f32(&names[1], &shape, &weight.scale, DataType::Float),
        integers(&names[2], &shape, zeros),
    ]
}

fn rows_of(q: &Array2<i8>) -> Vec<i8> {
    q.as_standard_layout().iter().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(bits: u8, zeros: bool) -> BlockWeight {
        let q = Array2::from_shape_fn((5, 2), |(c, n)| (c as i8 - 2) * if n == 0 { 1 } else { -1 });
        let weight = QuantizedWeight {
            q,
            scale: vec![0.5, 0.25, 2.0, 4.0],
            zero_point: if zeros { vec![1, -1, 0, 1] } else { Vec::new() },
            group: Some(4),
        };
        BlockWeight {
            weight: Arc::new(weight),
            bits,
        }
    }

    fn names() -> [String; 3] {
        ["b", "s", "z"].map(str::to_owned)
    }

    #[test]
    fn four_bits_lie_two_in_a_byte_column_by_column() {
        let tensors = packed(&names(), &weight(4, true), 4);
        assert_eq!(tensors[0].dims, [2, 2, 2]);
        // Column 0: −2 −1 0 1 | 2, raised by 8; the rest of the second group is 0.
        let first = [0x76, 0x98, 0x0a, 0x00];
        let second = [0x9a, 0x78, 0x06, 0x00];
        assert_eq!(
            tensors[0].raw_data.as_deref(),
            Some(&[first, second].concat()[..])
        );
        assert_eq!(
            tensor::float_array(&tensors[1])
                .unwrap()
                .into_raw_vec_and_offset()
                .0,
            [0.5, 2.0, 0.25, 4.0]
        );
        // Zero points of a column: groups 0 and 1.
        assert_eq!(tensors[2].dims, [2, 1]);
        assert_eq!(tensors[2].raw_data.as_deref(), Some(&[0x89, 0x97][..]));
        assert_eq!(packed(&names(), &weight(4, false), 4).len(), 2);
    }

    #[test]
    fn other_bits() {
        let eight = packed(&names(), &weight(8, true), 4);
        assert_eq!(eight[0].dims, [2, 2, 4]);
        assert_eq!(
            eight[2].raw_data.as_deref(),
            Some(&[129, 128, 127, 129][..])
        );
        let two = packed(&names(), &weight(2, false), 4);
        // −2 −1 0 1 raised by 2: 0 1 2 3; then 4 is beyond two bits, and is never given.
        assert_eq!(
            two[0].raw_data.as_deref().map(|d| d[0]),
            Some(0b11_10_01_00)
        );
    }

    #[test]
    fn blocks_keep_the_layout_of_the_weight() {
        let signed = blocked(&names(), &weight(8, false), 4, false);
        assert_eq!(
            (&signed[0].dims[..], &signed[2].dims[..]),
            (&[5, 2][..], &[2, 2][..])
        );
        assert_eq!(signed[0].raw_data.as_deref().map(|d| d[0] as i8), Some(-2));
        let unsigned = blocked(&names(), &weight(4, true), 4, true);
        // 6 and 10, the first in the lower half; zero points 9 7 8 9.
        assert_eq!(unsigned[0].raw_data.as_deref().map(|d| d[0]), Some(0xa6));
        assert_eq!(unsigned[2].raw_data.as_deref(), Some(&[0x79, 0x98][..]));
    }
}
