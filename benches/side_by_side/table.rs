//! The result: rows, what each has to reach, and the table of them for a terminal and for a document.

use crate::sides::Both;

/// What a row's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Memory.
    Mib,
    Kib,
    Milliseconds,
    Seconds,
    /// A count of something.
    Number,
    /// Files: 10⁶ bytes.
    Megabytes,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Mib => format!("{value:.1} MiB"),
            Self::Kib => format!("{value:.0} KiB"),
            Self::Milliseconds => format!("{value:.1} ms"),
            Self::Seconds => format!("{value:.2} s"),
            Self::Number => format!("{value:.0}"),
            Self::Megabytes => format!("{value:.2} MB"),
        }
    }
}

/// What a row has to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// This part of Go's value, or less.
    Ratio(f64),
    /// Less than Go's value.
    Less,
    /// This value of ours, or less.
    AtMost(f64),
    /// Nothing: the row helps to read others.
    Nothing,
}

/// One thing that was measured of both.
pub struct Row {
    pub what: String,
    pub unit: Unit,
    /// Medians; absent where this machine does not let it be measured.
    pub values: Option<Both<f64>>,
    pub target: Target,
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        let Both { ours, go } = self.values?;
        (go > 0.0).then_some(ours / go)
    }

    fn is_met(&self) -> Option<bool> {
        let ours = self.values?.ours;
        match self.target {
            Target::Ratio(most) => Some(self.ratio()? <= most),
            Target::Less => Some(self.ratio()? < 1.0),
            Target::AtMost(most) => Some(ours <= most),
            Target::Nothing => None,
        }
    }

    fn cells(&self) -> [String; 6] {
        let nothing = || "–".to_owned();
        let [ours, go] = match self.values {
            Some(Both { ours, go }) => [ours, go].map(|value| self.unit.show(value)),
            None => [nothing(), nothing()],
        };
        let target = match self.target {
            Target::Ratio(most) => format!("≤ {most:.2}"),
            Target::Less => "< 1".to_owned(),
            Target::AtMost(most) => format!("≤ {}", self.unit.show(most)),
            Target::Nothing => nothing(),
        };
        let met = match self.is_met() {
            Some(true) => "yes".to_owned(),
            Some(false) => "no".to_owned(),
            None => nothing(),
        };
        let ratio = self.ratio().map_or_else(nothing, |ratio| format!("{ratio:.2}"));
        [self.what.clone(), ours, go, ratio, target, met]
    }
}

/// Everything that was measured, and under what circumstances.
pub struct Table {
    pub rows: Vec<Row>,
    pub caption: String,
}

const HEAD: [&str; 6] = ["what", "ours", "Go", "ratio", "target", "met?"];

impl Table {
    /// For a terminal: columns aligned.
    pub fn text(&self) -> String {
        let lines = self.lines();
        let widths: [usize; 6] = std::array::from_fn(|column| {
            let widths = lines.iter().map(|line| line[column].chars().count());
            widths.max().unwrap_or_default()
        });
        let aligned = lines.iter().map(|line| {
            let cells = line.iter().zip(widths).enumerate();
            let cells = cells.map(|(column, (cell, width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        });
        let aligned = aligned.collect::<Vec<_>>().join("\n");
        format!("{aligned}\n\n{}", self.caption)
    }

    /// For a document.
    pub fn markdown(&self) -> String {
        let mut lines: Vec<String> = self.lines().iter().map(|line| format!("| {} |", line.join(" | "))).collect();
        lines.insert(1, "|---|--:|--:|--:|--:|---|".to_owned());
        format!("{}\n\n{}", lines.join("\n"), self.caption)
    }

    fn lines(&self) -> Vec<[String; 6]> {
        let rows = self.rows.iter().map(Row::cells);
        [HEAD.map(String::from)].into_iter().chain(rows).collect()
    }
}
