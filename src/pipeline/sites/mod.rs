//! The table of sites: everything that is known of a value that Linears read, in one row.

mod shared;

use std::collections::BTreeMap;

use oxc_index::{IndexSlice, IndexVec};

use crate::calibrate::ChannelStats;
use crate::graph::View;
use crate::recognise::{Linear, LinearId, Recognised};
use crate::site::Site;

pub(super) use shared::{of_member, tied};

oxc_index::define_index_type! {
    /// A row of a [`SiteTable`].
    pub struct SiteId = u32;
}

oxc_index::define_index_type! {
    /// A group of a [`SiteTable`].
    pub struct GroupId = u32;
}

/// One value that Linears read.
#[derive(Clone, Debug)]
pub(crate) struct SiteRow {
    /// The value, its readers, and where an affine can go.
    pub site: Site,
    /// The value's name.
    pub name: String,
    /// The Linears of the site that are to be quantized, in graph order.
    pub linears: Vec<LinearId>,
    /// What calibration has seen of the value; `None` before it, and where it saw nothing or nothing is to be quantized.
    pub statistics: Option<ChannelStats>,
    /// The sites that it is decided with.
    pub group: Option<GroupId>,
}

/// Sites that are decided together, because their Linears share a weight.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// Ascending.
    pub members: Vec<SiteId>,
    /// The member whose Linears and sink the search works with.
    pub leader: SiteId,
    /// Statistics of the tokens of all members.
    pub statistics: ChannelStats,
}

/// Every site of a model, in graph order.
#[derive(Clone, Debug, Default)]
pub(crate) struct SiteTable {
    rows: IndexVec<SiteId, SiteRow>,
    groups: IndexVec<GroupId, Group>,
}

impl SiteTable {
    /// The sites of a model. Statistics are per value, and a value has its channels on one axis: where a second site has the
    /// value of a first, the reason is given in `skipped` for its Linears.
    pub(super) fn new(
        view: &View,
        sites: Vec<Site>,
        skipped: &mut IndexSlice<LinearId, [Option<String>]>,
    ) -> SiteTable {
        let name = |site: &Site| view.name(site.value).to_owned();
        let names: Vec<String> = sites.iter().map(name).collect();
        for (i, site) in sites.iter().enumerate() {
            if names[..i].contains(&names[i]) {
                let reason = format!("another Linear reads `{}` along its other axis", names[i]);
                let linears = site.linears.iter();
                linears.for_each(|&l| skipped[l] = Some(reason.clone()));
            }
        }
        let row = |(site, name): (Site, String)| {
            let linears = site.linears.iter().copied();
            SiteRow {
                linears: linears.filter(|&l| skipped[l].is_none()).collect(),
                site,
                name,
                statistics: None,
                group: None,
            }
        };
        SiteTable {
            rows: sites.into_iter().zip(names).map(row).collect(),
            groups: IndexVec::new(),
        }
    }

    /// A table of sites and of groups of them, each with its leader.
    #[cfg(test)]
    pub(super) fn of_rows(sites: Vec<Site>, groups: &[(SiteId, Vec<SiteId>)]) -> SiteTable {
        let row = |(i, site): (usize, Site)| SiteRow {
            name: format!("value {i}"),
            linears: site.linears.clone(),
            site,
            statistics: None,
            group: None,
        };
        let mut table = SiteTable {
            rows: sites.into_iter().enumerate().map(row).collect(),
            groups: IndexVec::new(),
        };
        for (leader, members) in groups {
            let fold = || crate::calibrate::FoldStats {
                min: Vec::new(),
                max: Vec::new(),
                tokens: 0,
                sample: ndarray::Array2::zeros((0, 0)),
                places: Vec::new(),
                weights: None,
            };
            let group = table.groups.push(Group {
                members: members.clone(),
                leader: *leader,
                statistics: ChannelStats {
                    rank: 3,
                    folds: [fold(), fold()],
                },
            });
            let members = members.iter();
            members.for_each(|&m| table.rows[m].group = Some(group));
        }
        table
    }

    /// One row.
    pub(super) fn row(&self, id: SiteId) -> &SiteRow {
        &self.rows[id]
    }

    /// Every row with its number.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (SiteId, &SiteRow)> + Clone {
        self.rows.iter_enumerated()
    }

    /// How many sites there are.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The group that a site is decided with.
    pub(super) fn group(&self, id: SiteId) -> Option<&Group> {
        self.rows[id].group.map(|group| &self.groups[group])
    }

    /// The leader of a site's group; without a group the site itself.
    pub(super) fn leader(&self, id: SiteId) -> SiteId {
        self.group(id).map_or(id, |group| group.leader)
    }

    /// Every group.
    pub(super) fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter()
    }

    /// What the search of a site works with: the tokens of all that are decided with it.
    pub(super) fn joint_statistics(&self, id: SiteId) -> Option<&ChannelStats> {
        match self.group(id) {
            Some(group) => Some(&group.statistics),
            None => self.rows[id].statistics.as_ref(),
        }
    }

    /// Whether two sites have Linears of the same weights, in the same order.
    pub(super) fn same_weights(
        &self,
        view: &View,
        found: &Recognised,
        a: SiteId,
        b: SiteId,
    ) -> bool {
        let linears = |id: SiteId| self.rows[id].linears.iter();
        let weights = |id| linears(id).map(|&l| view.derivation(found.linears[l].weight));
        weights(a).eq(weights(b))
    }

    /// The sites without their rows.
    pub(super) fn into_sites(self) -> Vec<Site> {
        self.rows.into_iter().map(|row| row.site).collect()
    }

    /// Hands the statistics of values to the rows that are to be quantized.
    pub(super) fn observe(&mut self, mut statistics: BTreeMap<String, ChannelStats>) {
        for row in self.rows.iter_mut().filter(|row| !row.linears.is_empty()) {
            row.statistics = statistics.remove(&row.name);
        }
    }
}

impl SiteRow {
    /// The Linears that are to be quantized.
    pub(super) fn selected<'a>(
        &'a self,
        found: &'a Recognised,
    ) -> impl Iterator<Item = &'a Linear> {
        self.linears.iter().map(|&l| &found.linears[l])
    }

    /// The range of the value over all calibration tokens.
    pub(super) fn min_max(&self) -> Option<(f32, f32)> {
        let folds = &self.statistics.as_ref()?.folds;
        let low = folds.iter().flat_map(|f| &f.min).copied();
        let high = folds.iter().flat_map(|f| &f.max).copied();
        Some((
            low.reduce(f32::min).unwrap_or(0.0),
            high.reduce(f32::max).unwrap_or(0.0),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::ValueId;
    use crate::site::Sink;

    #[test]
    fn a_member_of_a_group_is_decided_by_all() {
        let site = |i: usize| Site {
            value: ValueId(i),
            sink: Sink::None(String::new()),
            linears: vec![i.into()],
            absorb: Vec::new(),
            copies: Vec::new(),
            ranks: vec![None],
            restore: false,
            allow_shift: false,
            mixable: None,
            reorder: Vec::new(),
        };
        let ids: Vec<SiteId> = (0..3usize).map(SiteId::from).collect();
        let groups = [(ids[2], vec![ids[0], ids[2]])];
        let table = SiteTable::of_rows((0..3).map(site).collect(), &groups);
        assert_eq!(table.len(), 3);
        let leaders: Vec<SiteId> = ids.iter().map(|&id| table.leader(id)).collect();
        assert_eq!(leaders, [ids[2], ids[1], ids[2]]);
        // Nothing was seen of the values themselves.
        let known = ids.iter().map(|&id| table.joint_statistics(id).is_some());
        assert_eq!(known.collect::<Vec<_>>(), [true, false, true]);
        assert!(ids.iter().all(|&id| table.row(id).min_max().is_none()));
    }
}
