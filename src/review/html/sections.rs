//! The sections of the page, in their order. Each writes nothing if the report has nothing for it.

use std::fmt::Write;

use super::{escape, number, plot};
use crate::review::{Decision, Energy, Report, SiteReport};

/// Every section, in the order of the page.
pub const ALL: [fn(&mut String, &Report); 11] = [
    summary,
    outputs,
    layers,
    sites,
    attention,
    kept_float,
    lint,
    skipped,
    notes,
    settings,
    reproduction,
];

/// Sites whose plots are shown at once; the others open on a click.
const OPEN: usize = 6;

/// Formats into the page, which cannot fail.
macro_rules! put {
    ($page:expr, $($format:tt)*) => {{ let _ = write!($page, $($format)*); }};
}

fn summary(page: &mut String, report: &Report) {
    let quantized = report.linears.iter().filter(|l| l.reason.is_none()).count();
    let folded = report.sites.iter().filter(|s| s.sink.is_some()).count();
    let decision = match report.decision {
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
    };
    put!(page, "<p>{decision}</p>\n<dl class=\"cards\">\n");
    let mut card = |name: &str, value: String, small: String| {
        put!(
            page,
            "<div><dt>{name}</dt><dd>{value}<small>{small}</small></dd></div>\n"
        );
    };
    let worst = report.outputs.values().min_by(|a, b| {
        let db = |o: &crate::review::OutputReport| o.sqnr_db.unwrap_or(f64::INFINITY);
        db(a).total_cmp(&db(b))
    });
    if let Some(output) = worst {
        let value = output
            .sqnr_db
            .map_or("exact".to_owned(), |db| format!("{db:.2} dB"));
        let plain = output.plain_sqnr_db;
        let small = plain.map_or(String::new(), |db| format!("plain min-max {db:.2} dB"));
        card("output SQNR (worst output)", value, small);
    }
    let of = format!("{} found", report.linears.len());
    card("Linears quantized", quantized.to_string(), of);
    let of = format!("{} found", report.sites.len());
    card("sites migrated", folded.to_string(), of);
    if let Some(files) = &report.files {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let value = format!("{:.1} MB", mb(files.output_bytes));
        card(
            "size",
            value,
            format!("{:.1} MB before", mb(files.input_bytes)),
        );
    }
    let (value, small) = match &report.float_check {
        Some(check) => (
            format!("{:.1e}", check.max_relative_error),
            format!("of an output's range, {:.0e} allowed", check.limit),
        ),
        None => ("not run".to_owned(), "nothing was changed".to_owned()),
    };
    card("float model after migration", value, small);
    put!(page, "</dl>\n");
}

fn outputs(page: &mut String, report: &Report) {
    if report.outputs.is_empty() {
        return;
    }
    put!(
        page,
        "<h2>Outputs</h2>\n<p class=\"muted\">Against the original, on {}. SQNR = 10 log₁₀(Σ r² / Σ (r − o)²).</p>\n\
         <div class=\"scroll\"><table><tr><th>output</th><th class=\"number\">SQNR</th>\
         <th class=\"number\">plain min-max</th><th class=\"number\">cosine</th></tr>\n",
        escape(&report.verified_on)
    );
    let db = |db: Option<f64>, none: &str| db.map_or(none.to_owned(), |db| format!("{db:.2} dB"));
    for (name, output) in &report.outputs {
        put!(
            page,
            "<tr><td class=\"name\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td>\
             <td class=\"number\">{:.6}</td></tr>\n",
            escape(name),
            db(output.sqnr_db, "exact"),
            db(output.plain_sqnr_db, "–"),
            output.cosine
        );
    }
    put!(page, "</table></div>\n");
    for lost in &report.below_plain {
        put!(
            page,
            "<p class=\"gain bad\"><code>{}</code> ends clearly below plain min-max quantization, although no better plan \
             was found: {:.2} dB, plain {}.</p>\n",
            escape(&lost.output),
            lost.sqnr_db,
            db(lost.plain_sqnr_db, "exact")
        );
    }
}

/// Bars are as long as the error is large: the full width is the worst Linear's error amplitude.
fn layers(page: &mut String, report: &Report) {
    let amplitude = |e: &Option<Energy>| match e {
        Some(e) if e.signal > 0.0 => (e.error / e.signal).sqrt(),
        _ => 0.0,
    };
    let both = |l: &crate::review::LayerError| amplitude(&l.fed).max(amplitude(&l.accumulated));
    let largest = report.layers.iter().map(both).fold(0.0, f64::max);
    if largest == 0.0 {
        return;
    }
    put!(
        page,
        "<h2>Error per Linear</h2>\n<p class=\"muted\">Error over signal at the output of every Linear, in graph order. \
         Upper bar and first number: its own error, with inputs of the float model. Lower bar and second number: with all \
         errors before it. SQNR in dB.</p>\n"
    );
    for layer in &report.layers {
        let width = |e: &Option<Energy>| 100.0 * amplitude(e) / largest;
        let db = |e: &Option<Energy>| {
            let db = e.as_ref().map(Energy::sqnr_db).filter(|db| db.is_finite());
            db.map_or("–".to_owned(), |db| format!("{db:.0}"))
        };
        put!(
            page,
            "<div class=\"bar\"><span class=\"name\">{}</span><span class=\"track\">\
             <i class=\"first\" style=\"width:{:.1}%\"></i><i class=\"second\" style=\"width:{:.1}%\"></i></span>\
             <span class=\"number\">{} / {}</span></div>\n",
            escape(&layer.name),
            width(&layer.fed),
            width(&layer.accumulated),
            db(&layer.fed),
            db(&layer.accumulated)
        );
    }
}

fn sites(page: &mut String, report: &Report) {
    if report.sites.is_empty() {
        return;
    }
    put!(
        page,
        "<h2>Sites</h2>\n<p class=\"muted\">Values that Linears read, widest range first: the range of every channel on \
         calibration data, before and after its shift and scale. The gain is that of this site's quantization error, on \
         calibration tokens that did not set the ranges.</p>\n"
    );
    let width = |s: &SiteReport| s.range_before.1 - s.range_before.0;
    let mut sites: Vec<&SiteReport> = report.sites.iter().collect();
    sites.sort_by(|a, b| width(b).total_cmp(&width(a)));
    for (i, site) in sites.into_iter().enumerate() {
        self::site(page, site, i < OPEN && site.sink.is_some());
    }
}

fn site(page: &mut String, site: &SiteReport, open: bool) {
    let gain = match site.validated_gain_db {
        db if db > 0.0 => format!("<span class=\"gain good\">+{db:.1} dB</span>"),
        db if db < 0.0 => format!("<span class=\"gain bad\">{db:.1} dB</span>"),
        _ => "<span class=\"gain muted\">unchanged</span>".to_owned(),
    };
    put!(
        page,
        "<details{}><summary>{gain}<span class=\"name\">{}</span></summary>\n",
        if open { " open" } else { "" },
        escape(&site.value)
    );
    let sink = match (&site.sink, &site.reason) {
        (Some(sink), _) => format!("folded into <code>{}</code>", escape(sink)),
        (None, Some(reason)) => format!("not migrated: {}", escape(reason)),
        (None, None) => "not migrated".to_owned(),
    };
    let linears: Vec<String> = site
        .linears
        .iter()
        .map(|l| format!("<code>{}</code>", escape(l)))
        .collect();
    let ((a, b), (c, d)) = (site.range_before, site.range_after);
    put!(
        page,
        "<p>{sink}; range {}…{} → {}…{}; loss measured at: {}</p>\n<p class=\"muted\">read by {}</p>\n",
        number(a),
        number(b),
        number(c),
        number(d),
        escape(&site.loss),
        linears.join(", ")
    );
    let mut figures = String::new();
    if !site.channels.is_empty() {
        let (before, after) = plot::before_and_after(&site.channels);
        let per = match site.channels_per_line {
            1 => "one line per channel".to_owned(),
            n => format!("one line per {n} channels"),
        };
        put!(
            figures,
            "<figure>{before}<figcaption>before, {per}</figcaption></figure>\n"
        );
        if site.sink.is_some() {
            put!(
                figures,
                "<figure>{after}<figcaption>after, on its own scale</figcaption></figure>\n"
            );
        }
    }
    if let Some(curve) = plot::curve(&site.curve, site.threshold) {
        put!(
            figures,
            "<figure>{curve}<figcaption>estimated loss over the threshold t; the dot is the choice</figcaption></figure>\n"
        );
    }
    if !figures.is_empty() {
        put!(page, "<div class=\"plots\">\n{figures}</div>\n");
    }
    put!(page, "</details>\n");
}

fn kept_float(page: &mut String, report: &Report) {
    let Some(kept) = &report.kept_float else {
        return;
    };
    put!(
        page,
        "<h2>Left in float</h2>\n<p>{} Linears with {:.1} % of the multiplications: {:.2} dB → {:.2} dB on held-out \
         data.</p>\n<div class=\"scroll\"><table><tr><th>Linear</th><th class=\"number\">part of the error</th>\
         <th class=\"number\">part of the multiplications</th></tr>\n",
        kept.linears.len(),
        100.0 * kept.work,
        kept.sqnr_before_db,
        kept.sqnr_after_db
    );
    let in_float = |name: &str| kept.linears.iter().any(|l| l.name == name);
    for linear in &kept.sensitivity {
        put!(
            page,
            "<tr><td class=\"name\">{}{}</td><td class=\"number\">{:.1} %</td><td class=\"number\">{:.1} %</td></tr>\n",
            escape(&linear.name),
            if in_float(&linear.name) {
                " <strong>in float</strong>"
            } else {
                ""
            },
            100.0 * linear.error,
            100.0 * linear.work
        );
    }
    put!(page, "</table></div>\n");
}

fn attention(page: &mut String, report: &Report) {
    if report.attention.is_empty() {
        return;
    }
    put!(page, "<h2>Attention</h2>\n");
    if let Some(cost) = &report.attention_cost {
        put!(
            page,
            "<p>Products of attention in int8: {:.2} dB → {:.2} dB, mean over the outputs on held-out data.</p>\n",
            cost.float_sqnr_db,
            cost.int8_sqnr_db
        );
    }
    put!(
        page,
        "<div class=\"scroll\"><table><tr><th>softmax</th><th>products</th><th>Q</th><th>Kᵀ</th><th>V</th>\
         <th>why not</th></tr>\n"
    );
    let range = |r: Option<(f32, f32)>| {
        r.map_or("–".to_owned(), |(low, high)| {
            format!("{}…{}", number(low), number(high))
        })
    };
    for attention in &report.attention {
        put!(
            page,
            "<tr><td class=\"name\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
            escape(&attention.softmax),
            escape(&attention.status),
            range(attention.query),
            range(attention.key),
            range(attention.value),
            escape(attention.reason.as_deref().unwrap_or_default())
        );
    }
    put!(page, "</table></div>\n");
}

fn lint(page: &mut String, report: &Report) {
    put!(page, "<h2>What the target would make of it</h2>\n");
    if report.lint.is_empty() {
        put!(
            page,
            "<p class=\"good\">Nothing would be rejected, computed wrongly or run in float against the plan.</p>\n"
        );
        return;
    }
    put!(
        page,
        "<div class=\"scroll\"><table><tr><th>cost</th><th>rule</th><th>node</th><th>what</th><th>how to mend it</th></tr>\n"
    );
    for finding in &report.lint {
        // Costs and rules are plain words in JSON.
        let word = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        put!(
            page,
            "<tr><td>{}</td><td>{}</td><td class=\"name\">{}</td><td>{}</td><td>{}</td></tr>\n",
            escape(&word(
                serde_json::to_value(finding.cost).unwrap_or_default()
            )),
            escape(&finding.rule),
            escape(&finding.node),
            escape(&finding.message),
            escape(&finding.mend)
        );
    }
    put!(page, "</table></div>\n");
}

fn skipped(page: &mut String, report: &Report) {
    let skipped = report.linears.iter().filter_map(|l| {
        let reason = l.reason.as_ref()?;
        Some((l.name.as_str(), "Linear", reason.as_str()))
    });
    let misses = report.near_misses.iter();
    let misses = misses.map(|m| (m.name.as_str(), m.kind.as_str(), m.reason.as_str()));
    let all: Vec<_> = skipped.chain(misses).collect();
    if all.is_empty() {
        return;
    }
    put!(
        page,
        "<h2>Left alone, and why</h2>\n<div class=\"scroll\"><table><tr><th>node</th><th>kind</th><th>reason</th></tr>\n"
    );
    for (name, kind, reason) in all {
        let (name, kind, reason) = (escape(name), escape(kind), escape(reason));
        put!(
            page,
            "<tr><td class=\"name\">{name}</td><td>{kind}</td><td>{reason}</td></tr>\n"
        );
    }
    put!(page, "</table></div>\n");
}

fn notes(page: &mut String, report: &Report) {
    let filled = report.filled_inputs.iter();
    let filled = filled.map(|(input, rule)| format!("input {input} was filled with {rule}"));
    let inlined = report.inlined.iter();
    let inlined =
        inlined.map(|call| format!("the call {} of {} was inlined", call.node, call.function));
    let cleaned = report.cleaned.iter().map(|c| format!("cleaned: {c}"));
    let all: Vec<String> = report
        .notes
        .iter()
        .cloned()
        .chain(cleaned)
        .chain(filled)
        .chain(inlined)
        .collect();
    if all.is_empty() {
        return;
    }
    put!(page, "<h2>Notes</h2>\n<ul>\n");
    for note in all {
        put!(page, "<li>{}</li>\n", escape(&note));
    }
    put!(page, "</ul>\n");
}

fn settings(page: &mut String, report: &Report) {
    put!(page, "<h2>Settings</h2>\n<div class=\"scroll\"><table>\n");
    // A plain structure of strings and numbers, for which JSON has a form.
    let settings = serde_json::to_value(&report.settings).unwrap_or_default();
    for (name, value) in settings.as_object().into_iter().flatten() {
        let value = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let name = name.replace('_', " ");
        put!(
            page,
            "<tr><td>{}</td><td><code>{}</code></td></tr>\n",
            escape(&name),
            escape(&value)
        );
    }
    put!(page, "</table></div>\n");
}

fn reproduction(page: &mut String, report: &Report) {
    put!(page, "<h2>To make it again</h2>\n");
    if let Some(command) = &report.command {
        put!(page, "<pre><code>{}</code></pre>\n", escape(command));
    }
    put!(page, "<div class=\"scroll\"><table>\n");
    for (what, digest) in &report.digests {
        let (what, digest) = (escape(&what.replace('_', " ")), escape(digest));
        put!(
            page,
            "<tr><td>{what}</td><td><code>{digest}</code></td></tr>\n"
        );
    }
    for (step, seconds) in &report.seconds {
        put!(
            page,
            "<tr><td>{}</td><td>{seconds:.2} s</td></tr>\n",
            escape(step)
        );
    }
    if let Some(peak) = report.peak_memory_mb {
        put!(page, "<tr><td>peak memory</td><td>{peak:.0} MB</td></tr>\n");
    }
    put!(page, "</table></div>\n");
}
