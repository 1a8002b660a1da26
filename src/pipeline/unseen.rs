//! What tokens of unseen rows cost that are beyond every range of the calibration.

use super::build::Source;
use super::plan::{Plan, SitePlan};
use super::sites::{SiteRow, as_fold};
use crate::solve::tails::{Noise, beyond_db, noise};

/// How many dB below those within the ranges of a plan unseen tokens are ([`crate::solve::tails`]); `None` if nothing is
/// quantized.
pub(super) fn beyond_ranges_db(source: Source, plan: &Plan) -> Option<f64> {
    let prepared = &source.calibrated.prepared;
    let view = prepared.model.view();
    let specs = (&source.options.activation(), &source.options.weight());
    let of_site = |row: &SiteRow, site: &SitePlan| {
        let statistics = row.statistics.as_ref()?;
        let integer = row.linears.iter().filter(|&&l| plan.quantizes(l));
        let weights = integer.map(|&l| prepared.found.linears[l].load_weight(&view));
        let weights: Vec<_> = weights.collect::<Option<_>>()?;
        let weights: Vec<_> = weights.iter().map(|w| w.view()).collect();
        let folds = [0, 1].map(|i| as_fold(&statistics.folds[i]));
        (!weights.is_empty())
            .then(|| noise(&site.transform, site.margin, folds, &weights, specs))
            .flatten()
    };
    let sites = prepared.sites.iter().zip(&plan.sites);
    let sites: Vec<Noise> = sites
        .filter_map(|((_, row), site)| of_site(row, site.as_ref()?))
        .collect();
    (!sites.is_empty()).then(|| beyond_db(sites))
}
