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

use super::{Group, SiteId, SiteTable};
use crate::calibrate::{ChannelStats, FoldStats};
use crate::graph::branches::branch_of_nodes;
use crate::graph::{ValueId, View};
use crate::recognise::{Linear, LinearId, Recognised};
use crate::site::{Place, Sink, Site, Trace};
use crate::solve::{Fold, Migration, Solution};

/// A branch that no calibration data takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SilentBranch {
    /// In words.
    pub branch: String,
    /// How many of its Linears take the decisions of those with the same weights.
    pub taken: usize,
    /// The Linears of which nothing is known.
    pub left: Vec<LinearId>,
}

/// What the search for shared weights looks at.
struct Shared<'v, 'm> {
    found: &'v Recognised,
    /// Per node the branch it is in.
    branches: &'v [Option<String>],
    roots: Roots<'v, 'm>,
    extra_nodes: bool,
}

impl SiteTable {
    /// Finds sites that must be decided together. A site of which nothing is known gets the statistics of its group;
    /// without a group, its Linears cannot be quantized and leave the table. Returns the branches where that was so.
    pub(crate) fn join_shared(
        &mut self,
        view: &View,
        found: &Recognised,
        extra_nodes: bool,
    ) -> Vec<SilentBranch> {
        let branches = branch_of_nodes(view.model());
        let unknown = |(_, row): &(SiteId, &super::SiteRow)| {
            row.statistics.is_none() && !row.linears.is_empty()
        };
        let missing: Vec<SiteId> = self.iter().filter(unknown).map(|(id, _)| id).collect();
        let shared = Shared {
            found,
            branches: &branches,
            roots: Roots::of(view, &branches),
            extra_nodes,
        };
        for members in self.sharing(&shared) {
            if let Some(group) = self.join(members, &shared) {
                let members = group.members.clone();
                let id = self.groups.push(group);
                members.iter().for_each(|&m| self.rows[m].group = Some(id));
            }
        }
        match branches.iter().all(Option::is_none) {
            true => Vec::new(),
            false => self.silent_branches(missing, &shared),
        }
    }

    /// Per branch how many Linears took the decisions of others, and those that could not.
    fn silent_branches(&mut self, missing: Vec<SiteId>, shared: &Shared) -> Vec<SilentBranch> {
        let mut silent: BTreeMap<&str, SilentBranch> = BTreeMap::new();
        for id in missing {
            let row = &mut self.rows[id];
            let node = shared.found.linears[row.site.linears[0]].node;
            let branch = shared.branches[node.0].as_deref().unwrap_or("a branch");
            let entry = silent.entry(branch).or_default();
            match row.statistics.is_some() {
                true => entry.taken += row.site.linears.len(),
                false => {
                    entry.left.extend(&row.site.linears);
                    row.linears.clear();
                }
            }
        }
        let named = silent.into_iter().map(|(branch, entry)| SilentBranch {
            branch: branch.to_owned(),
            ..entry
        });
        named.collect()
    }

    /// Sites that are connected by weights of their Linears.
    fn sharing(&self, shared: &Shared) -> Vec<Vec<SiteId>> {
        let mut readers: BTreeMap<ValueId, Vec<SiteId>> = BTreeMap::new();
        for (id, row) in self.iter() {
            for linear in row.selected(shared.found) {
                readers.entry(shared.root(linear)).or_default().push(id);
            }
        }
        let mut leader: oxc_index::IndexVec<SiteId, SiteId> =
            self.iter().map(|(id, _)| id).collect();
        for readers in readers.values() {
            for &other in readers {
                let (a, b) = (leader[readers[0]], leader[other]);
                let (low, high) = (a.min(b), a.max(b));
                let joined = leader.iter_mut().filter(|l| **l == high);
                joined.for_each(|l| *l = low);
            }
        }
        let mut groups: BTreeMap<SiteId, Vec<SiteId>> = BTreeMap::new();
        for (site, &leader) in leader.iter_enumerated() {
            groups.entry(leader).or_default().push(site);
        }
        groups.into_values().filter(|g| g.len() > 1).collect()
    }

    /// Makes sites that share weights ready for one decision; `None` if they cannot have one.
    fn join(&mut self, mut members: Vec<SiteId>, shared: &Shared) -> Option<Group> {
        let found = shared.found;
        let first = |table: &Self, i: SiteId| &found.linears[table.rows[i].site.linears[0]];
        let leading = first(self, members[0]);
        let (k, channels_last) = (leading.k, leading.channels_last());
        let alike = |&i: &SiteId| {
            let linear = first(self, i);
            linear.k == k && linear.channels_last() == channels_last
        };
        if !members.iter().all(alike) {
            return None;
        }
        // One network run in two ways: whatever one of them sees, the other may.
        let mut seen = BTreeSet::new();
        let twins = members.iter().all(|&i| {
            let branch = shared.branches[first(self, i).node.0].as_deref();
            branch.is_some() && seen.insert(branch)
        });
        // Folded into one copy of a shared weight and not into another, a decision would make two of it.
        let places = |i: SiteId| shared.places(&self.rows[i].site);
        let same_ways = members.iter().all(|&i| places(i) == places(members[0]));
        if !same_ways {
            self.go_separate_ways(&members, shared.extra_nodes && channels_last);
        }
        let known = |table: &Self, members: &[SiteId]| {
            let known = members.iter().map(|&i| table.rows[i].statistics.as_ref());
            merge(&known.flatten().collect::<Vec<_>>())
        };
        let of_all = known(self, &members)?;
        let all = members.clone();
        // What cannot be migrated keeps the weight as it was; the others share another one.
        members.retain(|&i| self.rows[i].site.has_sink());
        let merged = known(self, &members).unwrap_or_else(|| of_all.clone());
        for &i in &all {
            let rank = self.rows[i].statistics.as_ref().map(|s| s.rank);
            if twins || rank.is_none() {
                self.rows[i].statistics = Some(ChannelStats {
                    rank: rank.unwrap_or(of_all.rank),
                    folds: of_all.folds.clone(),
                });
            }
        }
        self.agree_on_shift(&members, found);
        let leader = members.iter().copied().max_by_key(|&i| {
            let row = &self.rows[i];
            let ties = matches!(&row.site.sink, Sink::Traced(trace) if trace.ties.is_some());
            let free = !matches!(row.site.sink, Sink::Explicit(_));
            (ties, free, row.linears.len(), std::cmp::Reverse(i))
        })?;
        Some(Group {
            statistics: self.tie_all(&members, merged),
            members,
            leader,
        })
    }

    /// The affine of these sites stays with the Linears: by a Mul where that may be inserted.
    fn go_separate_ways(&mut self, members: &[SiteId], explicit: bool) {
        let reason = "the Linears with its weight have other ways to constants".to_owned();
        for &i in members {
            let site = &mut self.rows[i].site;
            site.sink = match explicit {
                true => Sink::Explicit(reason.clone()),
                false => Sink::None(reason.clone()),
            };
            site.allow_shift = false;
        }
    }

    /// A shift for all members or for none: one that has its own Mul can take an Add with it, if there are others for
    /// which the shift is free.
    fn agree_on_shift(&mut self, members: &[SiteId], found: &Recognised) {
        let explicit = |site: &Site| matches!(site.sink, Sink::Explicit(_));
        let has_room = |site: &Site| site.linears.iter().all(|&l| !found.linears[l].odd_bias);
        let mut sites = members.iter().map(|&i| &self.rows[i].site);
        let free = sites.clone().any(|site| !explicit(site));
        let shift =
            free && sites.all(|site| site.allow_shift || (explicit(site) && has_room(site)));
        let members = members.iter();
        members.for_each(|&i| self.rows[i].site.allow_shift = shift);
    }

    /// Statistics in which channels that are tied at any of the members have the extremes of all of them.
    fn tie_all(&self, members: &[SiteId], mut statistics: ChannelStats) -> ChannelStats {
        // Ties of two members can chain; each round joins at least one more channel, or is the last.
        for fold in &mut statistics.folds {
            loop {
                let before = (fold.min.clone(), fold.max.clone());
                for &i in members {
                    (fold.min, fold.max) = tied(&self.rows[i].site, &fold.min, &fold.max);
                }
                if before == (fold.min.clone(), fold.max.clone()) {
                    break;
                }
            }
        }
        statistics
    }
}

impl Shared<'_, '_> {
    /// The constant that stands for a Linear's weight.
    fn root(&self, linear: &Linear) -> ValueId {
        let in_branch = self.branches[linear.node.0].is_some();
        self.roots.root(linear.weight, in_branch)
    }

    /// The weights that the site's decision would be folded into, of those that several Linears share.
    fn places(&self, site: &Site) -> Vec<ValueId> {
        let Sink::Traced(trace) = &site.sink else {
            return Vec::new();
        };
        let places = trace.folds.iter().filter_map(|fold| match fold.place {
            Place::Linear(l) => Some(self.root(&self.found.linears[l])),
            _ => None,
        });
        let shared = |weight: &ValueId| {
            let linears = self.found.linears.iter();
            linears.filter(|l| self.root(l) == *weight).count() > 1
        };
        places.filter(shared).collect()
    }
}

/// The extremes of every channel; channels that are tied have those of all of them, and so get one shift and scale.
pub(in crate::pipeline) fn tied(site: &Site, min: &[f32], max: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut low, mut high) = (min.to_vec(), max.to_vec());
    if let Sink::Traced(Trace {
        ties: Some(ties), ..
    }) = &site.sink
    {
        for (channel, &group) in ties.iter().enumerate() {
            low[group as usize] = low[group as usize].min(min[channel]);
            high[group as usize] = high[group as usize].max(max[channel]);
        }
        for (channel, &group) in ties.iter().enumerate() {
            (low[channel], high[channel]) = (low[group as usize], high[group as usize]);
        }
    }
    (low, high)
}

/// The solution of a member of a group with its own `statistics`: the group's shift, scale and margin, its own ranges.
pub(in crate::pipeline) fn of_member(joint: &Solution, statistics: &ChannelStats) -> Solution {
    let known = statistics.folds.iter().filter(|f| f.sample.nrows() > 0);
    let Some(all) = known.cloned().reduce(|a, b| both(&a, &b)) else {
        return joint.clone();
    };
    let migration = Migration {
        shift: joint.shift.clone(),
        scale: joint.scale.clone(),
        rotation: joint.rotation.clone(),
    };
    let (low, high) = migration.range_of_all(statistics.folds.iter().map(as_fold));
    Solution {
        range: (low * joint.margin, high * joint.margin),
        range_before: Migration::default().range(&all.min, &all.max),
        range_after: (low, high),
        ..joint.clone()
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
    for (mut row, &(_, member, i)) in sample.axis_iter_mut(Axis(0)).zip(&rows) {
        row.assign(&all[member].sample.row(i));
    }
    let places = rows.iter().map(|&(_, member, i)| all[member].places[i]);
    let weight = |&(_, member, i): &(usize, usize, usize)| Some(all[member].weights.as_ref()?[i]);
    Some(FoldStats {
        sample,
        places: places.collect(),
        weights: rows.iter().map(weight).collect(),
        ..merged
    })
}

/// What the solver reads of statistics.
fn as_fold(fold: &FoldStats) -> Fold<'_> {
    Fold {
        min: &fold.min,
        max: &fold.max,
        sample: fold.sample.view(),
        weights: fold.weights.as_deref(),
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
        places: a.places.clone(),
        weights: a.weights.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::branches::FlatModel;
    use crate::onnx::node::{float_value, graph_attr, make_node};
    use crate::onnx::proto::{GraphProto, ModelProto, OperatorSetIdProto, ValueInfoProto};
    use crate::onnx::{DataType, Model, op, tensor};
    use crate::recognise::recognise;
    use crate::site::find_sites;

    /// Both branches multiply x by the same numbers, each by its own copy.
    fn twins() -> FlatModel {
        let branch = |name: &str| {
            let weight = format!("{name}.weight");
            GraphProto {
                node: vec![make_node(
                    op::MatMul,
                    name,
                    &["x", &weight],
                    &[name],
                    vec![],
                )],
                initializer: vec![tensor::from_f32(
                    &weight,
                    &[2, 2],
                    &[1., 2., 3., 4.],
                    DataType::Float,
                )],
                output: vec![float_value(name, &[1, 2])],
                ..GraphProto::default()
            }
        };
        let attributes = vec![
            graph_attr("then_branch", branch("first")),
            graph_attr("else_branch", branch("second")),
        ];
        let mut flag = float_value("flag", &[1]);
        if let Some(crate::onnx::proto::type_proto::Value::TensorType(t)) =
            flag.r#type.as_mut().and_then(|t| t.value.as_mut())
        {
            t.elem_type = Some(DataType::Bool as i32);
        }
        let graph = GraphProto {
            node: vec![make_node(op::If, "choice", &["flag"], &["y"], attributes)],
            input: vec![float_value("x", &[1, 2]), flag],
            output: vec![ValueInfoProto {
                name: Some("y".to_owned()),
                ..ValueInfoProto::default()
            }],
            ..GraphProto::default()
        };
        FlatModel::of(Model {
            proto: ModelProto {
                ir_version: Some(8),
                opset_import: vec![OperatorSetIdProto {
                    domain: None,
                    version: Some(17),
                }],
                graph: Some(graph),
                ..ModelProto::default()
            },
        })
    }

    fn seen(low: f32, high: f32) -> ChannelStats {
        let fold = FoldStats {
            min: vec![low; 2],
            max: vec![high; 2],
            tokens: 1,
            sample: Array2::from_elem((1, 2), high),
            places: vec![(0, 0)],
            weights: None,
        };
        ChannelStats {
            rank: 2,
            folds: [fold.clone(), fold],
        }
    }

    /// One network run in two ways: what one of them has seen, the other may see.
    #[test]
    fn branches_with_the_same_weights_share_what_they_saw() {
        let model = twins();
        let view = model.view();
        let found = recognise(&view);
        assert_eq!(found.linears.len(), 2);
        let sites = find_sites(&view, &found, &BTreeMap::new(), true);
        // Both read x, so they are one site unless each has its own; statistics are per row.
        let mut table = SiteTable::of_rows(
            found
                .linears
                .iter_enumerated()
                .map(|(l, linear)| Site {
                    linears: vec![l],
                    absorb: vec![(linear.node, 0)],
                    ranks: vec![None],
                    ..sites[0].clone()
                })
                .collect(),
            &[],
        );
        table.rows[SiteId::from(0usize)].statistics = Some(seen(-1.0, 2.0));
        table.rows[SiteId::from(1usize)].statistics = Some(seen(-3.0, 1.0));
        assert_eq!(table.join_shared(&view, &found, true), []);
        for (_, row) in table.iter() {
            assert_eq!(row.min_max(), Some((-3.0, 2.0)));
        }
        // A branch that no data takes has the statistics of the other.
        table.rows[SiteId::from(1usize)].statistics = None;
        let silent = table.join_shared(&view, &found, true);
        assert_eq!((silent.len(), silent[0].taken), (1, 1));
        assert_eq!(table.row(SiteId::from(1usize)).min_max(), Some((-3.0, 2.0)));
    }
}
