//! A [`Report`] as one page of HTML: no script, no network, light and dark by the reader's setting.
//!
//! What a reviewer asks first comes first: how good is it, where is the error, what was changed and why is that safe,
//! what was left alone, how can it be made again.

mod number;
mod outputs;
mod parts;
mod plot;
mod sections;

use maud::{DOCTYPE, PreEscaped, html};

use super::Report;

/// The page. The same report gives the same page.
pub fn html(report: &Report) -> String {
    let title = match &report.files {
        Some(files) => format!("{} → {}", files.input, files.output),
        None => "onnx-osplus".to_owned(),
    };
    let settings = &report.settings;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                link rel="icon" href="data:,";
                title { (title) " – onnx-osplus" }
                style { (PreEscaped(include_str!("report.css"))) }
            }
            body {
                h1 { (title) }
                p.muted {
                    "Outlier Suppression+ by onnx-osplus " (report.version) ", target " (settings.target)
                    ", format " (settings.format)
                }
                @for section in sections::ALL { (section(report)) "\n" }
            }
        }
    };
    page.into_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::review::{BelowPlain, Files, FloatCheck, OutputReport, WorkReport};

    #[test]
    fn text_is_never_markup() {
        let report = Report {
            notes: vec!["a <script>alert(\"1\")</script> & b".to_owned()],
            files: Some(Files {
                input: "<in>.onnx".to_owned(),
                ..Files::default()
            }),
            ..Report::default()
        };
        let page = html(&report);
        assert!(!page.contains("<script") && !page.contains("<in>"));
        assert!(page.contains("&lt;in&gt;.onnx"));
        assert!(page.contains("a &lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; b"));
        assert!(!page.contains("http://") && !page.contains("https://"));
    }

    #[test]
    fn who_multiplies_is_said() {
        let mut report = Report::default();
        assert!(!html(&report).contains("multiplications in int8"));
        let float = [("Conv".to_owned(), 3, 250.0)];
        report.work = Some(WorkReport::new(1, 750.0, float));
        let page = html(&report);
        assert!(page.contains("75.0 % of the multiplications in int8, in float Conv 25.0 %"));
        assert!(page.contains("at most 2.3 times as fast as float"));
    }

    #[test]
    fn what_was_not_run_and_what_was_lost_is_said() {
        let mut report = Report::default();
        assert!(html(&report).contains("<dd>not run<small>nothing was changed</small>"));
        assert!(!html(&report).contains("ends clearly below"));
        report.float_check = Some(FloatCheck::default());
        report.outputs = [("y<1>".to_owned(), OutputReport::default())].into();
        report.below_plain = vec![BelowPlain {
            output: "y<1>".to_owned(),
            per_token: false,
            logarithms: false,
            sqnr_db: 38.75,
            plain_sqnr_db: Some(42.64),
        }];
        let page = html(&report);
        assert!(!page.contains("not run"));
        assert!(page.contains("<code>y&lt;1&gt;</code> ends clearly below plain min-max"));
        assert!(page.contains("38.75 dB, plain 42.64 dB"));
    }
}
