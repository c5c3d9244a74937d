//! The table on the terminal and as Markdown, and all figures as JSON.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::figures::{Against, Figure, Goal, Row, median};
use crate::machine::Machine;

/// Between these lines of the README stands the table.
const BEGIN: &str = "<!-- make bench: begin -->\n";
const END: &str = "<!-- make bench: end -->\n";

const HEAD: [&str; 7] = ["work", "who", "figure", "median", "held against", "goal", "met"];

/// One line of the table.
type Line = [String; 7];

/// A table of all rows for people.
pub fn text(rows: &[Row]) -> String {
    let mut out = String::new();
    for row in rows {
        let lines = lines(row);
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
        let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
        let _ = writeln!(out, "\n{} ({})", row.work, row.key);
        for line in &lines {
            let cells = line.iter().zip(&widths).skip(1);
            let cells: Vec<String> = cells.map(|(cell, width)| format!("{cell:<width$}")).collect();
            let _ = writeln!(out, "  {}", cells.join("  ").trim_end());
        }
        for note in &row.notes {
            let _ = writeln!(out, "  ({note})");
        }
    }
    out
}

/// All figures as Markdown.
pub fn markdown(rows: &[Row], machine: &Machine) -> String {
    let out = format!("{machine}\n\n{}", as_table(rows.iter().map(lines)));
    let notes: Vec<String> =
        rows.iter().flat_map(|row| row.notes.iter().map(|note| format!("- {}: {note}", row.key))).collect();
    out + "\n" + &notes.join("\n") + "\n"
}

/// Those for which there is a goal, for the README.
pub fn goals(rows: &[Row], machine: &Machine) -> String {
    let with_goals = |row| {
        let mut wanted: Vec<Line> =
            lines(row).into_iter().filter(|line| line[5..].iter().any(|cell| !cell.is_empty())).collect();
        if let Some(first) = wanted.first_mut() {
            first[0].clone_from(&row.work);
        }
        wanted
    };
    format!("{machine}\n\n{}", as_table(rows.iter().map(with_goals)))
}

fn as_table(rows: impl Iterator<Item = Vec<Line>>) -> String {
    let mut out = format!("| {} |\n|{}\n", HEAD.join(" | "), "---|".repeat(HEAD.len()));
    for line in rows.flatten() {
        let _ = writeln!(out, "| {} |", line.join(" | "));
    }
    out
}

/// All samples.
pub fn data(rows: &[Row], machine: &Machine) -> Value {
    let figure = |figure: &Figure| {
        json!({ "who": figure.who, "figure": figure.measure.name, "unit": figure.measure.unit,
            "median": median(&figure.samples), "samples": figure.samples })
    };
    let goal = |row: &Row, goal: &Goal| {
        let judged = goal.judge(row);
        json!({ "who": goal.who, "figure": goal.measure.name, "goal": wanted(goal), "got": judged.map(|(got, _)| got),
            "met": judged.and_then(|(_, met)| met) })
    };
    let row = |row: &Row| {
        json!({ "row": row.key, "work": row.work, "figures": row.figures.iter().map(figure).collect::<Vec<_>>(),
            "goals": row.goals.iter().map(|one| goal(row, one)).collect::<Vec<_>>(), "notes": row.notes })
    };
    json!({ "machine": machine.data(), "rows": rows.iter().map(row).collect::<Vec<_>>() })
}

/// Writes the Markdown into the README, where its lines are.
pub fn into_readme(file: &Path, table: &str) -> std::io::Result<bool> {
    let text = fs::read_to_string(file)?;
    let Some((before, rest)) = text.split_once(BEGIN) else { return Ok(false) };
    let Some((_, after)) = rest.split_once(END) else { return Ok(false) };
    fs::write(file, format!("{before}{BEGIN}{table}{END}{after}"))?;
    Ok(true)
}

/// A line for each figure, and one more for each further goal of it.
fn lines(row: &Row) -> Vec<Line> {
    let mut lines = Vec::new();
    for figure in &row.figures {
        let goals = row.goals.iter().filter(|goal| goal.who == figure.who && goal.measure == figure.measure);
        let mut judged: Vec<(String, String, String)> = goals
            .filter_map(|goal| {
                let (got, met) = goal.judge(row)?;
                let met = met.map_or("", |met| if met { "yes" } else { "no" });
                Some((held_against(goal, got), wanted(goal), met.to_owned()))
            })
            .collect();
        if judged.is_empty() {
            judged.push(Default::default());
        }
        for (at, (got, goal, met)) in judged.into_iter().enumerate() {
            let work = if lines.is_empty() { row.work.clone() } else { String::new() };
            let middle = if at == 0 { quantity(figure) } else { String::new() };
            let (who, name) = (figure.who.clone(), figure.measure.name.to_owned());
            lines.push([work, who, name, middle, got, goal, met]);
        }
    }
    lines
}

/// The median with its unit, and how far the rounds lie apart.
fn quantity(figure: &Figure) -> String {
    let least = figure.samples.iter().copied().fold(f64::INFINITY, f64::min);
    let most = figure.samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let range = if figure.samples.len() > 1 { format!(" ({}–{})", short(least), short(most)) } else { String::new() };
    format!("{} {}{range}", short(median(&figure.samples)), figure.measure.unit)
}

fn held_against(goal: &Goal, got: f64) -> String {
    match goal.against {
        Against::AtMostTimes(_, peer) | Against::AtLeastTimes(_, peer) | Against::Beside(peer) => {
            format!("{} × {peer}", short(got))
        }
        Against::AtMostMore(_, peer) => format!("{peer} {} {} {}", sign(got), short(got.abs()), goal.measure.unit),
        Against::AtMost(_) => String::new(),
    }
}

fn wanted(goal: &Goal) -> String {
    match goal.against {
        Against::AtMostTimes(limit, _) => format!("≤ {limit} ×"),
        Against::AtLeastTimes(limit, _) => format!("≥ {limit} ×"),
        Against::AtMostMore(limit, _) => format!("≤ + {limit} {}", goal.measure.unit),
        Against::AtMost(limit) => format!("≤ {limit} {}", goal.measure.unit),
        Against::Beside(_) => String::new(),
    }
}

fn sign(number: f64) -> char {
    if number < 0.0 { '−' } else { '+' }
}

/// Three digits that count.
pub fn short(number: f64) -> String {
    match number.abs() {
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        size if size >= 1.0 || size == 0.0 => format!("{number:.2}"),
        size if size >= 0.1 => format!("{number:.3}"),
        _ => format!("{number:.4}"),
    }
}
