//! Small plots as SVG: drawn once, coloured by the page's style, described by a title for readers who cannot see them.

use std::fmt::Write;

use maud::{Markup, html};

use super::number::number;
use crate::review::{ChannelRange, CurveReport};

const WIDTH: f32 = 320.0;
const HEIGHT: f32 = 96.0;
const MARGIN: f32 = 6.0;
/// Right of the lines of channels, for the ends of the axis.
const LABELS: f32 = 34.0;

/// The range of every channel and zero, in the order of the channels, as one vertical line each, over an axis of its own.
pub(super) fn channels(ranges: &[(f32, f32)], class: &str, title: &str) -> Markup {
    let low = ranges.iter().fold(0.0f32, |low, r| low.min(r.0));
    let high = ranges.iter().fold(0.0f32, |high, r| high.max(r.1));
    let span = (high - low).max(f32::MIN_POSITIVE);
    let y = |v: f32| MARGIN + (high - v) / span * (HEIGHT - 2.0 * MARGIN);
    let step = (WIDTH - MARGIN - LABELS) / ranges.len().max(1) as f32;
    let mut path = String::new();
    for (i, &(min, max)) in ranges.iter().enumerate() {
        let x = MARGIN + (i as f32 + 0.5) * step;
        // A channel of one value still shows.
        let top = y(max.max(0.0));
        let bottom = y(min.min(0.0)).max(top + 0.6);
        let _ = write!(path, "M{x:.1} {top:.1}V{bottom:.1}");
    }
    let zero = y(0.0);
    let width = (0.8 * step).clamp(0.5, 6.0);
    let label = |at: f32, v: f32| {
        html! {
            text x=(WIDTH - 2.0) y=(format_args!("{at:.1}")) text-anchor="end" { (number(v)) }
        }
    };
    let zero = format!("{zero:.1}");
    let content = html! {
        line.axis x1="0" x2=(WIDTH) y1=(zero) y2=(zero) {}
        path class=(class) stroke-width=(format_args!("{width:.2}")) d=(path) {}
        (label(10.0, high))
        (label(HEIGHT - 3.0, low))
    };
    svg(title, &content)
}

/// Both halves of a site's plot: the ranges before and after.
pub(super) fn before_and_after(channels_of: &[ChannelRange]) -> (Markup, Markup) {
    let before: Vec<_> = channels_of.iter().map(|c| c.before).collect();
    let after: Vec<_> = channels_of.iter().map(|c| c.after).collect();
    (
        channels(&before, "before", "range of every channel before"),
        channels(&after, "after", "range of every channel after"),
    )
}

/// The loss over the thresholds, both in logarithmic scale, and the threshold chosen.
pub(super) fn curve(curve: &[CurveReport], chosen: Option<f32>) -> Option<Markup> {
    let points: Vec<(f32, f32)> = curve
        .iter()
        .filter(|p| p.threshold > 0.0 && p.loss > 0.0)
        .map(|p| (p.threshold.log10(), 10.0 * p.loss.log10() as f32))
        .collect();
    let bounds = |pick: fn(&(f32, f32)) -> f32| {
        let values = points.iter().map(pick);
        values.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), v| {
            (low.min(v), high.max(v))
        })
    };
    let ((left, right), (low, high)) = (bounds(|p| p.0), bounds(|p| p.1));
    if points.len() < 2 || right <= left {
        return None;
    }
    let span = (high - low).max(0.1);
    let x = |v: f32| MARGIN + (v - left) / (right - left) * (WIDTH - 2.0 * MARGIN);
    let y = |v: f32| MARGIN + 8.0 + (high - v) / span * (HEIGHT - 2.0 * MARGIN - 20.0);
    let line: Vec<String> = points
        .iter()
        .map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1)))
        .collect();
    let nearest = chosen.filter(|t| *t > 0.0).and_then(|t| {
        let off = |p: &&(f32, f32)| (p.0 - t.log10()).abs();
        points.iter().min_by(|a, b| off(a).total_cmp(&off(b)))
    });
    let content = html! {
        polyline.curve points=(line.join(" ")) {}
        @if let Some(p) = nearest {
            circle.chosen cx=(format_args!("{:.1}", x(p.0))) cy=(format_args!("{:.1}", y(p.1))) r="3.5" {}
        }
        text x="3" y=(HEIGHT - 3.0) { "t = " (number(10f32.powf(left))) }
        text x=(WIDTH - 3.0) y=(HEIGHT - 3.0) text-anchor="end" { (number(10f32.powf(right))) }
        text x="3" y="10" { (format_args!("{:.1} dB above the best", high - low)) }
    };
    Some(svg("loss over the threshold", &content))
}

fn svg(title: &str, content: &Markup) -> Markup {
    html! {
        svg viewBox=(format_args!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(title) {
            title { (title) }
            (content)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_channel_within_the_picture() {
        let svg =
            channels(&[(-1.0, 2.0), (0.5, 0.5), (-40.0, 3.0)], "before", "a < b").into_string();
        assert_eq!(svg.matches('M').count(), 3);
        assert!(svg.contains("a &lt; b") && svg.contains("-40") && svg.contains(">3<"));
        let path = svg
            .split(" d=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        for y in path
            .split('M')
            .skip(1)
            .flat_map(|m| m.split([' ', 'V']).skip(1))
        {
            let y: f32 = y.parse().unwrap();
            assert!((0.0..=HEIGHT).contains(&y), "{y}");
        }
    }

    #[test]
    fn a_curve_needs_two_points() {
        let point = |threshold, loss| CurveReport { threshold, loss };
        assert!(curve(&[point(1.0, 2.0)], None).is_none());
        assert!(curve(&[point(1.0, 0.0), point(2.0, 0.0)], None).is_none());
        let svg = curve(&[point(1.0, 2.0), point(10.0, 1.0)], Some(9.0)).unwrap();
        let svg = svg.into_string();
        assert!(svg.contains("<circle") && svg.contains("3.0 dB above"));
    }
}
