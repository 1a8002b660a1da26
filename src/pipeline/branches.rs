//! One decision for Linears of different branches that have the same weight: one constant, or two of the same elements
//! (exporters name a constant anew in every export).
//!
//! The two branches of a merged decoder are one network run in two ways. Were shift and scale chosen per branch, every
//! weight would be written twice. So sites whose Linears share weights across branches are decided together, by the
//! tokens of both; a branch that no calibration data takes has the decisions of the other.

use std::collections::BTreeMap;

use ndarray::{Array2, Axis, concatenate};

use super::blocks::Blocks;
use crate::calibrate::{ChannelStats, FoldStats};
use crate::graph::branches::branch_of_nodes;
use crate::graph::{ValueId, View};
use crate::recognise::Recognised;
use crate::site::{Place, Sink, Site, Trace};

impl Blocks {
    /// Finds sites that must be decided together, and gives them the statistics of all of them. Linears of which
    /// nothing is known are skipped. Returns what a reader should know.
    pub fn join_branches(
        &mut self,
        view: &View,
        statistics: &mut BTreeMap<String, ChannelStats>,
        extra_nodes: bool,
    ) -> Vec<String> {
        let branches = branch_of_nodes(view.model());
        if branches.iter().all(Option::is_none) {
            return Vec::new();
        }
        let missing: Vec<usize> = (0..self.sites.len())
            .filter(|&i| !statistics.contains_key(&self.values[i]))
            .filter(|&i| self.selected(&self.sites[i]).next().is_some())
            .collect();
        let same = Equals::of(view);
        for group in self.groups(&branches, &same) {
            self.join(&group, &same, statistics, extra_nodes);
        }
        // Per branch: Linears that took the decisions of others, and Linears without any.
        let mut silent: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for i in missing {
            let linears = self.sites[i].linears.clone();
            let node = self.found.linears[linears[0]].node;
            let branch = branches[node.0].as_deref().unwrap_or("a branch");
            let count = silent.entry(branch).or_default();
            if statistics.contains_key(&self.values[i]) {
                count.0 += linears.len();
                continue;
            }
            count.1 += linears.len();
            let reason =
                format!("no calibration data takes the {branch}, and no other has its weight");
            for l in linears {
                self.skipped[l].get_or_insert(reason.clone());
            }
        }
        let note = |(branch, (taken, left)): (&str, (usize, usize))| {
            format!(
                "no calibration data takes the {branch}: {taken} of its Linears take the decisions of those with \
                 the same weights, {left} stay in float"
            )
        };
        silent.into_iter().map(note).collect()
    }

    /// Sites that are connected by weights of Linears in different branches.
    fn groups(&self, branches: &[Option<String>], same: &Equals) -> Vec<Vec<usize>> {
        let mut readers: BTreeMap<ValueId, Vec<(usize, &str)>> = BTreeMap::new();
        for (i, site) in self.sites.iter().enumerate() {
            for linear in self.selected(site) {
                if let Some(branch) = &branches[linear.node.0] {
                    let weight = same.first(linear.weight);
                    readers.entry(weight).or_default().push((i, branch));
                }
            }
        }
        let mut leader: Vec<usize> = (0..self.sites.len()).collect();
        for readers in readers.values() {
            let (first, branch) = readers[0];
            if readers.iter().all(|(_, b)| *b == branch) {
                continue;
            }
            for &(other, _) in readers {
                let (a, b) = (leader[first], leader[other]);
                let (low, high) = (a.min(b), a.max(b));
                leader
                    .iter_mut()
                    .filter(|l| **l == high)
                    .for_each(|l| *l = low);
            }
        }
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (site, &leader) in leader.iter().enumerate() {
            groups.entry(leader).or_default().push(site);
        }
        groups.into_values().filter(|g| g.len() > 1).collect()
    }

    fn join(
        &mut self,
        group: &[usize],
        equal: &Equals,
        statistics: &mut BTreeMap<String, ChannelStats>,
        extra_nodes: bool,
    ) {
        let first = |i: usize| &self.found.linears[self.sites[i].linears[0]];
        let alike = |&i: &usize| {
            let (a, b) = (first(group[0]), first(i));
            a.k == b.k && a.channels_last() == b.channels_last()
        };
        let channels_last = first(group[0]).channels_last();
        if !group.iter().all(alike) {
            return;
        }
        let known = group
            .iter()
            .filter_map(|&i| statistics.get(&self.values[i]));
        let Some(merged) = known.cloned().reduce(merge) else {
            return;
        };
        for &i in group {
            let rank = statistics
                .get(&self.values[i])
                .map_or(merged.rank, |s| s.rank);
            let merged = ChannelStats {
                rank,
                ..merged.clone()
            };
            statistics.insert(self.values[i].clone(), merged);
        }
        let shift = group.iter().all(|&i| self.sites[i].allow_shift);
        let same = |&i: &usize| same_way(&self.found, equal, &self.sites[group[0]], &self.sites[i]);
        if !group.iter().all(same) {
            let reason = "its way to constants differs between the branches".to_owned();
            for &i in group {
                self.sites[i].sink = match extra_nodes && channels_last {
                    true => Sink::Explicit(reason.clone()),
                    false => Sink::None(reason.clone()),
                };
                self.sites[i].allow_shift = false;
            }
        } else {
            group
                .iter()
                .for_each(|&i| self.sites[i].allow_shift = shift);
        }
        // The one that more is known of decides.
        let most = group
            .iter()
            .copied()
            .max_by_key(|&i| (self.selected(&self.sites[i]).count(), std::cmp::Reverse(i)));
        for &i in group {
            self.leaders.insert(i, most.unwrap_or(i));
        }
    }
}

/// Whether an affine of two sites goes into the same kind of constants, so that one decision fits both.
fn same_way(found: &Recognised, equal: &Equals, a: &Site, b: &Site) -> bool {
    match (&a.sink, &b.sink) {
        (Sink::Norm(_), Sink::Norm(_)) => true,
        (Sink::Explicit(_), Sink::Explicit(_)) | (Sink::None(_), Sink::None(_)) => true,
        (Sink::Traced(a), Sink::Traced(b)) => {
            a.ties == b.ties && constants(found, equal, a) == constants(found, equal, b)
        }
        _ => false,
    }
}

/// The constants that a trace ends at.
fn constants(found: &Recognised, equal: &Equals, trace: &Trace) -> Vec<ValueId> {
    let constant = |place: &Place| match place {
        Place::Linear(l) => found.linears[*l].weight,
        Place::Norm(n) => found.norms[*n].gamma.value,
        Place::Constant { value, .. } => *value,
    };
    trace
        .folds
        .iter()
        .map(|f| equal.first(constant(&f.place)))
        .collect()
}

/// Constants of the same elements.
struct Equals(BTreeMap<ValueId, ValueId>);

impl Equals {
    fn of(view: &View) -> Self {
        let mut first: BTreeMap<(&[i64], i32, &[u8]), ValueId> = BTreeMap::new();
        let mut equal = BTreeMap::new();
        for tensor in &view.graph().initializer {
            if let (Some(value), Some(data)) = (view.value(tensor.name()), &tensor.raw_data) {
                let key = (tensor.dims.as_slice(), tensor.data_type(), data.as_ref());
                equal.insert(value, *first.entry(key).or_insert(value));
            }
        }
        Equals(equal)
    }

    /// The first constant of the same elements.
    fn first(&self, value: ValueId) -> ValueId {
        self.0.get(&value).copied().unwrap_or(value)
    }
}

/// Statistics of the tokens of both.
fn merge(a: ChannelStats, b: ChannelStats) -> ChannelStats {
    let rank = a.rank;
    let ([a0, a1], [b0, b1]) = (a.folds, b.folds);
    ChannelStats {
        rank,
        folds: [merge_folds(&a0, &b0), merge_folds(&a1, &b1)],
    }
}

fn merge_folds(a: &FoldStats, b: &FoldStats) -> FoldStats {
    let pairs = |f: fn(f32, f32) -> f32, a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(x, y)| f(*x, *y)).collect()
    };
    // As many tokens as the larger sample, in proportion to what they stand for.
    let limit = a.sample.nrows().max(b.sample.nrows());
    let share = |f: &FoldStats| {
        let part = f.tokens as f64 / (a.tokens + b.tokens).max(1) as f64;
        thin(&f.sample, (part * limit as f64).ceil() as usize)
    };
    let (x, y) = (share(a), share(b));
    FoldStats {
        min: pairs(f32::min, &a.min, &b.min),
        max: pairs(f32::max, &a.max, &b.max),
        tokens: a.tokens + b.tokens,
        // Sites are joined only if they have the same channels.
        sample: concatenate(Axis(0), &[x.view(), y.view()]).unwrap_or(x),
    }
}

/// `count` rows at equal distances; all of them if there are no more.
fn thin(sample: &Array2<f32>, count: usize) -> Array2<f32> {
    let rows = sample.nrows();
    let count = count.min(rows);
    let chosen: Vec<usize> = (0..count).map(|i| i * rows / count.max(1)).collect();
    sample.select(Axis(0), &chosen)
}
