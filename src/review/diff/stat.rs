//! Counts in place of changes.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::onnx::shown;

use super::Diff;
use super::change::{Kind, Sign};
use super::group::ranges;
use super::style::{Look, Style, shorten};
use super::summary::size;

/// What happened to one kind of block.
#[derive(Default)]
struct Count {
    layers: Vec<usize>,
    signs: [usize; 3],
    what: BTreeMap<String, usize>,
}

impl Diff {
    /// Changes counted by block and by operator, then sizes. Ends with a line feed.
    pub fn stat(&self, style: Style) -> String {
        let mut order: Vec<String> = Vec::new();
        let mut counts: BTreeMap<String, Count> = BTreeMap::new();
        for change in self.changes() {
            let (template, layer) = self.blocks.template(&change.block);
            let template = if template.is_empty() {
                "model".to_owned()
            } else {
                template
            };
            if !counts.contains_key(&template) {
                order.push(template.clone());
            }
            let count = counts.entry(template).or_default();
            count
                .layers
                .extend(layer.filter(|l| !count.layers.contains(l)));
            count.signs[change.sign as usize] += 1;
            let what = match change.kind {
                Kind::Qdq => "Q/DQ".to_owned(),
                Kind::Rotation => "rotation".to_owned(),
                Kind::Node | Kind::Wiring if !change.op.is_empty() => change.op.clone(),
                kind => kind.word().to_owned(),
            };
            *count.what.entry(what).or_default() += 1;
        }
        let most = style.width.map_or(60, |w| (w / 3).max(24));
        let title = |template: &str| {
            let layers = counts.get(template).map(|c| ranges(&c.layers));
            let layers = layers.filter(|l| !l.is_empty());
            let suffix = layers.map_or(String::new(), |l| format!(" (* = {l})"));
            shorten(template, most) + &suffix
        };
        let width = order
            .iter()
            .map(|t| title(t).chars().count())
            .max()
            .unwrap_or(0);
        let mut out = String::new();
        for template in &order {
            let Some(count) = counts.get(template) else {
                continue;
            };
            let mut what: Vec<(&String, &usize)> = count.what.iter().collect();
            what.sort_by(|a, b| b.1.cmp(a.1).then_with(|| a.0.cmp(b.0)));
            let list: Vec<String> = what.iter().map(|(what, n)| format!("{n} {what}")).collect();
            let [added, removed, changed] =
                [Sign::Added, Sign::Removed, Sign::Changed].map(|sign| count.signs[sign as usize]);
            let signs = [
                style.paint(Look::Added, &format!("{:>5}", format!("+{added}"))),
                style.paint(Look::Removed, &format!("{:>5}", format!("-{removed}"))),
                style.paint(Look::Changed, &format!("{:>5}", format!("~{changed}"))),
            ];
            let title = title(template);
            let pad = " ".repeat(width - title.chars().count());
            let mut list = shown(&list.join(", ")).into_owned();
            if let Some(columns) = style.width {
                let room = columns.saturating_sub(width + 21).max(10);
                if list.chars().count() > room {
                    list = list.chars().take(room - 1).collect::<String>() + "…";
                }
            }
            let _ = writeln!(out, " {title}{pad} {}  {list}", signs.concat());
        }
        let _ = writeln!(
            out,
            " nodes {} → {}, weights {} → {}",
            self.nodes.0,
            self.nodes.1,
            size(self.bytes.0),
            size(self.bytes.1)
        );
        out
    }
}
