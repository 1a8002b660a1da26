//! Decisions that lower the model's outputs are dropped: if the quantized model is below plain min-max on the held-out
//! rows, over all outputs or clearly in one, models without some of the decisions are made and measured
//! ([`super::subset`] says which), and the best subset is kept.

use std::collections::BTreeMap;

use super::subset::{BUDGET, Trial, choose, mean_sqnr, score, search, spread};
use super::{Blocks, Run, Solutions};
use crate::Error;
use crate::calibrate::{ChannelStats, OutputComparison};
use crate::onnx::Model;
use crate::site::Sink;
use crate::solve::{ShiftKind, Solution};

/// What models are made from.
pub(crate) struct Source<'a> {
    pub model: &'a Model,
    pub blocks: &'a Blocks,
    pub statistics: &'a BTreeMap<String, ChannelStats>,
    pub solutions: &'a Solutions,
}

/// Sites that are decided together.
#[derive(Debug, PartialEq)]
pub(crate) struct Unit {
    kind: usize,
    gain: f64,
    pub sites: Vec<usize>,
}

impl Run<'_> {
    /// Finds a subset of the decisions that is not below plain. Returns its model and how its outputs compare; `None` if
    /// there is none but all of them or nothing.
    pub fn drop_what_hurts(
        &mut self,
        source: &Source,
        all: &[OutputComparison],
        plain: &[OutputComparison],
    ) -> Result<Option<(Model, Vec<OutputComparison>)>, Error> {
        let units = units(source.blocks, source.solutions);
        let kinds: Vec<usize> = units.iter().map(|u| u.kind).collect();
        let score = |outputs: &Vec<OutputComparison>| score(outputs, plain, None);
        let all = all.to_vec();
        let migrated_sites = self.migrated_sites;
        let mut trials = search(&kinds, score(&all), BUDGET, score, |kept| {
            let solutions = without(source.solutions, &units, kept);
            let folded = self.fold(source.model, source.blocks, &solutions)?;
            let model =
                self.quantize(folded.model, source.blocks, source.statistics, &solutions)?;
            let compared = self.compare(&[&model])?.remove(0);
            self.finish_step("verify");
            Ok::<_, Error>(compared)
        })?;
        // Making candidates has counted their sites.
        self.migrated_sites = migrated_sites;
        let with = mean_sqnr(&all);
        trials.push(Trial {
            kept: vec![true; units.len()],
            measured: all,
        });
        let chosen = choose(
            &trials,
            score,
            |a| spread(a, plain, plain),
            |a, b| spread(a, b, plain),
        );
        let last = trials.len() - 1;
        let Some(chosen) = chosen.filter(|&i| i != last) else {
            return Ok(None);
        };
        let Trial { kept, measured } = trials.swap_remove(chosen);
        let solutions = without(source.solutions, &units, &kept);
        let folded = self.fold(source.model, source.blocks, &solutions)?;
        match self.check_float(&folded) {
            Err(error @ (Error::FloatCheck { .. } | Error::Rounding { .. })) => {
                self.migrated_sites = migrated_sites;
                let note = format!("no part of the migrations was tried alone: {error}");
                self.report.notes.push(note);
                return Ok(None);
            }
            checked => checked?,
        }
        let model = self.quantize(folded.model, source.blocks, source.statistics, &solutions)?;
        let dropped: Vec<usize> = units
            .iter()
            .zip(&kept)
            .filter(|(_, kept)| !**kept)
            .flat_map(|(unit, _)| unit.sites.iter().copied())
            .collect();
        let others = match dropped.len() {
            1 => String::new(),
            n => format!(" (together with {} other sites)", n - 1),
        };
        let without = mean_sqnr(&measured);
        let reason = format!("dropped after validation: {with:.2} dB -> {without:.2} dB{others}");
        let reasons = dropped.into_iter().map(|site| (site, reason.clone()));
        self.dropped = reasons.collect();
        Ok(Some((model, measured)))
    }
}

/// The decisions that differ from plain min-max, those that belong together as one.
pub(crate) fn units(blocks: &Blocks, solutions: &Solutions) -> Vec<Unit> {
    let decision = |(site, solution): (usize, &Option<Solution>)| {
        let solution = solution.as_ref().filter(|s| !is_plain(s))?;
        let migrates = migrates(solution);
        let kind = match &blocks.sites[site].sink {
            // A margin alone.
            _ if !migrates => 2,
            Sink::Explicit(_) => 0,
            Sink::Traced(_) => 1,
            Sink::Norm(_) | Sink::None(_) => 3,
        };
        let gain = solution.validated_gain_db;
        Some((site, kind, gain))
    };
    let decisions = solutions.iter().enumerate().filter_map(decision);
    grouped(decisions, &blocks.leaders())
}

/// Sites of one leader as one unit, in the order of kind (the one that costs or assumes most first) and then of gain, lowest
/// first.
fn grouped(
    decisions: impl Iterator<Item = (usize, usize, f64)>,
    leaders: &BTreeMap<usize, usize>,
) -> Vec<Unit> {
    let mut units: BTreeMap<usize, Unit> = BTreeMap::new();
    for (site, kind, gain) in decisions {
        let leader = leaders.get(&site).copied().unwrap_or(site);
        let unit = units.entry(leader).or_insert(Unit {
            kind,
            gain,
            sites: Vec::new(),
        });
        unit.sites.push(site);
        unit.kind = unit.kind.min(kind);
        unit.gain = unit.gain.min(gain);
    }
    let mut units: Vec<Unit> = units.into_values().collect();
    units.sort_by(|a, b| a.kind.cmp(&b.kind).then(a.gain.total_cmp(&b.gain)));
    units
}

/// Whether a solution changes the float model.
pub(super) fn migrates(s: &Solution) -> bool {
    s.shift.is_some() || s.scale.is_some() || s.rotation.is_some()
}

pub(super) fn is_plain(solution: &Solution) -> bool {
    !migrates(solution) && solution.range == solution.range_before
}

/// The solutions with plain min-max at the sites of every unit that is not kept.
fn without(solutions: &Solutions, units: &[Unit], kept: &[bool]) -> Solutions {
    let mut solutions = solutions.clone();
    let dropped = units.iter().zip(kept).filter(|(_, kept)| !**kept);
    for site in dropped.flat_map(|(unit, _)| unit.sites.iter().copied()) {
        solutions[site] = solutions[site].take().map(plain);
    }
    solutions
}

/// Plain min-max in place of a solution.
pub(super) fn plain(solution: Solution) -> Solution {
    Solution {
        shift: None,
        scale: None,
        rotation: None,
        range: solution.range_before,
        range_after: solution.range_before,
        threshold: None,
        margin: 1.0,
        shift_kind: ShiftKind::None,
        loss_after: solution.loss_before,
        validated_gain_db: 0.0,
        ..solution
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn migrated(channel: usize) -> Solution {
        Solution {
            shift: None,
            scale: Some(vec![channel as f32 + 2.0]),
            rotation: None,
            range: (-1.5, 1.5),
            range_before: (-4.0, 8.0),
            range_after: (-1.0, 1.0),
            threshold: Some(1.0),
            margin: 1.5,
            shift_kind: ShiftKind::None,
            loss_before: 2.0,
            loss_after: 1.0,
            validated_gain_db: 3.0,
            curve: Vec::new(),
            at_response: false,
        }
    }

    proptest! {
        /// Any decisions, any leaders, any choice: sites of one leader fare alike, and a dropped one has min-max.
        #[test]
        fn groups_stay_together(
            sites in prop::collection::vec((0usize..4, -5i32..5, prop::option::of(0usize..6)), 1..16),
            kept in any::<u32>(),
        ) {
            let leaders: BTreeMap<usize, usize> =
                sites.iter().enumerate().filter_map(|(i, s)| Some((i, s.2?))).collect();
            let decisions = sites.iter().enumerate().map(|(i, s)| (i, s.0, f64::from(s.1)));
            let units = grouped(decisions, &leaders);
            let mut seen: Vec<usize> = units.iter().flat_map(|u| u.sites.clone()).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..sites.len()).collect::<Vec<_>>());
            let order = |u: &Unit| (u.kind, u.gain as i32);
            prop_assert!(units.windows(2).all(|w| order(&w[0]) <= order(&w[1])));

            let kept: Vec<bool> = (0..units.len()).map(|i| kept >> i & 1 == 1).collect();
            let before: Solutions = (0..sites.len()).map(|i| Some(migrated(i))).collect();
            let after = without(&before, &units, &kept);
            for (i, (a, b)) in before.iter().zip(&after).enumerate() {
                let (a, b) = (a.as_ref().unwrap(), b.as_ref().unwrap());
                prop_assert!(a == b || (is_plain(b) && b.range == (-4.0, 8.0)));
                for (j, other) in after.iter().enumerate() {
                    let leader = |i| leaders.get(&i).copied().unwrap_or(i);
                    let alike = is_plain(b) == is_plain(other.as_ref().unwrap());
                    prop_assert!(leader(i) != leader(j) || alike);
                }
            }
        }
    }
}
