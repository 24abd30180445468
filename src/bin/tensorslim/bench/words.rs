//! Says what the numbers mean, in sentences that hold for whatever numbers they are.

use tensorslim::Sketch;

use super::results::{Case, POWERS, Suite};
use super::tables::{bytes, seconds};

/// The least gain that is worth a choice.
const GAIN: f64 = 1.2;

pub(super) fn conclusions(suite: &Suite) -> Vec<String> {
    let mut lines = Vec::new();
    let cases = &suite.cases;
    if let Some(line) = fast(cases, Sketch::Srht) {
        lines.push(line);
    }
    if let Some(line) = fast(cases, Sketch::SparseSign) {
        lines.push(line);
    }
    lines.push(small(cases));
    lines.extend(whole(cases));
    lines.extend(accuracy(cases));
    lines.extend(state(suite));
    lines
}

/// Describes the sketch alone.
fn fast(cases: &[Case], sketch: Sketch) -> Option<String> {
    let of = |f: &dyn Fn(&Case) -> Option<f64>| span(cases.iter().filter_map(f));
    let gain = of(&|c| Some(c.sketched(sketch)?.speedup.median))?;
    let read = of(&|c| Some(c.sketched(sketch)?.over_read.median))?;
    let mut line = format!(
        "{} forms AΩ {} as fast as the Gaussian sketch, drawing included, in {} the time of reading A once.",
        if sketch == Sketch::Srht { "The SRHT" } else { "Sparse sign" },
        times(gain),
        times(read)
    );
    if sketch == Sketch::Srht {
        let gemm = of(&|c| Some(c.sketched(Sketch::Gaussian)?.over_gemm.median))?;
        line += &format!(" The Gaussian itself takes {} the time of the bare product with Ω given.", times(gemm));
    }
    Some(line)
}

/// Describes where the sketch alone gains nothing.
fn small(cases: &[Case]) -> String {
    let gain = |c: &Case| c.sketched(Sketch::Srht).map_or(0.0, |s| s.speedup.median);
    let poor: Vec<&Case> = cases.iter().filter(|c| gain(c) < GAIN).collect();
    if poor.is_empty() {
        let least = cases.iter().min_by(|a, b| gain(a).total_cmp(&gain(b)));
        return least.map_or(String::new(), |c| {
            let saved = c.sketched(Sketch::Gaussian).map_or(0.0, |s| s.seconds.median) * (1.0 - 1.0 / gain(c));
            let whole = c.factored(Sketch::Gaussian, 0).map_or(0.0, |f| f.seconds.median);
            format!(
                "No shape is too small for the SRHT here; it gains least at {} ({:.1}×), where it saves {} of a factorization \
                 of {}.",
                c.name,
                gain(c),
                seconds(saved),
                seconds(whole)
            )
        });
    }
    let each = poor.iter().map(|c| {
        let time = c.sketched(Sketch::Srht).map_or(0.0, |s| s.seconds.median);
        format!(
            "{} ({:.2}×: {} for the SRHT, {} for the bare GEMM)",
            c.name,
            gain(c),
            seconds(time),
            seconds(c.gemm.median)
        )
    });
    format!(
        "Too small for the SRHT: {}. The product that it avoids is short there, and drawing, waking threads and transforms \
         of short vectors are not.",
        join(each)
    )
}

/// Describes the whole factorization.
fn whole(cases: &[Case]) -> Vec<String> {
    let gains = |q| span(cases.iter().filter_map(move |c| Some(c.factored(Sketch::Srht, q)?.speedup.median)));
    let mut lines = Vec::new();
    if let Some(gain) = gains(0) {
        lines.push(format!(
            "Without power iterations (q = 0) the whole factorization is {} as fast with the SRHT as with the Gaussian: \
             the sketch is one of two products with A, and orthonormalization and the small SVD remain.",
            times(gain)
        ));
    }
    for q in POWERS.into_iter().filter(|&q| q > 0) {
        // A wide matrix is factored as its transpose, whose sketch was not timed.
        let tall = cases.iter().filter(|c| c.m >= c.n);
        let shares = span(tall.filter_map(|c| {
            Some(c.sketched(Sketch::Gaussian)?.seconds.median / c.factored(Sketch::Gaussian, q)?.seconds.median)
        }));
        let Some(gain) = gains(q) else { continue };
        let verdict = match gain.1 {
            top if top < GAIN => "the SRHT cannot help",
            top if top < 1.5 => "the SRHT helps little",
            _ => "the SRHT helps some shapes",
        };
        let mut line = format!(
            "At q = {q} {verdict}: {} as fast. {} of {} products with A are left to GEMM whatever the sketch",
            times(gain),
            2 * q + 1,
            2 * q + 2
        );
        if let Some((low, high)) = shares {
            let (low, high) = (low.min(0.99), high.min(0.99));
            line += &format!(
                ", and the Gaussian sketch is {} of the time: were it free, the gain would be at most {:.2}×",
                percents(low, high),
                1.0 / (1.0 - high)
            );
        }
        lines.push(line + ".");
    }
    lines
}

/// Describes the error over the optimum.
fn accuracy(cases: &[Case]) -> Vec<String> {
    let over = |sketch, q| {
        let errors = cases.iter().flat_map(|c| &c.inputs).filter_map(move |i| i.errors(sketch, q)?.over_optimum);
        span(errors.map(|e| e.median.max(0.0)))
    };
    // Both errors are at the same input, so that a hard input counts on both sides.
    let against = |q| {
        let pairs = cases.iter().flat_map(|c| &c.inputs).filter_map(move |i| {
            let error = |s| Some(i.errors(s, q)?.over_optimum?.median);
            Some((1.0 + error(Sketch::Srht)?) / (1.0 + error(Sketch::Gaussian)?) - 1.0)
        });
        span(pairs)
    };
    let mut parts = Vec::new();
    for q in POWERS {
        if let (Some((low, high)), Some((less, more))) = (over(Sketch::Srht, q), against(q)) {
            parts.push(format!(
                "at q = {q} {} over the optimum ({} to {} against the Gaussian)",
                percents(low, high),
                signed(less),
                signed(more)
            ));
        }
    }
    if parts.is_empty() {
        return Vec::new();
    }
    let mut lines =
        vec![format!("Accuracy hangs on q and not on the sketch. The SRHT's error is {}.", parts.join("; "))];
    let cost = |q| {
        let ratio = |c: &Case| {
            let time = |q| Some(c.factored(Sketch::Srht, q)?.seconds.median);
            Some(time(q)? / time(0)?)
        };
        span(cases.iter().filter_map(ratio))
    };
    if let (Some(one), Some(two)) = (cost(1), cost(2)) {
        lines.push(format!(
            "With the SRHT one power iteration makes the factorization {} as long, two {}: the SRHT pays where q = 0 is \
             good enough, or where A is only seen once.",
            times(one),
            times(two)
        ));
    }
    lines
}

/// Describes the bytes.
fn state(suite: &Suite) -> Option<String> {
    let srht = |s: &super::results::State| {
        let o = s.operators.iter().find(|o| o.sketch == Sketch::Srht)?;
        Some(format!(
            "{} instead of {} ({:.0}×) at n = {}, l = {}",
            bytes(o.bytes),
            bytes(s.stored),
            o.factor,
            s.n,
            s.l
        ))
    };
    let of = |s: &&super::results::State| super::results::STATE_SIZES.contains(&(s.n, s.l));
    let parts: Vec<String> = suite.state.iter().filter(of).filter_map(srht).collect();
    (!parts.is_empty()).then(|| {
        format!(
            "As state the SRHT keeps its sample: {}. Gaussian and sparse sign keep less here, because they are drawn again \
             from the seed where they are needed; what they are compared with is the stored matrix.",
            parts.join("; ")
        )
    })
}

/// Returns the least and the greatest value.
fn span(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |span, x| Some(span.map_or((x, x), |(low, high): (f64, f64)| (low.min(x), high.max(x)))))
}

/// Formats a range as `6.1 to 9.8 times`, `1.02 to 1.07 times`.
fn times((low, high): (f64, f64)) -> String {
    let digits = if high < 3.0 { 2 } else { 1 };
    let (low, high) = (format!("{low:.digits$}"), format!("{high:.digits$}"));
    if low == high { format!("{low} times") } else { format!("{low} to {high} times") }
}

fn percents(low: f64, high: f64) -> String {
    let (low, high) = (percent(low), percent(high));
    if low == high { high } else { format!("{low} to {high}") }
}

fn percent(x: f64) -> String {
    super::tables::percent(x)
}

fn signed(x: f64) -> String {
    format!("{:+.2} %", 100.0 * x).replace('-', "−")
}

/// Joins parts as `a`, `a and b`, `a, b and c`.
fn join(parts: impl Iterator<Item = String>) -> String {
    let mut parts: Vec<String> = parts.collect();
    match parts.pop() {
        None => String::new(),
        Some(last) if parts.is_empty() => last,
        Some(last) => format!("{} and {last}", parts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_lists_read_well() {
        assert_eq!(span([2.0, 1.0, 3.0].into_iter()), Some((1.0, 3.0)));
        assert_eq!(span(std::iter::empty()), None);
        assert_eq!(times((1.021, 1.018)), "1.02 times");
        assert_eq!(times((6.14, 9.8)), "6.1 to 9.8 times");
        assert_eq!(signed(-0.0012), "−0.12 %");
        let list = |n: usize| join(["a", "b", "c"].into_iter().take(n).map(str::to_owned));
        assert_eq!([list(0), list(1), list(2), list(3)], ["", "a", "a and b", "a, b and c"]);
    }
}
