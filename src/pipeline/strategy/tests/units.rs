//! What is decided together, and dropped together.

use super::*;
use proptest::prelude::*;

proptest! {
    /// Any decisions, any groups: sites of one leader are one unit, with the outputs that any of them reaches; plain ones
    /// are in none; units that cost or assume most come first, then those that gain least.
    #[test]
    fn groups_stay_together(
        sites in prop::collection::vec((0usize..4, -5i32..5, prop::option::of(0usize..3), 0usize..3), 1..16),
    ) {
        let sink = |kind: usize| match kind {
            0 => Sink::Explicit(String::new()),
            1 => Sink::Norm(0.into()),
            _ => Sink::None(String::new()),
        };
        let sinks: Vec<Sink> = sites.iter().map(|s| sink(s.0)).collect();
        let members = |group: usize| -> Vec<usize> {
            (0..sites.len()).filter(|&i| sites[i].2 == Some(group)).collect()
        };
        let groups: Vec<Vec<usize>> = (0..3).map(members).filter(|m| !m.is_empty()).collect();
        let led: Vec<(usize, &[usize])> = groups.iter().map(|m| (m[m.len() / 2], &m[..])).collect();
        let table = table(&sinks, &led);
        let mut plan = searched(&table, Format::Qdq);
        for (i, (kind, gain, ..)) in sites.iter().enumerate() {
            let site = plan.sites[SiteId::from(i)].as_mut().unwrap();
            site.found.validated_gain_db = f64::from(*gain);
            match kind {
                2 => {
                    // A margin alone.
                    site.transform = Default::default();
                }
                3 => *site = SitePlan::of(unmigrated(), None),
                _ => {}
            }
        }
        let reaches = sites.iter().map(|s| BTreeSet::from([s.3])).collect();
        let units = crate::pipeline::strategy::units(&plan, &table, &reaches);
        let mut seen: Vec<usize> =
            units.iter().flat_map(|u| u.sites.iter().map(|s| s.index())).collect();
        seen.sort_unstable();
        let decided = (0..sites.len()).filter(|&i| sites[i].0 != 3);
        prop_assert_eq!(seen, decided.collect::<Vec<_>>());
        for unit in &units {
            let leader = table.leader(unit.sites[0]);
            prop_assert!(unit.sites.iter().all(|&s| table.leader(s) == leader));
            let reached: BTreeSet<usize> = unit.sites.iter().map(|s| sites[s.index()].3).collect();
            prop_assert_eq!(&unit.reaches, &reached);
            // 0 a Mul, 2 a margin alone, 3 a norm.
            let kind = |s: &SiteId| [0, 3, 2][sites[s.index()].0];
            prop_assert_eq!(Some(unit.kind), unit.sites.iter().map(kind).min());
            let gain = |s: &SiteId| sites[s.index()].1;
            prop_assert_eq!(Some(unit.gain as i32), unit.sites.iter().map(gain).min());
        }
        let leaders: BTreeSet<SiteId> = units.iter().map(|u| table.leader(u.sites[0])).collect();
        prop_assert_eq!(leaders.len(), units.len());
        let order = |u: &crate::pipeline::strategy::drop::Unit| (u.kind, u.gain as i32);
        prop_assert!(units.windows(2).all(|w| order(&w[0]) <= order(&w[1])));
    }
}
