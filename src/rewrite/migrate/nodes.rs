//! The nodes that migration adds: the exact inverse for other readers, a Mul and an Add on the way to the Linears, a rotation.

use super::Migration;
use crate::graph::{NodeId, Patch};
use crate::onnx::DataType;
use crate::onnx::node::make_node;
use crate::onnx::op;
use crate::recognise::Norm;
use crate::rewrite::RewriteError;
use crate::rewrite::affine::{Affine, Rotated};
use crate::rewrite::linear::NewConstant;
use crate::site::{Sink, Site};

impl Migration<'_, '_> {
    /// y = y' s + z for the readers that are no Linears. They keep the name y; the norm writes y' under a new one.
    pub(super) fn restore(
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
    pub(super) fn explicit(
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
    pub(super) fn rotate(
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
}
