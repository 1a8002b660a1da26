//! The sections of the page, in their order. Each is empty if the report has nothing for it.

use std::fmt::Display;

use maud::{Markup, html};

use super::number::number;
use super::outputs::{outputs, work};
use super::parts::{decibels, table};
use super::plot;
use crate::review::{Decision, Energy, LayerError, OutputReport, Report, SiteReport};

/// Every section, in the order of the page.
pub(super) const ALL: [fn(&Report) -> Markup; 13] = [
    summary,
    outputs,
    work,
    layers,
    sites,
    attention,
    metric,
    kept_float,
    lint,
    skipped,
    notes,
    settings,
    reproduction,
];

/// Sites whose plots are shown at once; the others open on a click.
const OPEN: usize = 6;

fn card(name: &str, value: impl Display, small: impl Display) -> Markup {
    html! {
        div { dt { (name) } dd { (maud::display(value)) small { (maud::display(small)) } } }
    }
}

fn summary(report: &Report) -> Markup {
    let quantized = report.linears.iter().filter(|l| l.reason.is_none()).count();
    let folded = report.sites.iter().filter(|s| s.sink.is_some()).count();
    let db = |o: &OutputReport| o.sqnr_db.unwrap_or(f64::INFINITY);
    let outputs = report.outputs.values();
    let worst = outputs.min_by(|a, b| db(a).total_cmp(&db(b)));
    let mb = |bytes: u64| bytes as f64 / 1e6;
    html! {
        p { (decision(report.decision)) }
        dl.cards {
            @if let Some(output) = worst {
                @let plain = output.plain_sqnr_db.map(|db| format!("plain min-max {db:.2} dB"));
                (card("output SQNR (worst output)", decibels(output.sqnr_db, "exact"), plain.unwrap_or_default()))
            }
            (card("Linears quantized", quantized, format_args!("{} found", report.linears.len())))
            (card("sites migrated", folded, format_args!("{} found", report.sites.len())))
            @if let Some(all) = &report.rotations {
                @let bought = format!("{:.2} dB → {:.2} dB for about {:.1} % of the run time", all.sqnr_before_db, all.sqnr_after_db, all.percent);
                (card("sites rotated", all.sites, bought))
            }
            @if let Some(all) = &report.embeddings {
                @let bytes = all.tables.iter().map(|t| t.bytes_before - t.bytes_after.min(t.bytes_before)).sum::<usize>();
                @let cost = format!("{:.1} MB less, {:.2} dB → {:.2} dB", mb(bytes as u64), all.sqnr_before_db, all.sqnr_after_db);
                (card(&format!("embedding tables in {} bits", all.bits), all.tables.len(), cost))
            }
            @if let Some(files) = &report.files {
                @let before = format!("{:.1} MB before", mb(files.input_bytes));
                (card("size", format_args!("{:.1} MB", mb(files.output_bytes)), before))
            }
            @if let Some(work) = &report.work {
                @let share = format!("{:.1} %", 100.0 * work.int8);
                (card("multiplications in int8", share, format_args!("at most {:.1} times as fast as float", work.speed_at_most)))
            }
            @match &report.float_check {
                Some(check) => {
                    @let allowed = format!("of an output's range, {:.0e} allowed", check.limit);
                    (card("float model after migration", format_args!("{:.1e}", check.max_relative_error), allowed))
                }
                None => (card("float model after migration", "not run", "nothing was changed"))
            }
        }
    }
}

fn decision(decision: Decision) -> &'static str {
    match decision {
        Decision::Migrated => {
            "Outlier channels were migrated into constants; the result was better than plain min-max quantization on data that set none of its ranges."
        }
        Decision::PartlyMigrated => {
            "Some migrations lowered the outputs on held-out data and went back to plain min-max; the others were kept."
        }
        Decision::NothingToMigrate => {
            "No site gained by migration, so nothing was folded: this is plain min-max quantization."
        }
        Decision::PlainWasBetter => {
            "Plain min-max quantization was better than migration on held-out data, so that was written."
        }
        Decision::PlainAskedFor => "Migration without validation, or none, was asked for.",
    }
}

/// Bars are as long as the error is large: the full width is the worst Linear's error amplitude.
fn layers(report: &Report) -> Markup {
    let amplitude = |e: &Option<Energy>| match e {
        Some(e) if e.signal > 0.0 => (e.error / e.signal).sqrt(),
        _ => 0.0,
    };
    let both = |l: &LayerError| amplitude(&l.fed).max(amplitude(&l.accumulated));
    let largest = report.layers.iter().map(both).fold(0.0, f64::max);
    if largest == 0.0 {
        return Markup::default();
    }
    let width = |e: &Option<Energy>| format!("width:{:.1}%", 100.0 * amplitude(e) / largest);
    let db = |e: &Option<Energy>| {
        let db = e.as_ref().map(Energy::sqnr_db).filter(|db| db.is_finite());
        db.map_or("–".to_owned(), |db| format!("{db:.0}"))
    };
    html! {
        h2 { "Error per Linear" }
        p.muted {
            "Error over signal at the output of every Linear, in graph order. Upper bar and first number: its own error, "
            "with inputs of the float model. Lower bar and second number: with all errors before it. SQNR in dB."
        }
        @for layer in &report.layers {
            div.bar {
                span.name { (layer.name) }
                span.track {
                    i.first style=(width(&layer.fed)) {}
                    i.second style=(width(&layer.accumulated)) {}
                }
                span.number { (db(&layer.fed)) " / " (db(&layer.accumulated)) }
            }
        }
    }
}

fn sites(report: &Report) -> Markup {
    if report.sites.is_empty() {
        return Markup::default();
    }
    let width = |s: &SiteReport| s.range_before.1 - s.range_before.0;
    let mut sites: Vec<&SiteReport> = report.sites.iter().collect();
    sites.sort_by(|a, b| width(b).total_cmp(&width(a)));
    html! {
        h2 { "Sites" }
        p.muted {
            "Values that Linears read, widest range first: the range of every channel on calibration data, before and after "
            "its shift and scale; rotations come behind them. The gain is that of this site's quantization error, on calibration tokens that did not set "
            "the ranges."
        }
        @for (i, site) in sites.into_iter().enumerate() {
            (self::site(site, i < OPEN && site.sink.is_some()))
        }
    }
}

fn site(site: &SiteReport, open: bool) -> Markup {
    let ((a, b), (c, d)) = (site.range_before, site.range_after);
    let gain = site.validated_gain_db;
    html! {
        details open[open] {
            summary {
                @if gain > 0.0 {
                    span.gain.good { (format_args!("+{gain:.1} dB")) }
                } @else if gain < 0.0 {
                    span.gain.bad { (format_args!("{gain:.1} dB")) }
                } @else {
                    span.gain.muted { "unchanged" }
                }
                span.name { (site.value) }
            }
            p {
                @match (&site.sink, &site.reason) {
                    (Some(sink), _) => { "folded into " code { (sink) } },
                    (None, Some(reason)) => { "not migrated: " (reason) },
                    (None, None) => { "not migrated" },
                }
                "; range " (number(a)) "…" (number(b)) " → " (number(c)) "…" (number(d))
                "; loss measured at: " (site.loss)
            }
            @if let Some(rotation) = &site.rotation {
                p {
                    @let (a, b) = rotation.factors;
                    "rotated by " (a) " × " (b) " (" (rotation.form) ", " (rotation.negative.len())
                    " channels negated" @if rotation.order.is_some() { ", in another order" } "): "
                    (format_args!("+{:.1} dB", rotation.gain_db)) " over the best choice without, for about "
                    (format_args!("{:.1} %", rotation.percent)) " of the run time"
                }
            }
            p.muted {
                "read by "
                @for (i, linear) in site.linears.iter().enumerate() {
                    @if i > 0 { ", " }
                    code { (linear) }
                }
            }
            (plots(site))
        }
    }
}

/// The plots of a site, as far as there is something to draw.
fn plots(site: &SiteReport) -> Markup {
    let curve = plot::curve(&site.curve, site.threshold);
    if site.channels.is_empty() && curve.is_none() {
        return Markup::default();
    }
    let (before, after) = plot::before_and_after(&site.channels);
    let per = match site.channels_per_line {
        1 => "one line per channel".to_owned(),
        n => format!("one line per {n} channels"),
    };
    html! {
        div.plots {
            @if !site.channels.is_empty() {
                figure { (before) figcaption { "before, " (per) } }
                @if site.sink.is_some() {
                    figure { (after) figcaption { "after, on its own scale" } }
                }
            }
            @if let Some(curve) = curve {
                figure {
                    (curve)
                    figcaption { "estimated loss over the threshold t; the dot is the choice" }
                }
            }
        }
    }
}

/// What the model is worth.
fn metric(report: &Report) -> Markup {
    let Some(metric) = &report.metric else {
        return Markup::default();
    };
    let said = metric.sureness().into_iter().chain(metric.caution.clone());
    html! {
        h2 { "Metric" }
        p { strong { (metric.sentence()) } " " (metric.rows_of) }
        @for text in said.chain(metric.notes.iter().cloned()) { p { (text) } }
    }
}

fn kept_float(report: &Report) -> Markup {
    let Some(kept) = &report.kept_float else {
        return Markup::default();
    };
    let in_float = |name: &str| kept.linears.iter().any(|l| l.name == name);
    let percent = |part: f64| format!("{:.1} %", 100.0 * part);
    let head = html! {
        th { "Linear" } th.number { "part of the error" } th.number { "part of the multiplications" }
    };
    let rows = html! {
        @for linear in &kept.sensitivity {
            tr {
                td.name {
                    (linear.name)
                    @if in_float(&linear.name) { " " strong { "in float" } }
                }
                td.number { (percent(linear.error)) }
                td.number { (percent(linear.work)) }
            }
        }
    };
    html! {
        h2 { "Left in float" }
        p {
            (kept.linears.len()) " Linears with " (percent(kept.work)) " of the multiplications: "
            (decibels(Some(kept.sqnr_before_db), "")) " → " (decibels(Some(kept.sqnr_after_db), ""))
            " on held-out data."
        }
        (table(&head, &rows))
    }
}

fn attention(report: &Report) -> Markup {
    if report.attention.is_empty() {
        return Markup::default();
    }
    let range = |r: Option<(f32, f32)>| {
        r.map_or("–".to_owned(), |(low, high)| {
            format!("{}…{}", number(low), number(high))
        })
    };
    let head = html! {
        th { "softmax" } th { "products" } th { "Q" } th { "Kᵀ" } th { "V" } th { "why not" }
    };
    let rows = html! {
        @for attention in &report.attention {
            tr {
                td.name { (attention.softmax) }
                td { (attention.status) }
                td { (range(attention.query)) }
                td { (range(attention.key)) }
                td { (range(attention.value)) }
                td { (attention.reason.as_deref().unwrap_or_default()) }
            }
        }
    };
    html! {
        h2 { "Attention" }
        @if let Some(cost) = &report.attention_cost {
            p {
                "Products of attention in int8: " (decibels(Some(cost.float_sqnr_db), "")) " → "
                (decibels(Some(cost.int8_sqnr_db), "")) ", mean over the outputs on held-out data."
            }
        }
        (table(&head, &rows))
    }
}

fn lint(report: &Report) -> Markup {
    // Costs are plain words in JSON.
    let word = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let head = html! {
        th { "cost" } th { "rule" } th { "node" } th { "what" } th { "how to mend it" }
    };
    let rows = html! {
        @for finding in &report.lint {
            tr {
                td { (word(serde_json::to_value(finding.cost).unwrap_or_default())) }
                td { (finding.rule) }
                td.name { (finding.node) }
                td { (finding.message) }
                td { (finding.mend) }
            }
        }
    };
    html! {
        h2 { "What the target would make of it" }
        @if report.lint.is_empty() {
            p.good { "Nothing would be rejected, computed wrongly or run in float against the plan." }
        } @else {
            (table(&head, &rows))
        }
    }
}

fn skipped(report: &Report) -> Markup {
    let skipped = report.linears.iter().filter_map(|l| {
        let reason = l.reason.as_ref()?;
        Some((l.name.as_str(), "Linear", reason.as_str()))
    });
    let misses = report.near_misses.iter();
    let misses = misses.map(|m| (m.name.as_str(), m.kind.as_str(), m.reason.as_str()));
    let all: Vec<_> = skipped.chain(misses).collect();
    if all.is_empty() {
        return Markup::default();
    }
    let head = html! { th { "node" } th { "kind" } th { "reason" } };
    let rows = html! {
        @for (name, kind, reason) in all {
            tr { td.name { (name) } td { (kind) } td { (reason) } }
        }
    };
    html! {
        h2 { "Left alone, and why" }
        (table(&head, &rows))
    }
}

fn notes(report: &Report) -> Markup {
    let filled = report.filled_inputs.iter();
    let filled = filled.map(|(input, rule)| format!("input {input} was filled with {rule}"));
    let inlined = report.inlined.iter();
    let inlined =
        inlined.map(|call| format!("the call {} of {} was inlined", call.node, call.function));
    let cleaned = report.cleaned.iter();
    let cleaned = cleaned.map(|c| format!("cleaned: {c}"));
    let stored = report.stored_sizes.iter();
    let stored = stored.map(|s| format!("sizes: {s}"));
    let notes = report.notes.iter().cloned();
    let cleaned = cleaned.chain(stored);
    let all: Vec<String> = notes.chain(cleaned).chain(filled).chain(inlined).collect();
    if all.is_empty() {
        return Markup::default();
    }
    html! {
        h2 { "Notes" }
        ul { @for note in all { li { (note) } } }
    }
}

fn settings(report: &Report) -> Markup {
    // A plain structure of strings and numbers, for which JSON has a form.
    let settings = serde_json::to_value(&report.settings).unwrap_or_default();
    let settings = settings.as_object().into_iter().flatten();
    let stated = settings.filter_map(|(name, value)| {
        let value = match value {
            serde_json::Value::Null => return None,
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        Some((name.replace('_', " "), value))
    });
    html! {
        h2 { "Settings" }
        div.scroll { table {
            @for (name, value) in stated { tr { td { (name) } td { code { (value) } } } }
        } }
    }
}

fn reproduction(report: &Report) -> Markup {
    html! {
        h2 { "To make it again" }
        @if let Some(command) = &report.command {
            pre { code { (command) } }
        }
        div.scroll { table {
            @for (what, digest) in &report.digests {
                tr { td { (what.replace('_', " ")) } td { code { (digest) } } }
            }
            @for (step, seconds) in &report.seconds {
                tr { td { (step) } td { (format_args!("{seconds:.2} s")) } }
            }
            @if let Some(peak) = report.peak_memory_mb {
                tr { td { "peak memory" } td { (format_args!("{peak:.0} MB")) } }
            }
        } }
    }
}
