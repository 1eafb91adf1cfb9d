//! Single numbers of a report, each with the bar that it is held against, as lines of a table and as a chart.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::milliseconds;

/// One number.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    pub(crate) what: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// Where the design names one.
    pub(crate) bar: Option<Bar>,
}

/// What a number is held against.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bar {
    AtMost(f64),
    AtLeast(f64),
}

impl Bar {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(bar) => value <= bar,
            Self::AtLeast(bar) => value >= bar,
        }
    }

    fn value(self) -> f64 {
        match self {
            Self::AtMost(bar) | Self::AtLeast(bar) => bar,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(bar) => format!("≤ {bar}"),
            Self::AtLeast(bar) => format!("≥ {bar}"),
        }
    }
}

impl Figure {
    pub(crate) fn new(what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { what: what.into(), value, unit, bar: None }
    }

    pub(crate) fn time(what: impl Into<String>, value: Duration) -> Self {
        Self::new(what, milliseconds(&value), "ms")
    }

    pub(crate) fn at_most(self, bar: f64) -> Self {
        Self { bar: Some(Bar::AtMost(bar)), ..self }
    }

    pub(crate) fn at_least(self, bar: f64) -> Self {
        Self { bar: Some(Bar::AtLeast(bar)), ..self }
    }
}

/// The middle and the twentieth from above, of times.
pub(crate) fn p50_and_p95(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    let at = |percent: usize| {
        let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
        times.get(index).copied().unwrap_or_default()
    };
    (at(50), at(95))
}

/// Prints them, with the verdict of each that has a bar.
pub(crate) fn print(figures: &[Figure]) {
    println!("\n{:<52} {:>10} {:<5} {:>8}", "starts, memory, peers", "", "", "bar");
    for Figure { what, value, unit, bar } in figures {
        let (bar, verdict) = match bar {
            Some(bar) => (bar.text(), if bar.holds(*value) { "held" } else { "MISSED" }),
            None => (String::new(), ""),
        };
        println!("{what:<52} {value:>10.1} {unit:<5} {bar:>8} {verdict}");
    }
}

/// Widths and heights of the chart in pixels.
const LABEL: f64 = 380.0;
const LONGEST: f64 = 420.0;
const LINE: f64 = 22.0;
const WIDTH: f64 = LABEL + LONGEST + 110.0;

/// The times among the figures as bars on a logarithmic scale, an SVG image. A tick marks what a time is held against.
pub(crate) fn chart(title: &str, figures: &[Figure]) -> String {
    let times: Vec<&Figure> =
        figures.iter().filter(|figure| figure.unit == "ms" && figure.value > 0.0).collect();
    let longest = times.iter().map(|figure| figure.value).fold(10.0, f64::max);
    // One millisecond is the left edge.
    let length = |value: f64| LONGEST * value.max(1.0).log10() / longest.log10();
    let mut lines = String::new();
    let mut top = 2.0 * LINE;
    for Figure { what, value, bar, .. } in times {
        let held = bar.is_none_or(|bar| bar.holds(*value));
        let colour = if held { "#3b7dd8" } else { "#c4452f" };
        // Writing to a String cannot fail.
        let _written = writeln!(
            lines,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{LABEL:.0}\" y=\"{top:.0}\" width=\"{:.1}\" height=\"{:.0}\" fill=\"{colour}\"/>\n\
             <text x=\"{:.1}\" y=\"{:.0}\">{value:.0} ms</text>",
            LABEL - 8.0,
            top + 13.0,
            escaped(what),
            length(*value),
            LINE - 6.0,
            LABEL + length(*value) + 6.0,
            top + 13.0,
        );
        if let Some(bar) = bar {
            let at = LABEL + length(bar.value());
            let _written = writeln!(
                lines,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.0}\" y2=\"{:.0}\" stroke=\"#222\" stroke-width=\"2\"/>",
                top - 2.0,
                top + LINE - 4.0,
            );
        }
        top += LINE;
    }
    let height = top + LINE / 2.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH:.0}\" height=\"{height:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"8\" y=\"20\" font-size=\"15\">{}</text>\n{lines}</svg>\n",
        escaped(title)
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_held_at_its_very_value() {
        assert!(Bar::AtMost(300.0).holds(300.0) && !Bar::AtMost(300.0).holds(300.1));
        assert!(Bar::AtLeast(10.0).holds(10.0) && !Bar::AtLeast(10.0).holds(9.9));
    }

    #[test]
    fn half_is_faster_than_p50_and_one_of_twenty_slower_than_p95() {
        let times = (1..=100).rev().map(Duration::from_millis).collect();
        let (p50, p95) = p50_and_p95(times);
        assert_eq!((p50.as_millis(), p95.as_millis()), (51, 96));
    }

    #[test]
    fn the_chart_shows_times_alone_and_longer_ones_longer() {
        let figures = [
            Figure::new("slow <b>", 1000.0, "ms").at_most(300.0),
            Figure::new("fast", 10.0, "ms").at_most(300.0),
            Figure::new("memory", 64.0, "MiB"),
        ];
        let chart = chart("title", &figures);
        assert!(chart.contains("slow &lt;b>") && !chart.contains("memory"), "{chart}");
        let width = |colour: &str| {
            let line = chart.lines().find(|line| line.contains(colour)).unwrap();
            let (_, rest) = line.split_once("width=\"").unwrap();
            rest.split_once('"').unwrap().0.parse::<f64>().unwrap()
        };
        let (missed, held) = (width("#c4452f"), width("#3b7dd8"));
        assert!((missed / held - 3.0).abs() < 0.1, "{missed} {held}");
    }
}
