//! Migration: x becomes x' = ((x − z) / s) R, and everything that computes or reads it is told.
//!
//! ```text
//! norm      γ' = γ / s               β' = (β − z) / s                    γ, β, z, s: [C]
//! Linears   W' = diag(s) W diag(1/s_y)    b' = (b + z W − z_y) / s_y     W: [C, N], b, z_y, s_y: [N]
//! constants c' = (c − z) / s  or  c / s
//! others    x  = x' s + z            by one Mul and one Add, under the old name of x
//! Reshapes  that Linears and others read: a copy hands x' to the Linears
//! R         R = diag(d) (H_Aᵀ ⊗ H_B): d goes into s, the rest is a chain of four nodes before the Linears ([`super::rotate`]),
//!           which read W' = Rᵀ diag(s) W
//! ```
//!
//! where z_y, s_y belong to a site that reads the Linear's own output. Exact in real arithmetic; what float rounding
//! leaves is checked by running both models. Source: Outlier Suppression+, section 4.1 (equations 3 to 6).

mod nodes;

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use crate::graph::{Names, NodeId, Patch, ValueId, View};
use crate::onnx::DataType;
use crate::recognise::{LinearId, Norm, NormParam, Recognised};
use crate::rewrite::RewriteError;
use crate::rewrite::affine::{Affine, Rotated};
use crate::rewrite::linear::{Copies, LinearFold, NewConstant, Precision, set_constant};
use crate::rewrite::rotate::Rotations;
use crate::site::{Fold, Place, Sink, Site};

/// The patches that migrate sites, each with its affine. Sites must have a sink, and a shift needs
/// [`Site::allow_shift`].
///
/// # Errors
/// A constant that does not fit its type after migration, or cannot be read.
pub fn migrate(
    view: &View,
    found: &Recognised,
    sites: &[(&Site, Affine)],
    names: &mut Names,
) -> Result<Vec<Patch>, RewriteError> {
    migrate_in(
        Precision::OfFile,
        &BTreeSet::new(),
        view,
        found,
        sites,
        names,
    )
}

/// [`migrate`] with the constants in the given precision. The weights of Linears that are `replaced` are written in float32 all the same: quantization takes them away, and
/// need not round twice.
///
/// # Errors
/// As [`migrate`].
pub fn migrate_in(
    precision: Precision,
    replaced: &BTreeSet<LinearId>,
    view: &View,
    found: &Recognised,
    sites: &[(&Site, Affine)],
    names: &mut Names,
) -> Result<Vec<Patch>, RewriteError> {
    let mut migration = Migration {
        precision,
        replaced,
        view,
        found,
        names,
        copies: Copies::new(),
        rotations: Rotations::default(),
        patches: Vec::new(),
        linears: BTreeMap::new(),
        constants: BTreeMap::new(),
    };
    for (site, affine) in sites.iter().filter(|(_, affine)| !affine.is_identity()) {
        migration.add(site, affine)?;
    }
    migration.finish()
}

/// What becomes of one constant on the way: element i is c_i' = (c_i + shift_i) / scale_i.
struct ConstantFold {
    value: ValueId,
    shift: Vec<f32>,
    scale: Vec<f32>,
}

/// A Linear or constant can take part in two sites, so their changes are collected and written once.
struct Migration<'a, 'm> {
    precision: Precision,
    replaced: &'a BTreeSet<LinearId>,
    view: &'a View<'m>,
    found: &'a Recognised,
    names: &'a mut Names,
    copies: Copies,
    rotations: Rotations,
    patches: Vec<Patch>,
    linears: BTreeMap<LinearId, LinearFold>,
    constants: BTreeMap<(NodeId, usize), ConstantFold>,
}

impl Migration<'_, '_> {
    fn add(&mut self, site: &Site, affine: &Affine) -> Result<(), RewriteError> {
        let value = self.view.name(site.value);
        if !site.has_sink() {
            return Ok(());
        }
        let mut patch = Patch::new(format!("fold the {} of `{value}`", affine.parts()));
        // The Linears read x', and where a rotation stands before them, what it makes of it.
        let rotated = affine.rotation.as_ref();
        let written = rotated.filter(|r| !r.folds());
        let written = written.map(|r| (r, self.names.derive(value, "rotated")));
        let reads = written.as_ref().map(|(_, name)| name.as_str());
        let mut folded = affine.folded();
        if let Some(order) = rotated.and_then(|r| r.rotation.order()) {
            for &(l, first) in &site.reorder {
                let n = self.found.linears[l].n;
                self.linear(l).columns.reorder(n, first, order);
            }
            // Constants further back still have the columns as they were.
            if matches!(site.sink, Sink::Explicit(_)) {
                folded = folded.reordered(order);
            }
        }
        let before = match folded.is_identity() {
            true => None,
            false => self.fold_into_sink(site, &folded, reads, &mut patch)?,
        };
        if let Some(rotated) = rotated.filter(|r| r.folds()) {
            self.mix_columns(site, rotated);
        }
        if let Some((rotation, name)) = &written {
            let before = before.unwrap_or_else(|| value.to_owned());
            self.rotate(site, rotation, (&before, name), &mut patch)?;
        }
        for &l in &site.linears {
            self.linear(l).absorb(affine);
        }
        self.patches.push(patch);
        Ok(())
    }

    /// R, folded into the columns of the Linear that makes V.
    fn mix_columns(&mut self, site: &Site, rotated: &Rotated) {
        let Sink::Traced(trace) = &site.sink else {
            return;
        };
        for fold in &trace.folds {
            if let Place::Linear(l) = fold.place {
                let inner = rotated.rotation.inner();
                self.linear(l).columns.mix(inner, &fold.channels);
            }
        }
    }

    /// Folds an affine. The Linears will read `reads`, or else x', whose name is returned where it is not that of x.
    fn fold_into_sink(
        &mut self,
        site: &Site,
        affine: &Affine,
        reads: Option<&str>,
        patch: &mut Patch,
    ) -> Result<Option<String>, RewriteError> {
        match &site.sink {
            Sink::None(_) => Ok(None),
            Sink::Norm(norm) => {
                let norm = &self.found.norms[*norm];
                let channels: Vec<_> = (0..norm.channels as u32).map(Some).collect();
                self.fold_norm(norm, affine, &channels, patch)?;
                match site.restore {
                    true => self.restore(norm, site, affine, reads, patch).map(Some),
                    false => Ok(None),
                }
            }
            Sink::Traced(trace) => {
                for fold in &trace.folds {
                    self.fold(fold, affine, patch)?;
                }
                Ok(None)
            }
            Sink::Explicit(_) => self.explicit(site, affine, reads, patch).map(Some),
        }
    }

    fn linear(&mut self, l: LinearId) -> &mut LinearFold {
        let n = self.found.linears[l].n;
        self.linears.entry(l).or_insert_with(|| LinearFold::new(n))
    }

    fn fold(
        &mut self,
        fold: &Fold,
        affine: &Affine,
        patch: &mut Patch,
    ) -> Result<(), RewriteError> {
        match fold.place {
            Place::Linear(l) => {
                let linear = self.linear(l);
                for (column, &channel) in fold.channels.iter().enumerate() {
                    linear.output_scale[column] *= affine.s(channel);
                    if fold.takes_shift {
                        linear.output_shift[column] += affine.z(channel);
                    }
                }
                Ok(())
            }
            Place::Norm(n) => {
                let affine = match fold.takes_shift {
                    true => affine.clone(),
                    false => Affine {
                        scale: affine.scale.clone(),
                        ..Affine::default()
                    },
                };
                self.fold_norm(&self.found.norms[n], &affine, &fold.channels, patch)
            }
            Place::Constant {
                node,
                slot,
                value,
                shift_sign,
            } => {
                let count = fold.channels.len();
                let constant = self
                    .constants
                    .entry((node, slot))
                    .or_insert_with(|| ConstantFold {
                        value,
                        shift: vec![0.0; count],
                        scale: vec![1.0; count],
                    });
                for (i, &channel) in fold.channels.iter().enumerate() {
                    constant.scale[i] *= affine.s(channel);
                    constant.shift[i] += f32::from(shift_sign) * affine.z(channel);
                }
                Ok(())
            }
        }
    }

    /// Writes what has been collected for Linears and constants.
    fn finish(mut self) -> Result<Vec<Patch>, RewriteError> {
        for ((node, slot), fold) in std::mem::take(&mut self.constants) {
            let name = self.view.name(fold.value);
            let mut patch = Patch::new(format!("fold shift and scale into `{name}`"));
            let change = |i: usize, c: f32| (c + fold.shift[i]) / fold.scale[i];
            let param = NormParam {
                node,
                slot,
                value: fold.value,
            };
            self.fold_param(param, &mut patch, change)?;
            self.patches.push(patch);
        }
        // The arithmetic in parallel, names in order.
        let folds = std::mem::take(&mut self.linears);
        let (view, found) = (self.view, self.found);
        let constants = |(l, fold): (LinearId, LinearFold)| {
            let linear = &found.linears[l];
            (l, linear, fold.constants(view, linear))
        };
        let constants: Vec<_> = folds.into_par_iter().map(constants).collect();
        for (l, linear, constants) in constants {
            let mut patch = Patch::new(format!("fold shift and scale into `{}`", linear.name));
            let weight = match self.replaced.contains(&l) {
                true => Precision::Float32,
                false => self.precision,
            };
            let precisions = [weight, self.precision];
            let names = (&mut *self.names, &mut self.copies);
            constants?.write(precisions, self.view, linear, &mut patch, names)?;
            self.patches.push(patch);
        }
        Ok(self.patches)
    }

    /// γ' = γ / s, β' = (β − z) / s, with the site's channel of each of the norm's.
    fn fold_norm(
        &mut self,
        norm: &Norm,
        affine: &Affine,
        channels: &[Option<u32>],
        patch: &mut Patch,
    ) -> Result<(), RewriteError> {
        if affine.scale.is_some() {
            self.fold_param(norm.gamma, patch, |c, gamma| gamma / affine.s(channels[c]))?;
        }
        let beta = |c: usize, b: f32| (b - affine.z(channels[c])) / affine.s(channels[c]);
        match norm.beta {
            Some(param) => self.fold_param(param, patch, beta),
            None if affine.shift.is_some() => {
                // Only a norm with such an input was offered a shift.
                let Some(slot) = norm.beta_slot else {
                    return Ok(());
                };
                let (_, dtype) = self.read(norm.gamma)?;
                let data = (0..norm.channels).map(|c| beta(c, 0.0)).collect();
                let name = self.names.derive(&norm.name, "beta");
                let new = NewConstant {
                    shape: vec![norm.channels],
                    data,
                    dtype,
                };
                patch.add_initializer(new.into_tensor(&name)?);
                patch.rewire(norm.node, slot, name);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn fold_param(
        &mut self,
        param: NormParam,
        patch: &mut Patch,
        fold: impl Fn(usize, f32) -> f32,
    ) -> Result<(), RewriteError> {
        let (array, dtype) = self.read(param)?;
        let data = array.iter().enumerate().map(|(c, &x)| fold(c, x)).collect();
        let new = NewConstant {
            shape: array.shape().to_vec(),
            data,
            dtype,
        };
        let at = (param.node, param.slot);
        let names = (&mut *self.names, &mut self.copies);
        let value = param.value;
        set_constant(self.precision, self.view, patch, names, at, value, new)
    }

    /// A constant and the type to write it in.
    fn read(&self, param: NormParam) -> Result<(ndarray::ArrayD<f32>, DataType), RewriteError> {
        let constant = self.view.constant(param.value);
        let (array, dtype) = constant
            .and_then(|c| c.into_float())
            .ok_or_else(|| RewriteError::Constant(self.view.name(param.value).to_owned()))?;
        Ok((array, self.precision.of(dtype)))
    }
}
