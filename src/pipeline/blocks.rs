//! What a run works on: the recognised blocks of a model, and which of its Linears are to be quantized.

use super::shared::Group;
use crate::graph::{ValueId, View};
use crate::recognise::{Linear, Recognised, recognise};
use crate::site::{Shapes, Sink, Site, find_sites, wanted_shapes};
use crate::{Error, Options};

/// Why a Linear is left in float that no input of the model reaches, as one over an embedding of relative positions.
const COMPUTED_ONCE: &str =
    "its input is the same in every run, so runtimes compute it once, when they load the model";

/// What was recognised in a model.
pub(crate) struct Blocks {
    pub found: Recognised,
    pub sites: Vec<Site>,
    /// The name of each site's value.
    pub values: Vec<String>,
    /// The number of axes of each site's value; empty before calibration, 0 where no data reaches it.
    pub ranks: Vec<usize>,
    /// Why a Linear is left in float, per Linear.
    pub skipped: Vec<Option<String>>,
    /// Sites that are decided together; no site is in two.
    pub groups: Vec<Group>,
}

impl Blocks {
    /// Finds norms, Linears and sites, and which Linears are to be quantized.
    ///
    /// # Errors
    /// No Linear to quantize; NaN or infinity in a constant of one that is, or of the norm before it.
    pub fn find(
        view: &View,
        options: &Options,
        shapes: impl FnOnce(&[String]) -> Result<Shapes, Error>,
    ) -> Result<Blocks, Error> {
        let found = recognise(view);
        let shapes = shapes(&wanted_shapes(view, &found))?;
        let sites = find_sites(view, &found, &shapes, options.extra_nodes);
        let fixed = view.fixed_values();
        let reason = |linear: &Linear| match options.refuses(&linear.name) {
            None if fixed.contains(&linear.input) => Some(COMPUTED_ONCE),
            refused => refused,
        };
        let linears = found.linears.iter();
        let mut skipped: Vec<_> = linears.map(|l| reason(l).map(str::to_owned)).collect();
        let value = |site: &Site| view.name(site.value).to_owned();
        let values: Vec<String> = sites.iter().map(value).collect();
        for (i, site) in sites.iter().enumerate() {
            // Statistics are per value, and a value has its channels on one axis.
            if values[..i].contains(&values[i]) {
                let reason = format!("another Linear reads `{}` along its other axis", values[i]);
                site.linears
                    .iter()
                    .for_each(|&l| skipped[l] = Some(reason.clone()));
            }
        }
        let blocks = Blocks {
            found,
            sites,
            values,
            ranks: Vec::new(),
            skipped,
            groups: Vec::new(),
        };
        blocks.check_any()?;
        blocks.check_constants(view)?;
        Ok(blocks)
    }

    /// Refuses to go on without a Linear to quantize.
    pub fn check_any(&self) -> Result<(), Error> {
        if self.skipped.iter().all(Option::is_some) {
            return Err(Error::NothingToQuantize(self.nothing_because()));
        }
        Ok(())
    }

    /// The Linears of a site that are to be quantized.
    pub fn selected<'a>(&'a self, site: &'a Site) -> impl Iterator<Item = &'a Linear> {
        self.selected_indices(site).map(|l| &self.found.linears[l])
    }

    /// Their indices into `Recognised::linears`.
    pub fn selected_indices<'a>(&'a self, site: &'a Site) -> impl Iterator<Item = usize> {
        let linears = site.linears.iter().copied();
        linears.filter(|&l| self.skipped[l].is_none())
    }

    /// NaN and infinity are looked for here, before the model is run: there they would appear somewhere downstream,
    /// under the name of a value that no one can trace.
    fn check_constants(&self, view: &View) -> Result<(), Error> {
        for site in &self.sites {
            let mut linears = self.selected(site).peekable();
            if linears.peek().is_none() {
                continue;
            }
            if let Sink::Norm(norm) = site.sink {
                let norm = &self.found.norms[norm];
                check_finite(view, norm.gamma.value)?;
                norm.beta.map_or(Ok(()), |b| check_finite(view, b.value))?;
            }
            for linear in linears {
                check_finite(view, linear.weight)?;
                linear
                    .bias
                    .map_or(Ok(()), |b| check_finite(view, b.value))?;
            }
        }
        Ok(())
    }

    fn nothing_because(&self) -> String {
        let misses = self
            .found
            .near_misses
            .iter()
            .map(|m| format!("{}: {}", m.name, m.reason));
        let skipped = self.found.linears.iter().zip(&self.skipped);
        let skipped = skipped.filter_map(|(l, r)| Some(format!("{}: {}", l.name, r.as_ref()?)));
        let reasons: Vec<String> = skipped.chain(misses).collect();
        match reasons.len() {
            0 => "the graph has no MatMul or Gemm with a constant weight".to_owned(),
            n if n > 3 => format!("{} (and {} more)", reasons[..3].join("; "), n - 3),
            _ => reasons.join("; "),
        }
    }
}

fn check_finite(view: &View, value: ValueId) -> Result<(), Error> {
    let constant = view.constant(value).and_then(|c| c.into_float());
    let Some((array, _)) = constant else {
        return Ok(());
    };
    let bad = array.iter().position(|x| !x.is_finite());
    bad.map_or(Ok(()), |at| {
        Err(Error::NotFinite {
            constant: view.name(value).to_owned(),
            at,
            value: array.iter().nth(at).copied().unwrap_or(f32::NAN),
        })
    })
}
