//! Draws the plots, as SVG text without outer resources.
//!
//! Colours are those of Okabe and Ito, which the colour-blind can tell apart, too; curves also differ in their markers.
//! Ticks are at 1, 2, 5 of each decade (1 alone over many decades), because most plots span a decade or two. Legends
//! stand in the page.

use plotters::coord::Shift;
use plotters::coord::combinators::{BindKeyPoints, WithKeyPoints};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use tensorslim::Sketch;

use super::record::Panel;
use super::results::{Case, Input, POWERS, SKETCHES, State, Suite};
use super::tables::{label, three};
use crate::failure::Failure;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// The result of drawing, with the error of plotters.
type Drawn<T = ()> = Result<T, Box<dyn std::error::Error + 'static>>;

const INK: RGBColor = RGBColor(0x1a, 0x1a, 0x1a);
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
pub(super) const READ: RGBColor = RGBColor(0x70, 0x70, 0x70);
/// The colour of our methods beside their peers.
pub(super) const FRONT: RGBColor = RGBColor(0x00, 0x72, 0xb2);
pub(super) const PEERS: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
pub(super) const GEMM: RGBColor = RGBColor(0x1a, 0x1a, 0x1a);
/// The colours of the bars of the speed-ups: the sketch alone, then q = 0, 1, 2.
pub(super) const SHADES: [RGBColor; 4] =
    [RGBColor(0x00, 0x3f, 0x6b), RGBColor(0x00, 0x72, 0xb2), RGBColor(0x6f, 0xb4, 0xdc), RGBColor(0xc0, 0xdf, 0xf1)];

pub(super) fn colour(sketch: Sketch) -> RGBColor {
    match sketch {
        Sketch::Gaussian => RGBColor(0xd5, 0x5e, 0x00),
        Sketch::Srht => RGBColor(0x00, 0x72, 0xb2),
        _ => RGBColor(0x00, 0x9e, 0x73),
    }
}

/// A group of bars, with marks across it.
struct Group {
    label: Vec<String>,
    bars: Vec<Bar>,
    marks: Vec<(RGBColor, f64)>,
}

struct Bar {
    colour: RGBColor,
    value: f64,
    /// The least and the greatest value.
    spread: Option<(f64, f64)>,
    /// The number of the bar; where marks cross the bars it stands at the foot, in white.
    text: String,
}

/// Draws the time of the sketch alone for each shape, with the floors.
pub(super) fn sketch_times(suite: &Suite) -> Result<String, Failure> {
    let group = |c: &Case| Group {
        label: vec![label(c), format!("l = {}", c.l)],
        bars: (c.sketches.iter())
            .map(|s| Bar {
                colour: colour(s.sketch),
                value: s.seconds.median * 1e3,
                spread: Some((s.seconds.min * 1e3, s.seconds.max * 1e3)),
                text: three(s.seconds.median * 1e3),
            })
            .collect(),
        marks: vec![(READ, c.read.median * 1e3), (GEMM, c.gemm.median * 1e3)],
    };
    bars("time of A Ω in ms", None, &suite.cases.iter().map(group).collect::<Vec<_>>())
}

/// Draws how much faster the SRHT is than the Gaussian: alone, and in the factorization.
pub(super) fn speedups(suite: &Suite) -> Result<String, Failure> {
    let group = |c: &Case| {
        let alone = c.sketched(Sketch::Srht).map(|s| s.speedup);
        let whole = POWERS.iter().map(|&q| c.factored(Sketch::Srht, q).map(|f| f.speedup));
        let bar = |(speedup, colour): (_, RGBColor)| {
            let s: super::results::Stat = speedup?;
            Some(Bar { colour, value: s.median, spread: Some((s.min, s.max)), text: three(s.median) })
        };
        Group {
            label: vec![label(c), format!("l = {}", c.l)],
            bars: std::iter::once(alone).chain(whole).zip(SHADES).filter_map(bar).collect(),
            marks: Vec::new(),
        }
    };
    let groups: Vec<_> = suite.cases.iter().map(group).collect();
    bars("time with Gaussian / time with SRHT", Some(1.0), &groups)
}

/// Draws the bytes of the operators and of the stored matrix.
pub(super) fn states(suite: &Suite) -> Result<String, Failure> {
    let group = |s: &State| {
        let bar = |colour, bytes: usize| Bar { colour, value: bytes as f64, spread: None, text: short(bytes as f64) };
        let stored = bar(READ, s.stored);
        let operators = s.operators.iter().map(|o| bar(colour(o.sketch), o.bytes));
        Group {
            label: vec![format!("n = {}", s.n), format!("l = {}", s.l)],
            bars: std::iter::once(stored).chain(operators).collect(),
            marks: Vec::new(),
        }
    };
    bars("bytes", None, &suite.state.iter().map(group).collect::<Vec<_>>())
}

/// Draws groups of bars over a logarithmic scale; bars rise from `base` if there is one, else from the axis.
fn bars(y_title: &str, base: Option<f64>, groups: &[Group]) -> Result<String, Failure> {
    let bars = || groups.iter().flat_map(|g| &g.bars);
    let ends = |b: &Bar| b.spread.map_or([b.value; 2], |(low, high)| [low, high]);
    let marks = groups.iter().flat_map(|g| g.marks.iter().map(|m| m.1));
    let (low, high) = span(bars().flat_map(ends).chain(marks).chain(base));
    // There is room below the shortest bar, so that it is seen, and above for the numbers.
    let below = if base.is_some() { 1.1 } else { (high / low).powf(0.1).max(1.5) };
    let (low, high) = (low / below, high * (high / low).powf(0.08).max(1.1));
    svg((1080, 430), |root| {
        let (width, bottom) = (groups.len().max(1) as f64, 62);
        let mut chart = ChartBuilder::on(root)
            .margin_top(12)
            .margin_right(8)
            .y_label_area_size(74)
            .x_label_area_size(bottom)
            .build_cartesian_2d(0.0..width, (low..high).log_scale().with_key_points(ticks(low, high)))?;
        (chart.configure_mesh())
            .disable_x_mesh()
            .disable_x_axis()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(INK)
            .y_desc(y_title)
            .y_labels(40)
            .y_label_formatter(&|y| plain(*y))
            .label_style(font(17))
            .axis_desc_style(font(17))
            .draw()?;
        let foot = base.unwrap_or(low);
        for (i, group) in groups.iter().enumerate() {
            let count = group.bars.len().max(1) as f64;
            let (left, bar_width) = (i as f64 + 0.1, 0.8 / count);
            for (j, bar) in group.bars.iter().enumerate() {
                let x = left + bar_width * j as f64;
                let (x0, x1, middle) = (x + 0.04 * bar_width, x + 0.96 * bar_width, x + 0.5 * bar_width);
                let (y0, y1) = (foot.min(bar.value), foot.max(bar.value));
                chart.draw_series([Rectangle::new([(x0, y0), (x1, y1)], bar.colour.filled())])?;
                let mut top = y1;
                if let Some((least, most)) = bar.spread {
                    chart
                        .draw_series([PathElement::new(vec![(middle, least), (middle, most)], INK.stroke_width(1))])?;
                    top = top.max(most);
                }
                let style = font(16).pos(Pos::new(HPos::Center, VPos::Bottom));
                let (y, style) = if group.marks.is_empty() { (top, style) } else { (low, style.color(&WHITE)) };
                chart.draw_series([EmptyElement::at((middle, y)) + Text::new(bar.text.clone(), (0, -4), style)])?;
            }
            for &(colour, y) in &group.marks {
                let line = vec![(left - 0.04, y), (left + 0.84, y)];
                chart.draw_series([PathElement::new(line, colour.stroke_width(2))])?;
            }
            for (j, text) in group.label.iter().enumerate() {
                let (x, y) = chart.backend_coord(&(i as f64 + 0.5, low));
                let style = font(16).pos(Pos::new(HPos::Center, VPos::Top));
                root.draw(&Text::new(text.clone(), (x, y + 8 + 20 * j as i32), style))?;
            }
        }
        if base.is_some() {
            chart.draw_series([PathElement::new(vec![(0.0, foot), (width, foot)], INK.stroke_width(1))])?;
        }
        Ok(())
    })
}

/// Draws the error over the optimum against time, with a curve for each sketch through its power iterations.
pub(super) fn pareto(case: &Case, input: &Input) -> Result<Option<String>, Failure> {
    struct Point {
        q: usize,
        ms: f64,
        error: f64,
        spread: (f64, f64),
    }
    /// The error in per cent below which it is rounding.
    const FLOOR: f64 = 1e-4;
    let curve = |sketch: Sketch| {
        let point = |&q: &usize| {
            let (time, over) = (case.factored(sketch, q)?.seconds, input.errors(sketch, q)?.over_optimum?);
            let error = |x: f64| (100.0 * x).max(FLOOR);
            let spread = (error(over.min), error(over.max));
            Some(Point { q, ms: time.median * 1e3, error: error(over.median), spread })
        };
        (sketch, POWERS.iter().filter_map(point).collect::<Vec<_>>())
    };
    let curves = SKETCHES.map(curve);
    let points = || curves.iter().flat_map(|(_, points)| points);
    if points().next().is_none() {
        return Ok(None);
    }
    let widen = |(low, high): (f64, f64), by: f64| {
        let by = (high / low).powf(by).max(1.15);
        (low / by, high * by)
    };
    let (x0, x1) = widen(span(points().map(|p| p.ms)), 0.12);
    let (y0, y1) = widen(span(points().flat_map(|p| [p.spread.0, p.spread.1])), 0.12);
    let drawn = svg((520, 330), |root| {
        let mut chart = accuracy_chart(root, (x0, x1), (y0, y1))?;
        for (sketch, points) in &curves {
            let colour = colour(*sketch);
            let line: Vec<_> = points.iter().map(|p| (p.ms, p.error)).collect();
            chart.draw_series([PathElement::new(line, colour.stroke_width(2))])?;
            for p in points {
                let spread = vec![(p.ms, p.spread.0), (p.ms, p.spread.1)];
                chart.draw_series([PathElement::new(spread, colour.stroke_width(2))])?;
                let (at, fill) = ((p.ms, p.error), colour.filled());
                match sketch {
                    Sketch::Gaussian => chart.draw_series([Circle::new(at, 5, fill)]).map(drop)?,
                    Sketch::Srht => {
                        let square = Rectangle::new([(-5, -5), (5, 5)], fill);
                        chart.draw_series([EmptyElement::at(at) + square]).map(drop)?;
                    }
                    _ => chart.draw_series([TriangleMarker::new(at, 6, fill)]).map(drop)?,
                }
            }
        }
        // There is one label for the points of each q, above the rightmost.
        for q in POWERS {
            let of = || points().filter(move |p| p.q == q);
            let Some(last) = of().max_by(|a, b| a.ms.total_cmp(&b.ms)) else { continue };
            let style = font(16).pos(Pos::new(HPos::Left, VPos::Bottom));
            let text = Text::new(format!("q = {q}"), (7, -5), style);
            chart.draw_series([EmptyElement::at((last.ms, last.error)) + text])?;
        }
        Ok(())
    });
    drawn.map(Some)
}

/// Draws the front of our methods with all its points, and the peers.
pub(super) fn front(panel: &Panel) -> Result<String, Failure> {
    let widen = |(low, high): (f64, f64), by: f64| (low / (1.0 + by), high * (1.0 + by));
    let (x0, x1) = widen(span(panel.points.iter().map(|p| p.ms)), 0.35);
    let (y0, y1) = widen(span(panel.points.iter().map(|p| p.error)), 1.2);
    svg((1080, 470), |root| {
        let mut chart = accuracy_chart(root, (x0, x1), (y0, y1))?;
        // The front goes in steps: until the next point is fast enough, the last one is the best there is.
        let mut steps = Vec::new();
        for p in panel.front() {
            steps.extend(steps.last().map(|&(_, error)| (p.ms, error)));
            steps.push((p.ms, p.error));
        }
        chart.draw_series([PathElement::new(steps.clone(), FRONT.stroke_width(2))])?;
        let points: Vec<_> =
            panel.points.iter().map(|p| (chart.backend_coord(&(p.ms, p.error)), p.who.as_str())).collect();
        let (across, down) = chart.plotting_area().get_pixel_range();
        let corners: Vec<_> = steps.iter().map(|at| chart.backend_coord(at)).collect();
        let labels = place_labels(&points, &corners, (across.start, down.start), (across.end, down.end));
        for (p, (dx, dy)) in panel.points.iter().zip(labels) {
            let at = (p.ms, p.error);
            let colour = if p.ours { FRONT } else { PEERS };
            if dy.abs() > NEAR {
                let leader = PathElement::new([(0, 0), (dx, dy)], colour.stroke_width(1));
                chart.draw_series([EmptyElement::at(at) + leader])?;
            }
            let style = font(LABEL_FONT).color(&colour).pos(Pos::new(HPos::Left, VPos::Center));
            let label = Text::new(p.who.clone(), (dx, dy), style);
            if p.ours {
                chart.draw_series([EmptyElement::at(at) + Circle::new((0, 0), 5, FRONT.filled()) + label])?;
            } else {
                chart.draw_series([EmptyElement::at(at) + Cross::new((0, 0), 5, PEERS.stroke_width(2)) + label])?;
            }
        }
        Ok(())
    })
}

const LABEL_FONT: u32 = 15;
/// The distance up or down within which a label has no line to its point.
const NEAR: i32 = 16;

/// Returns the offset of the left middle of each label from its point, so that no label lies on another one, on a point
/// or on the path of steps, as long as there is room within the last two corners.
fn place_labels(
    points: &[((i32, i32), &str)],
    steps: &[(i32, i32)],
    low: (i32, i32),
    high: (i32, i32),
) -> Vec<(i32, i32)> {
    const HALF: i32 = 7;
    let clear = |a: &[i32; 4], b: &[i32; 4]| a[2] <= b[0] || b[2] <= a[0] || a[3] <= b[1] || b[3] <= a[1];
    let line = |ends: &[(i32, i32)]| {
        let ((x, y), (to_x, to_y)) = (ends[0], ends[1]);
        [x.min(to_x) - 2, y.min(to_y) - 2, x.max(to_x) + 2, y.max(to_y) + 2]
    };
    let marker = |&((x, y), _): &((i32, i32), &str)| [x - 6, y - 6, x + 6, y + 6];
    let mut taken: Vec<[i32; 4]> = points.iter().map(marker).chain(steps.windows(2).map(line)).collect();
    let mut offsets = vec![(9, 0); points.len()];
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by_key(|&i| points[i].0);
    for i in order {
        let ((x, y), text) = points[i];
        let width = 7 * text.chars().count() as i32;
        let rows = (0..12).flat_map(|row| [-2 * HALF * row, 2 * HALF * row]);
        let candidates = rows.flat_map(|dy| [(9, dy), (-9 - width, dy)]);
        let boxed = |(dx, dy): (i32, i32)| [x + dx, y + dy - HALF, x + dx + width, y + dy + HALF];
        let free = |&at: &(i32, i32)| {
            let label = boxed(at);
            let inside = label[0] >= low.0 && label[1] >= low.1 && label[2] <= high.0 && label[3] <= high.1;
            inside && taken.iter().all(|other| clear(&label, other))
        };
        if let Some(at) = candidates.into_iter().find(free) {
            offsets[i] = at;
        }
        taken.push(boxed(offsets[i]));
    }
    offsets
}

type LogLog = Cartesian2d<WithKeyPoints<LogCoord<f64>>, WithKeyPoints<LogCoord<f64>>>;

/// Draws the axes of error against time.
fn accuracy_chart<'a, 'b>(
    root: &'a Area<'b>,
    (x0, x1): (f64, f64),
    (y0, y1): (f64, f64),
) -> Drawn<ChartContext<'a, SVGBackend<'b>, LogLog>> {
    let mut chart = ChartBuilder::on(root)
        .margin_top(10)
        .margin_right(14)
        .y_label_area_size(76)
        .x_label_area_size(52)
        .build_cartesian_2d(
            (x0..x1).log_scale().with_key_points(ticks(x0, x1)),
            (y0..y1).log_scale().with_key_points(ticks(y0, y1)),
        )?;
    (chart.configure_mesh())
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .x_desc("time of the factorization in ms")
        .y_desc("error over the optimum in %")
        .x_labels(40)
        .y_labels(40)
        .x_label_formatter(&|x| plain(*x))
        .y_label_formatter(&|y| plain(*y))
        .label_style(font(16))
        .axis_desc_style(font(16))
        .draw()?;
    Ok(chart)
}

/// Draws on white. The size is a ratio, because the page scales plots to its width.
fn svg(size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String, Failure> {
    let mut text = String::new();
    let drawn = || -> Drawn {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE)?;
        draw(&root)?;
        root.present()?;
        Ok(())
    };
    let failed = |e: Box<dyn std::error::Error>| Failure(format!("a plot could not be drawn: {e}"));
    drawn().map_err(failed)?;
    Ok(text.replacen(&format!("width=\"{}\" height=\"{}\" ", size.0, size.1), "role=\"img\" ", 1))
}

/// Returns a font. plotters divides the size by 1.24 on the way to SVG: 17 stands for 14 pixels.
fn font(size: u32) -> TextStyle<'static> {
    TextStyle::from(("sans-serif", size).into_font()).color(&INK)
}

fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), x| (low.min(x), high.max(x)));
    (low.min(high).max(f64::MIN_POSITIVE), high)
}

/// Returns powers of ten times 1, 2, 5 in `low..high`; the powers alone when there are many, and every second of very
/// many.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = (high / low).log10();
    let steps: &[f64] = match decades {
        d if d < 0.5 => &[1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
        d if d < 1.1 => &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
        d if d < 2.2 => &[1.0, 2.0, 5.0],
        _ => &[1.0],
    };
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let all = (first..=last).flat_map(|e| steps.iter().map(move |s| s * 10f64.powi(e)));
    all.filter(|x| (low..=high).contains(x)).collect()
}

/// Formats a number as `212`, `75.8k` or `4.36M`.
fn short(x: f64) -> String {
    let unit = |x: f64, name: &str| format!("{}{name}", three(x).trim_end_matches(".00"));
    match x {
        x if x < 1e3 => format!("{x}"),
        x if x < 1e6 => unit(x / 1e3, "k"),
        x if x < 1e9 => unit(x / 1e6, "M"),
        x => unit(x / 1e9, "G"),
    }
}

/// Formats a number as `0.05`, `2`, `500` or `10k`.
fn plain(x: f64) -> String {
    if x >= 9999.0 {
        return short(x).replace(".0", "");
    }
    let digits = (-x.log10().floor()).max(0.0) as usize;
    let text = format!("{x:.*}", digits + 1);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::{place_labels, plain, short, span, ticks};

    #[test]
    fn ticks_fit_the_span() {
        assert_eq!(ticks(0.8, 30.0), [1.0, 2.0, 5.0, 10.0, 20.0]);
        assert_eq!(ticks(2.9, 4.1), [3.0, 4.0]);
        assert_eq!(ticks(1.0, 1e5).len(), 6);
        assert_eq!([short(212.0), short(75_776.0), short(1e6)], ["212", "75.8k", "1M"]);
        assert_eq!([plain(1e4), plain(1e5), plain(1e7)], ["10k", "100k", "10M"]);
        assert_eq!(
            [plain(0.05), plain(2.0), plain(1e3), plain(0.001), plain(1.2)],
            ["0.05", "2", "1000", "0.001", "1.2"]
        );
        assert_eq!(span([3.0, 0.5].into_iter()), (0.5, 3.0));
    }

    #[test]
    fn labels_keep_clear_of_each_other() {
        let points: Vec<_> = (0..8).map(|i| ((100 + 3 * i, 200), "randomized q=1")).collect();
        let labels = place_labels(&points, &[(0, 200), (400, 200)], (0, 0), (800, 400));
        for i in 0..8 {
            for j in 0..8 {
                let at = |i: usize| (points[i].0.0 + labels[i].0, points[i].0.1 + labels[i].1);
                let apart = |a: i32, b: i32, size: i32| (a - b).abs() >= size;
                assert!(apart(at(i).1, 200, 7), "{i} on the line: {labels:?}");
                assert!(apart(at(i).0, at(j).0, 98) || apart(at(i).1, at(j).1, 14) || i == j, "{i} on {j}: {labels:?}");
            }
        }
    }
}
