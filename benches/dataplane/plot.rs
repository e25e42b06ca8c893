//! The picture of the documentation: what a packet costs over the number of policies, and over the number of peers.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::cluster::{Isolated, Point};
use crate::report::{Report, thousands};
use crate::variants::{CHAINS, PALISADE, RULES, VERIFIED};

/// The lines, each in a colour that readers with any kind of colour vision tell apart.
const LINES: [(&str, RGBColor); 4] = [
    (CHAINS, RGBColor(213, 94, 0)),
    (RULES, RGBColor(204, 121, 167)),
    (PALISADE, RGBColor(0, 114, 178)),
    (VERIFIED, RGBColor(0, 158, 115)),
];

/// The number of peers of the panel over policies, and of policies of the panel over peers.
const FIXED: (usize, usize) = (1_000, 100);

/// A name, a colour, and the line.
type Line = (&'static str, RGBColor, Vec<(f64, f64)>);

/// Writes the SVG. Its ground is white, so that it reads alike on light pages and dark ones.
pub(crate) fn write(report: &Report, path: &Path) -> anyhow::Result<()> {
    let root = SVGBackend::new(path, (960, 430)).into_drawing_area();
    root.fill(&WHITE)?;
    let title = "A packet of an established connection, as a multiple of connection tracking alone";
    let root = root.titled(title, ("sans-serif", 18).into_font().color(&BLACK))?;
    let (left, right) = root.split_horizontally(480);
    let over_policies = format!("policies that select the pod ({} peers)", thousands(FIXED.0));
    panel(report, &left, &over_policies, &|point| {
        (point.peers == FIXED.0).then_some(point.policies)
    })?;
    let over_peers = format!("peers that they admit, 10 to 50,000 ({} policies)", thousands(FIXED.1));
    panel(report, &right, &over_peers, &|point| {
        (point.policies == FIXED.1).then_some(point.peers)
    })?;
    root.present()?;
    Ok(())
}

fn panel(
    report: &Report,
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    about: &str,
    across: &dyn Fn(Point) -> Option<usize>,
) -> anyhow::Result<()> {
    let lines: Vec<Line> = (LINES.iter())
        .map(|(name, colour)| {
            let at = report.packets(name, Isolated::One);
            let mut line: Vec<_> = at.filter_map(|(p, ratio)| Some((across(p)? as f64, ratio))).collect();
            line.sort_by(|a, b| a.0.total_cmp(&b.0));
            (*name, *colour, line)
        })
        .filter(|(_, _, line)| !line.is_empty())
        .collect();
    let all = || lines.iter().flat_map(|(_, _, line)| line);
    let least = all().map(|(x, _)| *x).fold(f64::MAX, f64::min);
    let most = all().map(|(x, _)| *x).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_right(24)
        .x_label_area_size(44)
        .y_label_area_size(46)
        .build_cartesian_2d((least * 0.9..most * 1.2).log_scale(), (0.9..100.0).log_scale())?;
    let grey = RGBColor(210, 210, 210);
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(grey)
        .x_labels(6)
        .y_labels(5)
        .x_desc(about)
        .x_label_formatter(&|x| thousands(x.round() as usize))
        .y_label_formatter(&|y| format!("{y}x"))
        .label_style(("sans-serif", 14).into_font().color(&BLACK))
        .draw()?;
    for (name, colour, line) in lines {
        let style = colour.filled().stroke_width(if name == PALISADE { 4 } else { 2 });
        chart
            .draw_series(LineSeries::new(line.iter().copied(), style).point_size(4))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(grey)
        .label_font(("sans-serif", 14).into_font().color(&BLACK))
        .draw()?;
    Ok(())
}
