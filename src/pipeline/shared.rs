//! One decision for Linears that have the same weight, so that it stays one weight.
//!
//! A network may apply the same weights again and again (ALBERT's twelve layers, two towers of a retriever), and the two
//! branches of a merged decoder are one network run in two ways. Were shift and scale chosen per site, every such weight
//! would be written once for each. So sites whose Linears share a weight get one shift and scale, searched on the tokens
//! of all of them, which each folds where it can. The range that the activation is quantized with costs nothing, and
//! stays a site's own.
//!
//! Across branches, two constants of the same elements count as one (exporters name a constant anew in every export), and
//! a branch that no calibration data takes has the decisions and ranges of the other. Inside of one graph two constants
//! of the same elements are two already, and stay free.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::{Array2, Axis};

use super::blocks::Blocks;
use super::search::tied;
use crate::calibrate::{ChannelStats, FoldStats};
use crate::graph::branches::branch_of_nodes;
use crate::graph::{ValueId, View};
use crate::recognise::Linear;
use crate::site::{Place, Sink, Site};
use crate::solve::{Fold, Migration, Solution};

/// Sites that are decided together.
pub(crate) struct Group {
    /// Indices into `Blocks::sites`, ascending.
    pub members: Vec<usize>,
    /// The member whose Linears and sink the search works with.
    pub leader: usize,
    /// Statistics of the tokens of all members.
    pub statistics: ChannelStats,
}

impl Blocks {
    /// Finds sites that must be decided together. A site of which nothing is known gets the statistics of its group;
    /// without a group, its Linears are skipped. Returns what a reader should know.
    pub fn join_shared(
        &mut self,
        view: &View,
        statistics: &mut BTreeMap<String, ChannelStats>,
        extra_nodes: bool,
    ) -> Vec<String> {
        let branches = branch_of_nodes(view.model());
        let missing: Vec<usize> = (0..self.sites.len())
            .filter(|&i| !statistics.contains_key(&self.values[i]))
            .filter(|&i| self.selected(&self.sites[i]).next().is_some())
            .collect();
        let roots = Roots::of(view, &branches);
        for members in self.sharing(&branches, &roots) {
            let group = self.join(members, (&branches, &roots), statistics, extra_nodes);
            self.groups.extend(group);
        }
        if branches.iter().all(Option::is_none) {
            return Vec::new();
        }
        self.note_silent(missing, &branches, statistics)
    }

    /// Says per branch how many Linears took the decisions of others, and skips those without any.
    fn note_silent(
        &mut self,
        missing: Vec<usize>,
        branches: &[Option<String>],
        statistics: &BTreeMap<String, ChannelStats>,
    ) -> Vec<String> {
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

    /// Sites that are connected by weights of their Linears.
    fn sharing(&self, branches: &[Option<String>], roots: &Roots) -> Vec<Vec<usize>> {
        let mut readers: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
        for (i, site) in self.sites.iter().enumerate() {
            for linear in self.selected(site) {
                let branch = branches[linear.node.0].is_some();
                let root = roots.root(linear.weight, branch);
                readers.entry(root).or_default().push(i);
            }
        }
        let mut leader: Vec<usize> = (0..self.sites.len()).collect();
        for readers in readers.values() {
            for &other in readers {
                let (a, b) = (leader[readers[0]], leader[other]);
                let (low, high) = (a.min(b), a.max(b));
                let joined = leader.iter_mut().filter(|l| **l == high);
                joined.for_each(|l| *l = low);
            }
        }
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (site, &leader) in leader.iter().enumerate() {
            groups.entry(leader).or_default().push(site);
        }
        groups.into_values().filter(|g| g.len() > 1).collect()
    }

    /// Makes sites that share weights ready for one decision; `None` if they cannot have one.
    fn join(
        &mut self,
        mut members: Vec<usize>,
        (branches, roots): (&[Option<String>], &Roots),
        statistics: &mut BTreeMap<String, ChannelStats>,
        extra_nodes: bool,
    ) -> Option<Group> {
        let first = |i: usize| &self.found.linears[self.sites[i].linears[0]];
        let (k, channels_last) = (first(members[0]).k, first(members[0]).channels_last());
        let alike = |&i: &usize| first(i).k == k && first(i).channels_last() == channels_last;
        if !members.iter().all(alike) {
            return None;
        }
        // One network run in two ways: whatever one of them sees, the other may.
        let mut seen = BTreeSet::new();
        let twins = members.iter().all(|&i| {
            let branch = branches[first(i).node.0].as_deref();
            branch.is_some() && seen.insert(branch)
        });
        // Folded into one copy of a shared weight and not into another, a decision would make two of it.
        let places = |i: &usize| self.shared_places(&self.sites[*i], branches, roots);
        let same_ways = members.iter().all(|i| places(i) == places(&members[0]));
        if !same_ways {
            let reason = "the Linears with its weight have other ways to constants".to_owned();
            for &i in &members {
                self.sites[i].sink = match extra_nodes && channels_last {
                    true => Sink::Explicit(reason.clone()),
                    false => Sink::None(reason.clone()),
                };
                self.sites[i].allow_shift = false;
            }
        }
        let known = |members: &[usize]| {
            let known = members.iter().map(|&i| statistics.get(&self.values[i]));
            merge(&known.flatten().collect::<Vec<_>>())
        };
        let of_all = known(&members)?;
        let all = members.clone();
        // What cannot be migrated keeps the weight as it was; the others share another one.
        members.retain(|&i| self.sites[i].has_sink());
        let merged = known(&members).unwrap_or_else(|| of_all.clone());
        for &i in &all {
            let name = &self.values[i];
            let rank = statistics.get(name).map(|s| s.rank);
            if twins || rank.is_none() {
                let rank = rank.unwrap_or(of_all.rank);
                let folds = of_all.folds.clone();
                statistics.insert(name.clone(), ChannelStats { rank, folds });
            }
        }
        self.agree_on_shift(&members);
        let leader = members.iter().copied().max_by_key(|&i| {
            let site = &self.sites[i];
            let ties = matches!(&site.sink, Sink::Traced(trace) if trace.ties.is_some());
            let free = !matches!(site.sink, Sink::Explicit(_));
            (
                ties,
                free,
                self.selected(site).count(),
                std::cmp::Reverse(i),
            )
        })?;
        Some(Group {
            statistics: self.tie_all(&members, merged),
            members,
            leader,
        })
    }

    /// A shift for all members or for none: one that has its own Mul can take an Add with it, if there are others for
    /// which the shift is free.
    fn agree_on_shift(&mut self, members: &[usize]) {
        let explicit = |site: &Site| matches!(site.sink, Sink::Explicit(_));
        let has_room = |site: &Site| {
            site.linears
                .iter()
                .all(|&l| !self.found.linears[l].odd_bias)
        };
        let mut sites = members.iter().map(|&i| &self.sites[i]);
        let free = sites.clone().any(|site| !explicit(site));
        let shift =
            free && sites.all(|site| site.allow_shift || (explicit(site) && has_room(site)));
        members
            .iter()
            .for_each(|&i| self.sites[i].allow_shift = shift);
    }

    /// Statistics in which channels that are tied at any of the members have the extremes of all of them.
    fn tie_all(&self, members: &[usize], mut statistics: ChannelStats) -> ChannelStats {
        // Ties of two members can chain; each round joins at least one more channel, or is the last.
        for fold in &mut statistics.folds {
            loop {
                let before = (fold.min.clone(), fold.max.clone());
                for &i in members {
                    (fold.min, fold.max) = tied(&self.sites[i], &fold.min, &fold.max);
                }
                if before == (fold.min.clone(), fold.max.clone()) {
                    break;
                }
            }
        }
        statistics
    }

    /// The weights that the site's decision would be folded into, of those that several Linears share.
    fn shared_places(
        &self,
        site: &Site,
        branches: &[Option<String>],
        roots: &Roots,
    ) -> Vec<ValueId> {
        let root = |l: &Linear| roots.root(l.weight, branches[l.node.0].is_some());
        let Sink::Traced(trace) = &site.sink else {
            return Vec::new();
        };
        let places = trace.folds.iter().filter_map(|fold| match fold.place {
            Place::Linear(l) => Some(root(&self.found.linears[l])),
            _ => None,
        });
        let shared = |weight: &ValueId| {
            let linears = self.found.linears.iter();
            linears.filter(|l| root(l) == *weight).count() > 1
        };
        places.filter(shared).collect()
    }

    /// The leader of every site that is decided with others.
    pub fn leaders(&self) -> BTreeMap<usize, usize> {
        let groups = self.groups.iter();
        groups
            .flat_map(|g| g.members.iter().map(|&i| (i, g.leader)))
            .collect()
    }

    /// The group that a site is decided with.
    pub fn group(&self, site: usize) -> Option<&Group> {
        self.groups.iter().find(|g| g.members.contains(&site))
    }

    /// Whether two sites have Linears of the same weights, in the same order.
    pub fn same_weights(&self, view: &View, a: usize, b: usize) -> bool {
        let linears = |i: usize| self.selected(&self.sites[i]);
        let weights = |i: usize| linears(i).map(|l| view.derivation(l.weight));
        weights(a).eq(weights(b))
    }
}

impl Group {
    /// The solution of a member with its own `statistics`: the group's shift, scale and margin, its own ranges.
    pub fn of_member(&self, joint: &Solution, statistics: &ChannelStats) -> Solution {
        let known = statistics.folds.iter().filter(|f| f.sample.nrows() > 0);
        let Some(all) = known.cloned().reduce(|a, b| both(&a, &b)) else {
            return joint.clone();
        };
        let migration = super::quantize::migration(joint);
        let (low, high) = migration.range_of_all(statistics.folds.iter().map(as_fold));
        Solution {
            range: (low * joint.margin, high * joint.margin),
            range_before: Migration::default().range(&all.min, &all.max),
            range_after: (low, high),
            ..joint.clone()
        }
    }
}

/// Which constant stands for a weight.
struct Roots<'v, 'm> {
    view: &'v View<'m>,
    /// The first constant of the same elements; empty without branches.
    equal: BTreeMap<ValueId, ValueId>,
}

impl<'v, 'm> Roots<'v, 'm> {
    fn of(view: &'v View<'m>, branches: &[Option<String>]) -> Self {
        let mut first: BTreeMap<(&[i64], i32, &[u8]), ValueId> = BTreeMap::new();
        let mut equal = BTreeMap::new();
        let any = branches.iter().any(Option::is_some);
        for tensor in view.graph().initializer.iter().filter(|_| any) {
            if let (Some(value), Some(data)) = (view.value(tensor.name()), &tensor.raw_data) {
                let key = (tensor.dims.as_slice(), tensor.data_type(), data.as_ref());
                equal.insert(value, *first.entry(key).or_insert(value));
            }
        }
        Roots { view, equal }
    }

    /// The constant that stands for `weight`.
    fn root(&self, weight: ValueId, in_branch: bool) -> ValueId {
        let origin = self.view.origin(weight);
        match self.equal.get(&origin) {
            Some(first) if in_branch => *first,
            _ => origin,
        }
    }
}

/// Statistics of the tokens of all; `None` of nothing.
fn merge(all: &[&ChannelStats]) -> Option<ChannelStats> {
    let fold = |i: usize| merge_folds(&all.iter().map(|s| &s.folds[i]).collect::<Vec<_>>());
    Some(ChannelStats {
        rank: all.first()?.rank,
        folds: [fold(0)?, fold(1)?],
    })
}

fn merge_folds(all: &[&FoldStats]) -> Option<FoldStats> {
    let merged = all.iter().copied().cloned().reduce(|a, b| both(&a, &b))?;
    // As many tokens as the largest sample, in proportion to what they stand for.
    let limit = all.iter().map(|f| f.sample.nrows()).max()?;
    let mut rows = Vec::new();
    for (member, fold) in all.iter().enumerate() {
        let share = fold.tokens as f64 / merged.tokens.max(1) as f64;
        let have = fold.sample.nrows();
        let count = have.min((share * limit as f64).ceil() as usize);
        // At equal distances. Ordered by place, so that any stretch of the result has tokens of all members.
        rows.extend((0..count).map(|i| (i * limit / count, member, i * have / count)));
    }
    rows.sort_unstable();
    let mut sample = Array2::zeros((rows.len(), merged.min.len()));
    for (mut row, (_, member, i)) in sample.axis_iter_mut(Axis(0)).zip(rows) {
        row.assign(&all[member].sample.row(i));
    }
    Some(FoldStats { sample, ..merged })
}

/// What the solver reads of statistics.
pub(super) fn as_fold(fold: &FoldStats) -> Fold<'_> {
    Fold {
        min: &fold.min,
        max: &fold.max,
        sample: fold.sample.view(),
    }
}

/// Extremes and number of the tokens of both; the sample of the first.
fn both(a: &FoldStats, b: &FoldStats) -> FoldStats {
    let pairs = |f: fn(f32, f32) -> f32, a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(x, y)| f(*x, *y)).collect()
    };
    FoldStats {
        min: pairs(f32::min, &a.min, &b.min),
        max: pairs(f32::max, &a.max, &b.max),
        tokens: a.tokens + b.tokens,
        sample: a.sample.clone(),
    }
}
