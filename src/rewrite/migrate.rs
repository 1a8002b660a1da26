//! Migration: y = norm(u) becomes y' = (y − z) / s, and every reader is told.
//!
//! ```text
//! norm      γ' = γ / s        β' = (β − z) / s                    γ, β, z, s: [C]
//! Linears   W' = diag(s) W    b' = b + z W                        W: [C, N], b: [N]
//! others    y  = y' s + z     by one Mul and one Add, under the old name of y
//! ```
//!
//! Exact in real arithmetic; what float rounding leaves is checked by running both models.
//! Source: Outlier Suppression+, section 4.1 (equations 3 to 6).

use ndarray::{Array1, Axis};

use super::RewriteError;
use super::linear::{NewConstant, set_constant, stored_weight, without_factors};
use crate::graph::{Names, Patch, View};
use crate::onnx::DataType;
use crate::onnx::node::make_node;
use crate::recognise::{Linear, LinearForm, Norm, NormParam, Recognised};
use crate::site::{Sink, Site};

/// The affine x' = (x − z) / s of one site; a missing part is the identity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Affine {
    /// z: [C].
    pub shift: Option<Vec<f32>>,
    /// s: [C], every element > 0.
    pub scale: Option<Vec<f32>>,
}

impl Affine {
    /// Whether this changes nothing.
    pub fn is_identity(&self) -> bool {
        self.shift.is_none() && self.scale.is_none()
    }
}

/// The patch that migrates one site. The site must have a sink, and a shift needs `site.allow_shift`.
///
/// # Errors
/// A constant that does not fit its type after migration, or cannot be read.
pub fn migrate(
    view: &View,
    found: &Recognised,
    site: &Site,
    affine: &Affine,
    names: &mut Names,
) -> Result<Patch, RewriteError> {
    let value = view.name(site.value);
    let parts = match (&affine.shift, &affine.scale) {
        (Some(_), Some(_)) => "shift and scale",
        (Some(_), None) => "shift",
        _ => "scale",
    };
    let mut patch = Patch::new(format!(
        "fold the {parts} of `{value}` into its norm and Linears"
    ));
    let Sink::Norm(norm) = site.sink else {
        return Ok(patch);
    };
    if affine.is_identity() {
        return Ok(patch);
    }
    let norm = &found.norms[norm];
    fold_norm(view, norm, affine, &mut patch, names)?;
    for &l in &site.linears {
        fold_linear(view, &found.linears[l], affine, &mut patch, names)?;
    }
    if site.restore {
        restore(view, norm, site, affine, &mut patch, names)?;
    }
    Ok(patch)
}

fn fold_norm(
    view: &View,
    norm: &Norm,
    affine: &Affine,
    patch: &mut Patch,
    names: &mut Names,
) -> Result<(), RewriteError> {
    let scale = |c: usize| affine.scale.as_ref().map_or(1.0, |s| s[c]);
    if affine.scale.is_some() {
        fold_param(view, norm.gamma, patch, names, |c, gamma| gamma / scale(c))?;
    }
    let shift = |c: usize| affine.shift.as_ref().map_or(0.0, |z| z[c]);
    match norm.beta {
        Some(beta) => fold_param(view, beta, patch, names, |c, b| (b - shift(c)) / scale(c)),
        None if affine.shift.is_some() => {
            let gamma = read(view, norm.gamma)?;
            let beta = |c| (0.0 - shift(c)) / scale(c);
            let data = (0..norm.channels).map(beta).collect();
            let name = names.derive(&norm.name, "beta");
            let new = NewConstant {
                shape: vec![norm.channels],
                data,
                dtype: gamma.1,
            };
            patch.add_initializer(new.into_tensor(&name)?);
            // LayerNormalization reads its optional β as input 2.
            patch.rewire(norm.node, 2, name);
            Ok(())
        }
        None => Ok(()),
    }
}

type FloatConstant = (ndarray::ArrayD<f32>, DataType);

fn read(view: &View, param: NormParam) -> Result<FloatConstant, RewriteError> {
    view.constant(param.value)
        .and_then(|c| c.into_float())
        .ok_or_else(|| RewriteError::Constant(view.name(param.value).to_owned()))
}

fn fold_param(
    view: &View,
    param: NormParam,
    patch: &mut Patch,
    names: &mut Names,
    fold: impl Fn(usize, f32) -> f32,
) -> Result<(), RewriteError> {
    let (array, dtype) = read(view, param)?;
    let data = array.iter().enumerate().map(|(c, &x)| fold(c, x)).collect();
    let new = NewConstant {
        shape: array.shape().to_vec(),
        data,
        dtype,
    };
    set_constant(
        view,
        patch,
        names,
        (param.node, param.slot),
        param.value,
        new,
    )
}

fn fold_linear(
    view: &View,
    linear: &Linear,
    affine: &Affine,
    patch: &mut Patch,
    names: &mut Names,
) -> Result<(), RewriteError> {
    let unreadable = || RewriteError::Constant(view.name(linear.weight).to_owned());
    let mut weight = linear.load_weight(view).ok_or_else(unreadable)?;
    if let Some(z) = &affine.shift {
        // b' uses the weight as it was: z enters before the division by s.
        let extra = Array1::from(z.clone()).dot(&weight);
        add_to_bias(view, linear, extra, patch, names)?;
    }
    if let Some(s) = &affine.scale {
        for (mut row, &s) in weight.axis_iter_mut(Axis(0)).zip(s) {
            row *= s;
        }
    }
    if affine.scale.is_some() {
        let new = stored_weight(linear, weight);
        set_constant(view, patch, names, (linear.node, 1), linear.weight, new)?;
    }
    let (scaled, shifted) = (affine.scale.is_some(), affine.shift.is_some());
    if let Some(node) = without_factors(view, linear, scaled, shifted) {
        patch.replace(linear.node, node);
    }
    Ok(())
}

/// b' = b + `extra`; a Linear without a bias gets one.
fn add_to_bias(
    view: &View,
    linear: &Linear,
    extra: Array1<f32>,
    patch: &mut Patch,
    names: &mut Names,
) -> Result<(), RewriteError> {
    let dtype = linear.dtype;
    if let Some(bias) = linear.bias {
        let unreadable = || RewriteError::Constant(view.name(bias.value).to_owned());
        let b = linear.load_bias(view).ok_or_else(unreadable)?;
        let stored = view
            .constant(bias.value)
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
            data: (b + extra).to_vec(),
            dtype,
        };
        return set_constant(view, patch, names, (bias.node, bias.slot), bias.value, new);
    }
    let new = NewConstant {
        shape: vec![linear.n],
        data: extra.to_vec(),
        dtype,
    };
    let name = names.derive(view.name(linear.weight), "bias");
    patch.add_initializer(new.into_tensor(&name)?);
    match linear.form {
        LinearForm::Gemm { .. } => patch.rewire(linear.node, 2, name),
        LinearForm::MatMul => {
            let output = view.output(linear.node, 0).map_or("", |v| view.name(v));
            let product = names.derive(output, "product");
            let add = names.derive(&linear.name, "bias");
            patch.rename_output(linear.node, 0, product.clone());
            patch.insert_after(
                linear.node,
                make_node("Add", &add, &[&product, &name], &[output], vec![]),
            );
        }
    }
    Ok(())
}

/// y = y' s + z for the readers that are no Linears. They keep the name y; the norm writes y' under a new one.
fn restore(
    view: &View,
    norm: &Norm,
    site: &Site,
    affine: &Affine,
    patch: &mut Patch,
    names: &mut Names,
) -> Result<(), RewriteError> {
    let original = view.name(site.value);
    let migrated = names.derive(original, "migrated");
    let slot = view.producer(site.value).map_or(0, |(_, slot)| slot);
    patch.rename_output(norm.last, slot, migrated.clone());
    for &(node, input) in &site.absorb {
        patch.rewire(node, input, migrated.clone());
    }
    let dtype = read(view, norm.gamma)?.1;
    let steps = [
        ("Mul", "restore_scale", &affine.scale),
        ("Add", "restore_shift", &affine.shift),
    ];
    let steps: Vec<_> = steps
        .into_iter()
        .filter_map(|(op, what, v)| Some((op, what, v.as_ref()?)))
        .collect();
    let mut current = migrated;
    for (i, (op, what, values)) in steps.iter().enumerate() {
        let constant = names.derive(original, what);
        let new = NewConstant {
            shape: vec![values.len()],
            data: values.to_vec(),
            dtype,
        };
        patch.add_initializer(new.into_tensor(&constant)?);
        let output = if i + 1 == steps.len() {
            original.to_owned()
        } else {
            names.derive(original, &format!("{what}d"))
        };
        let node = names.derive(&norm.name, what);
        patch.insert_after(
            norm.last,
            make_node(op, &node, &[&current, &constant], &[&output], vec![]),
        );
        current = output;
    }
    Ok(())
}
