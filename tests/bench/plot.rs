//! The plots, as SVG text: bars for each of those measured, and lines for what grows.

use std::fmt::Write as _;

use crate::figures::{CPU_GB, CPU_REQUEST, Measure, Row, median};
use crate::report::short;
use crate::rows::size;

const OURS: &str = "#0b7285";
const THEIRS: &str = "#adb5bd";
const INK: &str = "#212529";

/// Units: pixels.
const WIDTH: f64 = 720.0;
const LABELS: f64 = 200.0;
const BAR: f64 = 22.0;
const PANEL: f64 = 220.0;
const MARGIN: f64 = 36.0;

/// All plots for which there are figures: name of the file, and text.
pub fn all(rows: &[Row]) -> Vec<(&'static str, String)> {
    let row = |key: &str| rows.iter().find(|row| row.key == key);
    let bars_of = |keys: &[&str], measure: Measure, title: &str| {
        let bars: Vec<Bar> = keys.iter().filter_map(|key| row(key)).flat_map(|row| bars_in(row, measure)).collect();
        (!bars.is_empty()).then(|| bars_as_text(&format!("{title} ({})", measure.unit), &bars))
    };
    let requests = bars_of(&["manifest"], CPU_REQUEST, "CPU for a warm manifest, 32 connections");
    let bodies = bars_of(&["blob", "tls"], CPU_GB, "CPU for a gigabyte of warm blobs, 4 connections");
    let sizes = row("size").map(|row| lines_as_text("CPU of a request against size (µs)", &size::lines(row)));
    [("cpu-request.svg", requests), ("cpu-gigabyte.svg", bodies), ("size.svg", sizes)]
        .into_iter()
        .filter_map(|(name, text)| Some((name, text?)))
        .collect()
}

struct Bar {
    label: String,
    value: f64,
}

fn bars_in(row: &Row, measure: Measure) -> Vec<Bar> {
    let figures = row.figures.iter().filter(|figure| figure.measure == measure);
    figures.map(|figure| Bar { label: figure.who.clone(), value: median(&figure.samples) }).collect()
}

/// One that is more than four times the next is cut, and shown so: else nothing could be seen of the others.
fn bars_as_text(title: &str, bars: &[Bar]) -> String {
    let mut sizes: Vec<f64> = bars.iter().map(|bar| bar.value).collect();
    sizes.sort_by(f64::total_cmp);
    let largest = match sizes[..] {
        [.., next, last] if last > 4.0 * next => next * 1.25,
        [.., last] => last,
        [] => 1.0,
    };
    let room = WIDTH - LABELS - 90.0;
    let mut out = String::new();
    let mut y = MARGIN + 8.0;
    for bar in bars {
        let cut = bar.value > largest;
        let width = room * (bar.value / largest).min(1.0);
        let color = if bar.label.starts_with("tidegate") { OURS } else { THEIRS };
        let _ = writeln!(out, "{}", text(LABELS - 8.0, y + 15.0, "end", &bar.label));
        let _ =
            writeln!(out, "<rect x=\"{LABELS}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{color}\"/>");
        if cut {
            let at = LABELS + width - 24.0;
            let _ = writeln!(
                out,
                "<path d=\"M{at:.1} {:.1} l8 -{} h6 l-8 {} z\" fill=\"white\"/>",
                y + BAR + 1.0,
                BAR + 2.0,
                BAR + 2.0
            );
        }
        let _ = writeln!(out, "{}", text(LABELS + width + 6.0, y + 15.0, "start", &short(bar.value)));
        y += BAR + 6.0;
    }
    page(title, y + 8.0, &out)
}

/// A panel for each line: as many to the right as there are, and the cost upwards from nothing.
fn lines_as_text(title: &str, lines: &[(&'static str, Vec<(f64, f64)>)]) -> String {
    let highest = lines.iter().flat_map(|(_, points)| points).map(|(_, cost)| *cost).fold(0.0, f64::max) * 1.15;
    let (top, bottom) = (MARGIN + 16.0, 220.0);
    let mut out = String::new();
    for (at, (kind, points)) in (0_u32..).zip(lines) {
        let (left, room) = (16.0 + f64::from(at) * (PANEL + 16.0), PANEL - 40.0);
        let decades = points.iter().map(|(count, _)| count.log10());
        let (least, most) =
            decades.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), x| (least.min(x), most.max(x)));
        let place = |&(count, cost): &(f64, f64)| {
            let x = left + 20.0 + room * (count.log10() - least) / (most - least).max(f64::EPSILON);
            (x, bottom - (bottom - top) * cost / highest)
        };
        let _ = writeln!(out, "<path d=\"M{left} {bottom} h{PANEL}\" stroke=\"{THEIRS}\" fill=\"none\"/>");
        let corners: Vec<String> = points.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" stroke=\"{OURS}\" stroke-width=\"2\" fill=\"none\"/>",
            corners.join(" ")
        );
        for point in points {
            let (x, y) = place(point);
            let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{OURS}\"/>");
            let _ = writeln!(out, "{}", text(x, y - 9.0, "middle", &short(point.1)));
            let _ = writeln!(out, "{}", text(x, bottom + 17.0, "middle", &format!("{}", point.0)));
        }
        let plural = kind.trim_end_matches('s');
        let _ = writeln!(out, "{}", text(left + PANEL / 2.0, bottom + 36.0, "middle", &format!("{plural}s")));
    }
    page(title, bottom + 48.0, &out)
}

fn text(x: f64, y: f64, anchor: &str, words: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{INK}\">{words}</text>")
}

fn page(title: &str, height: f64, inside: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
         height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"15\" font-weight=\"bold\" fill=\"{INK}\">{title}</text>\n{inside}</svg>\n"
    )
}
