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

use std::collections::{BTreeMap, BTreeSet};

use super::RewriteError;
use super::affine::{Affine, Rotated};
use super::linear::{Copies, LinearFold, NewConstant, Precision, set_constant};
use super::rotate::Rotations;
use crate::graph::{Names, NodeId, Patch, ValueId, View};
use crate::onnx::DataType;
use crate::onnx::node::make_node;
use crate::onnx::op;
use crate::recognise::{LinearId, Norm, NormParam, Recognised};
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
        for (l, fold) in std::mem::take(&mut self.linears) {
            let linear = &self.found.linears[l];
            let mut patch = Patch::new(format!("fold shift and scale into `{}`", linear.name));
            let weight = match self.replaced.contains(&l) {
                true => Precision::Float32,
                false => self.precision,
            };
            let precisions = [weight, self.precision];
            let names = (&mut *self.names, &mut self.copies);
            fold.write(precisions, self.view, linear, &mut patch, names)?;
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

    /// y = y' s + z for the readers that are no Linears. They keep the name y; the norm writes y' under a new one.
    fn restore(
        &mut self,
        norm: &Norm,
        site: &Site,
        affine: &Affine,
        reads: Option<&str>,
        patch: &mut Patch,
    ) -> Result<String, RewriteError> {
        let original = self.view.name(site.value);
        let migrated = self.names.derive(original, "migrated");
        let absorbed = reads.unwrap_or(&migrated).to_owned();
        let slot = self.view.producer(site.value).map_or(0, |(_, slot)| slot);
        patch.rename_output(norm.last, slot, migrated.clone());
        self.hand_to_linears(site, &absorbed, patch);
        let steps = [
            (op::Mul, "restore_scale", affine.scale.clone()),
            (op::Add, "restore_shift", affine.shift.clone()),
        ];
        let dtype = self.read(norm.gamma)?.1;
        let nodes = self.chain(
            steps,
            (&norm.name, original),
            migrated.clone(),
            original,
            dtype,
            patch,
        )?;
        nodes
            .into_iter()
            .for_each(|node| patch.insert_after(norm.last, node));
        Ok(migrated)
    }

    /// Makes the Linears read `value`, through copies of the Reshapes that others read too.
    fn hand_to_linears(&mut self, site: &Site, value: &str, patch: &mut Patch) {
        for &(node, input) in &site.absorb {
            patch.rewire(node, input, value);
        }
        for (reshape, readers) in &site.copies {
            let mut copy = self.view.node(*reshape).clone();
            copy.name = Some(self.names.derive(self.view.node_name(*reshape), "migrated"));
            copy.input[0] = value.to_owned();
            let rows = self.names.derive(&copy.output[0], "migrated");
            copy.output[0] = rows.clone();
            patch.insert_after(*reshape, copy);
            for &(node, input) in readers {
                patch.rewire(node, input, rows.clone());
            }
        }
    }

    /// x' = x (1/s) − z/s on the way to the Linears alone.
    fn explicit(
        &mut self,
        site: &Site,
        affine: &Affine,
        reads: Option<&str>,
        patch: &mut Patch,
    ) -> Result<String, RewriteError> {
        let linear = &self.found.linears[site.linears[0]];
        let original = self.view.name(site.value);
        let migrated = self.names.derive(original, "migrated");
        let inverse = affine
            .scale
            .as_ref()
            .map(|s| s.iter().map(|s| 1.0 / s).collect::<Vec<f32>>());
        let offset = affine.shift.as_ref().map(|z| {
            let s = |c: usize| affine.scale.as_ref().map_or(1.0, |s| s[c]);
            z.iter()
                .enumerate()
                .map(|(c, z)| -z / s(c))
                .collect::<Vec<f32>>()
        });
        let steps = [
            (op::Mul, "migrate_scale", inverse),
            (op::Add, "migrate_shift", offset),
        ];
        let names = (linear.name.as_str(), original);
        let nodes = self.chain(
            steps,
            names,
            original.to_owned(),
            &migrated,
            self.precision.of(linear.dtype),
            patch,
        )?;
        let first = self.first_reader(site);
        nodes
            .into_iter()
            .for_each(|node| patch.insert_before(first, node));
        for &(node, input) in &site.absorb {
            patch.rewire(node, input, reads.unwrap_or(&migrated));
        }
        Ok(migrated)
    }

    /// The first node that reads x for the Linears.
    fn first_reader(&self, site: &Site) -> NodeId {
        let first = site.absorb.iter().map(|&(node, _)| node).min();
        first.unwrap_or(self.found.linears[site.linears[0]].node)
    }

    /// The chain that rotates the value `before` to the value `after`, and the Linears' side of it where nothing else has been
    /// folded.
    fn rotate(
        &mut self,
        site: &Site,
        rotated: &Rotated,
        (before, after): (&str, &str),
        patch: &mut Patch,
    ) -> Result<(), RewriteError> {
        let linear = &self.found.linears[site.linears[0]];
        let norm = match site.sink {
            Sink::Norm(norm) => Some(&self.found.norms[norm]),
            _ => None,
        };
        let dtype = match norm {
            Some(norm) => self.read(norm.gamma)?.1,
            None => self.precision.of(linear.dtype),
        };
        let base = norm.map_or(&linear.name, |norm| &norm.name);
        let nodes =
            self.rotations
                .chain(rotated, dtype, (base, before, after), patch, self.names)?;
        let rewires_itself = before != self.view.name(site.value);
        if !rewires_itself {
            self.hand_to_linears(site, after, patch);
        }
        for node in nodes {
            match norm {
                Some(norm) => patch.insert_after(norm.last, node),
                None => patch.insert_before(self.first_reader(site), node),
            }
        }
        Ok(())
    }

    /// Nodes with one constant each, from the value `from` to the value `to`; steps without a constant are left out.
    fn chain(
        &mut self,
        steps: [(&str, &str, Option<Vec<f32>>); 2],
        (node_base, value_base): (&str, &str),
        from: String,
        to: &str,
        dtype: DataType,
        patch: &mut Patch,
    ) -> Result<Vec<crate::onnx::proto::NodeProto>, RewriteError> {
        let steps: Vec<_> = steps
            .into_iter()
            .filter_map(|(op, what, v)| Some((op, what, v?)))
            .collect();
        let count = steps.len();
        let mut nodes = Vec::new();
        let mut current = from;
        for (i, (op, what, data)) in steps.into_iter().enumerate() {
            let constant = self.names.derive(value_base, what);
            let new = NewConstant {
                shape: vec![data.len()],
                data,
                dtype,
            };
            patch.add_initializer(new.into_tensor(&constant)?);
            let output = if i + 1 == count {
                to.to_owned()
            } else {
                self.names.derive(value_base, &format!("{what}d"))
            };
            let node = self.names.derive(node_base, what);
            nodes.push(make_node(
                op,
                &node,
                &[&current, &constant],
                &[&output],
                vec![],
            ));
            current = output;
        }
        Ok(nodes)
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
