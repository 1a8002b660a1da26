//! Writing the constants of a Linear back in the form its operator reads them.

use std::collections::BTreeMap;

use ndarray::{Array1, Array2, Axis};

use super::RewriteError;
use crate::graph::{Names, NodeId, Patch, Source, Use, ValueId, View};
use crate::onnx::op;

use crate::onnx::node::{attr_t, int_attr, make_node};
use crate::onnx::proto::{NodeProto, TensorProto};
use crate::onnx::{DataType, tensor};
use crate::recognise::{Linear, LinearForm};

use super::Affine;

/// What constants that several nodes read were changed to so far, by the initializer they are made of. Those that change
/// alike stay shared: layers that are applied again and again, or in both branches of an If.
pub(super) type Copies = BTreeMap<ValueId, Vec<TensorProto>>;

/// `value · factor` before `linear`; the value itself where that is 1.
pub(super) fn times(
    linear: &Linear,
    value: &str,
    factor: f32,
    patch: &mut Patch,
    names: &mut Names,
) -> String {
    if factor == 1.0 {
        return value.to_owned();
    }
    let (name, scaled) = (
        names.derive(&linear.name, "beta"),
        names.derive(value, "scaled"),
    );
    patch.add_initializer(tensor::from_f32(&name, &[], &[factor], linear.dtype));
    let mul = names.derive(&linear.name, op::Mul);
    let mul = make_node(op::Mul, &mul, &[value, &name], &[&scaled], vec![]);
    patch.insert_before(linear.node, mul);
    scaled
}

/// In what type migrated constants are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// The type in the file. Float16 and bfloat16 round what has been folded, once.
    OfFile,
    /// float32, for a check of the folding itself: such a model is for the engine, which widens everything anyway, and
    /// no valid file.
    Float32,
}

impl Precision {
    /// The type to write for a constant that has the type `dtype` in the file.
    pub(super) fn of(self, dtype: DataType) -> DataType {
        match self {
            Precision::OfFile => dtype,
            Precision::Float32 => DataType::Float,
        }
    }
}

/// Makes node input (`node`, `slot`), which reads the constant `value`, read `new` instead.
///
/// The initializer is overwritten in place if nothing else reads it; otherwise the node gets a copy under a derived
/// name, which it shares only with nodes that want the same. What the file stores in float16 or bfloat16 behind a Cast
/// to float32 stays that small.
pub(super) fn set_constant(
    precision: Precision,
    view: &View,
    patch: &mut Patch,
    (names, copies): (&mut Names, &mut Copies),
    at: (NodeId, usize),
    value: ValueId,
    mut new: NewConstant,
) -> Result<(), RewriteError> {
    let only = |value, (node, input)| view.uses(value) == [Use::Node { node, input }];
    let narrow = stored_narrow(view, value)
        .filter(|_| precision == Precision::OfFile && new.dtype == DataType::Float);
    // The initializer itself, or the one behind nothing but a Cast.
    let (origin, cast) = match (narrow, view.producer(value)) {
        (Some(_), Some((node, 0))) if view.op(node) == op::Cast => {
            (view.input(node, 0).unwrap_or(value), Some(node))
        }
        _ => (value, None),
    };
    let exclusive = matches!(view.source(origin), Source::Initializer(_))
        && only(value, at)
        && cast.is_none_or(|cast| only(origin, (cast, 0)));
    new.dtype = narrow.unwrap_or(new.dtype);
    if exclusive {
        patch.set_initializer(new.into_tensor(view.name(origin))?);
        return Ok(());
    }
    let name = view.name(value);
    let mut tensor = new.into_tensor(name)?;
    let copies = copies.entry(view.origin(value)).or_default();
    let same = |t: &&TensorProto| {
        (t.data_type, &t.dims, &t.raw_data) == (tensor.data_type, &tensor.dims, &tensor.raw_data)
    };
    let mut target = match copies.iter().find(same) {
        Some(copy) => copy.name().to_owned(),
        None => {
            let target = names.derive(name, "osplus");
            tensor.name = Some(target.clone());
            copies.push(tensor.clone());
            patch.add_initializer(tensor);
            target
        }
    };
    if narrow.is_some() {
        let wide = names.derive(&target, "float32");
        let cast = names.derive(&target, op::Cast);
        let to = vec![int_attr("to", DataType::Float as i64)];
        patch.insert_before(at.0, make_node(op::Cast, &cast, &[&target], &[&wide], to));
        target = wide;
    }
    patch.rewire(at.0, at.1, target);
    Ok(())
}

/// The type of the initializer that a float32 constant is a widened copy of: float16 or bfloat16.
fn stored_narrow(view: &View, value: ValueId) -> Option<DataType> {
    let origin = view.origin(value);
    let stored = match view.source(origin) {
        Source::Initializer(_) => tensor::dtype(view.initializer(origin)?)?,
        Source::Node { node, .. } if view.op(node) == op::Constant => {
            tensor::dtype(attr_t(view.node(node), "value")?)?
        }
        _ => return None,
    };
    matches!(stored, DataType::Float16 | DataType::Bfloat16).then_some(stored)
}

/// The elements of a constant to be written, and the float type of the file.
pub(super) struct NewConstant {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub data: Vec<f32>,
    /// Its type in the file.
    pub dtype: DataType,
}

impl NewConstant {
    /// The tensor, under a name.
    pub(super) fn into_tensor(self, name: &str) -> Result<TensorProto, RewriteError> {
        let largest = match self.dtype {
            DataType::Float16 => 65504.0,
            _ => f32::MAX,
        };
        if let Some(&value) = self
            .data
            .iter()
            .find(|x| !x.is_finite() || x.abs() > largest)
        {
            let (name, dtype) = (name.to_owned(), self.dtype.as_str_name());
            return Err(RewriteError::Overflow { name, value, dtype });
        }
        Ok(tensor::from_f32(name, &self.shape, &self.data, self.dtype))
    }
}

/// The layout in which the operator of `linear` stores the effective weight `w`: [K, N].
pub(super) fn stored_weight(linear: &Linear, w: Array2<f32>) -> NewConstant {
    let w = match linear.form {
        LinearForm::Gemm { trans_b: true, .. } => w.reversed_axes(),
        _ => w,
    };
    let shape = w.shape().to_vec();
    NewConstant {
        shape,
        data: w
            .as_standard_layout()
            .as_slice()
            .map_or_else(Vec::new, <[f32]>::to_vec),
        dtype: linear.dtype,
    }
}

/// The node of `linear` for constants that already contain its factors: alpha if the `weight` has been written anew,
/// beta if the `bias` has. `None` if the node needs no change.
pub(super) fn without_factors(
    view: &View,
    linear: &Linear,
    weight: bool,
    bias: bool,
) -> Option<NodeProto> {
    let LinearForm::Gemm { alpha, beta, .. } = linear.form else {
        return None;
    };
    let (alpha, beta) = (weight && alpha != 1.0, bias && beta != 1.0);
    (alpha || beta).then(|| {
        let mut node = view.node(linear.node).clone();
        // Both are 1 where they are left out.
        node.attribute.retain(|a| match a.name.as_deref() {
            Some("alpha") => !alpha,
            Some("beta") => !beta,
            _ => true,
        });
        node
    })
}

/// Everything that changes in one Linear y = x W + b:
///
/// ```text
/// W' = Rᵀ diag(s) W diag(1/s_y) R_y        b' = (b + z W − z_y) / s_y R_y
/// ```
///
/// with z, s: [C] and R of the site that the Linear reads and z_y, s_y: [N], R_y of the sites that read its output.
pub(super) struct LinearFold {
    /// z, s, R.
    input: Affine,
    /// z_y.
    pub output_shift: Vec<f32>,
    /// s_y.
    pub output_scale: Vec<f32>,
    /// What happens to the columns after that.
    pub columns: Columns,
}

/// What happens to the columns of a Linear behind z_y and s_y.
#[derive(Default)]
pub(super) struct Columns {
    /// P: column i is what column `order[i]` was; empty if they stay where they are.
    order: Vec<usize>,
    /// H and, head after head, the columns that are mixed by it.
    mixed: Option<(Array2<f32>, Vec<Vec<usize>>)>,
}

impl Columns {
    /// Puts the `order.len()` columns from `first` on, of `n`, into another order.
    pub(super) fn reorder(&mut self, n: usize, first: usize, order: &[u32]) {
        if self.order.is_empty() {
            self.order = (0..n).collect();
        }
        let places = self.order[first..first + order.len()].iter_mut();
        places
            .zip(order)
            .for_each(|(place, &c)| *place = first + c as usize);
    }

    /// Mixes the columns of every head by a symmetric `h: [D, D]`. `channels` are those of the columns, with
    /// head `c / D` and place `c % D` in it.
    pub(super) fn mix(&mut self, h: Array2<f32>, channels: &[Option<u32>]) {
        let size = h.nrows();
        let mut heads: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (column, channel) in channels.iter().enumerate() {
            if let Some(c) = channel.map(|c| c as usize) {
                heads.entry(c / size).or_insert_with(|| vec![column; size])[c % size] = column;
            }
        }
        self.mixed = Some((h, heads.into_values().collect()));
    }

    fn change(&self) -> bool {
        !self.order.is_empty() || self.mixed.is_some()
    }

    /// `x P R` for rows `x: [_, N]`.
    fn apply(&self, mut x: Array2<f32>) -> Array2<f32> {
        if !self.order.is_empty() {
            x = x.select(Axis(1), &self.order);
        }
        if let Some((h, heads)) = &self.mixed {
            for head in heads {
                let mixed = x.select(Axis(1), head).dot(h);
                for (&column, values) in head.iter().zip(mixed.columns()) {
                    x.column_mut(column).assign(&values);
                }
            }
        }
        x
    }
}

impl LinearFold {
    /// No change to a Linear with `n` outputs.
    pub(super) fn new(n: usize) -> Self {
        LinearFold {
            input: Affine::default(),
            output_shift: vec![0.0; n],
            output_scale: vec![1.0; n],
            columns: Columns::default(),
        }
    }

    /// Takes the affine of the site that the Linear reads; there is only one.
    pub(super) fn absorb(&mut self, affine: &Affine) {
        self.input = affine.clone();
    }

    /// What weight and bias become.
    ///
    /// # Errors
    /// A weight that cannot be read.
    pub(super) fn constants(
        &self,
        view: &View,
        linear: &Linear,
    ) -> Result<Constants, RewriteError> {
        let unreadable = || RewriteError::Constant(view.name(linear.weight).to_owned());
        let scales_output = self.output_scale.iter().any(|&s| s != 1.0);
        let shifts_output = self.output_shift.iter().any(|&z| z != 0.0);
        let rotation = self.input.rotation.as_ref().map(|r| &r.rotation);
        let changes_output = scales_output || self.columns.change();
        let new_weight = self.input.scale.is_some() || rotation.is_some() || changes_output;
        let new_bias = self.input.shift.is_some()
            || shifts_output
            || (changes_output && linear.bias.is_some());
        let mut weight = linear.load_weight(view).ok_or_else(unreadable)?;
        let bias = new_bias.then(|| {
            let mut bias = linear
                .load_bias(view)
                .unwrap_or_else(|| Array1::zeros(linear.n));
            if let Some(z) = &self.input.shift {
                // z enters before the division by s, so it meets the weight as it was.
                bias += &Array1::from(z.clone()).dot(&weight);
            }
            let outputs = self.output_shift.iter().zip(&self.output_scale);
            bias.iter_mut()
                .zip(outputs)
                .for_each(|(b, (z, s))| *b = (*b - z) / s);
            let bias = self.columns.apply(bias.insert_axis(Axis(0)));
            bias.remove_axis(Axis(0))
        });
        let weight = new_weight.then(|| {
            if let Some(rotation) = rotation {
                weight = rotation.rotate_weight(weight.view(), self.input.scale.as_deref());
            } else if let Some(s) = &self.input.scale {
                weight
                    .axis_iter_mut(Axis(0))
                    .zip(s)
                    .for_each(|(mut row, &s)| row *= s);
            }
            if scales_output {
                weight /= &ndarray::aview1(&self.output_scale);
            }
            stored_weight(linear, self.columns.apply(weight))
        });
        Ok(Constants { weight, bias })
    }
}

/// The constants of a Linear that are no longer what they were.
pub(super) struct Constants {
    /// W', as the operator stores it.
    weight: Option<NewConstant>,
    /// b': [N].
    bias: Option<Array1<f32>>,
}

impl Constants {
    /// Adds to `patch` what the Linear becomes; weight and bias each have their precision.
    ///
    /// # Errors
    /// A constant that cannot be read, or does not fit its type.
    pub(super) fn write(
        self,
        [of_weight, of_bias]: [Precision; 2],
        view: &View,
        linear: &Linear,
        patch: &mut Patch,
        (names, copies): (&mut Names, &mut Copies),
    ) -> Result<(), RewriteError> {
        let changed = (self.weight.is_some(), self.bias.is_some());
        if let Some(bias) = self.bias {
            let names = (&mut *names, &mut *copies);
            set_bias(of_bias, view, linear, bias, patch, names)?;
        }
        if let Some(mut new) = self.weight {
            new.dtype = of_weight.of(new.dtype);
            let (at, names) = ((linear.node, 1), (names, copies));
            set_constant(of_weight, view, patch, names, at, linear.weight, new)?;
        }
        if let Some(node) = without_factors(view, linear, changed.0, changed.1) {
            patch.replace(linear.node, node);
        }
        Ok(())
    }
}

/// Writes b'; a Linear without a bias gets one.
pub(super) fn set_bias(
    precision: Precision,
    view: &View,
    linear: &Linear,
    bias: Array1<f32>,
    patch: &mut Patch,
    (names, copies): (&mut Names, &mut Copies),
) -> Result<(), RewriteError> {
    let dtype = precision.of(linear.dtype);
    if let Some(old) = linear.bias {
        let unreadable = || RewriteError::Constant(view.name(old.value).to_owned());
        let stored = view
            .constant(old.value)
            .and_then(|c| c.into_float())
            .ok_or_else(unreadable)?
            .0;
        // A single number for all columns is a vector from now on.
        let shape = if stored.len() == linear.n {
            stored.shape().to_vec()
        } else {
            vec![linear.n]
        };
        let new = NewConstant {
            shape,
            data: bias.to_vec(),
            dtype,
        };
        let at = (old.node, old.slot);
        let names = (names, copies);
        return set_constant(precision, view, patch, names, at, old.value, new);
    }
    let new = NewConstant {
        shape: vec![linear.n],
        data: bias.to_vec(),
        dtype,
    };
    let name = names.derive(view.name(linear.weight), "bias");
    patch.add_initializer(new.into_tensor(&name)?);
    match linear.form {
        LinearForm::Gemm { .. } => patch.rewire(linear.node, 2, name),
        LinearForm::MatMul => add_after(view, linear, "bias", &name, patch, names),
    }
    Ok(())
}

/// An Add of the constant `name` after the MatMul of `linear`. Readers find the sum under the product's old name.
pub(super) fn add_after(
    view: &View,
    linear: &Linear,
    suffix: &str,
    name: &str,
    patch: &mut Patch,
    names: &mut Names,
) {
    let output = view.output(linear.node, 0).map_or("", |v| view.name(v));
    let product = names.derive(output, "product");
    let add = names.derive(&linear.name, suffix);
    patch.rename_output(linear.node, 0, product.clone());
    let node = make_node(op::Add, &add, &[&product, name], &[output], vec![]);
    patch.insert_after(linear.node, node);
}
