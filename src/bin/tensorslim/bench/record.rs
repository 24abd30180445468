//! Shows accuracy against time for our methods and their peers: the record of `benches/peers/compare.py`, which this
//! program carries.
//!
//! ```text
//!   error   x  peer        what lies on or above and to the right of the line is beaten in both by one of our methods
//!         o
//!          \    x
//!           o----o         o  ours: the front is what none of ours beats in both
//!                  time
//! ```
//!
//! The peers are Python programs that cannot be run from here. All points of a matrix are from one run of that script,
//! which takes the methods by turns.

use serde::Deserialize;

use crate::failure::Failure;

const RECORD: &str = include_str!("../../../../benches/record/svd_peers.csv");

/// The error in per cent that is rounding: the optimum is given to this accuracy by all that compute it.
pub(super) const ROUNDING: f64 = 1e-3;

/// A line of the record.
#[derive(Deserialize)]
struct Line {
    matrix: String,
    m: usize,
    n: usize,
    k: usize,
    side: String,
    who: String,
    ms: f64,
    excess_percent: f64,
}

/// A method of factoring a matrix, with its time and error.
pub(super) struct Point {
    pub(super) who: String,
    pub(super) ours: bool,
    pub(super) ms: f64,
    /// The error over the optimum, in per cent.
    pub(super) error: f64,
}

/// All points of one matrix.
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) points: Vec<Point>,
}

/// Reads the record, as a panel for each matrix.
pub(super) fn panels() -> Result<Vec<Panel>, Failure> {
    read(RECORD).map_err(|e| Failure(format!("the record of the peers: {e}")))
}

fn read(text: &str) -> Result<Vec<Panel>, csv::Error> {
    let mut panels: Vec<(String, Panel)> = Vec::new();
    for line in csv::Reader::from_reader(text.as_bytes()).into_deserialize() {
        let Line { matrix, m, n, k, side, who, ms, excess_percent } = line?;
        if panels.last().is_none_or(|(last, _)| *last != matrix) {
            let title = format!("{m}×{n} {matrix}, k = {k}");
            panels.push((matrix, Panel { title, points: Vec::new() }));
        }
        let point = Point { who, ours: side == "ours", ms, error: excess_percent.max(ROUNDING) };
        panels.last_mut().expect("just pushed").1.points.push(point);
    }
    Ok(panels.into_iter().map(|(_, panel)| panel).collect())
}

impl Panel {
    /// Returns those of our points that no other one of ours beats in both, by time.
    pub(super) fn front(&self) -> Vec<&Point> {
        let mut ours: Vec<&Point> = self.points.iter().filter(|p| p.ours).collect();
        ours.sort_by(|a, b| a.ms.total_cmp(&b.ms));
        let mut least = f64::INFINITY;
        ours.retain(|p| {
            let better = p.error < least;
            least = least.min(p.error);
            better
        });
        ours
    }

    /// Returns the peers that none of our points beats in both.
    pub(super) fn unbeaten(&self) -> Vec<&Point> {
        let beaten = |peer: &Point| self.points.iter().any(|p| p.ours && p.ms <= peer.ms && p.error <= peer.error);
        self.points.iter().filter(|p| !p.ours && !beaten(p)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{panels, read};

    #[test]
    fn fronts_and_what_lies_below() {
        let text = "matrix,m,n,k,side,who,ms,excess_percent\n\
                    a,4,3,2,ours,fast,1,5\na,4,3,2,ours,good,3,1\na,4,3,2,ours,idle,4,2\n\
                    a,4,3,2,peer,slow,3,1\na,4,3,2,peer,better,2,3\nb,9,9,1,peer,alone,1,1\n";
        let panels = read(text).unwrap();
        assert_eq!(panels.iter().map(|p| p.title.as_str()).collect::<Vec<_>>(), ["4×3 a, k = 2", "9×9 b, k = 1"]);
        let names = |points: Vec<&super::Point>| points.iter().map(|p| p.who.clone()).collect::<Vec<_>>();
        assert_eq!(names(panels[0].front()), ["fast", "good"]);
        assert_eq!(names(panels[0].unbeaten()), ["better"]);
        assert_eq!(names(panels[1].unbeaten()), ["alone"]);
    }

    /// The record itself has six matrices, and no peer below our front on any.
    #[test]
    fn no_peer_of_the_record_is_unbeaten() {
        let panels = panels().unwrap();
        assert_eq!(panels.len(), 6);
        for panel in panels {
            let unbeaten: Vec<_> = panel.unbeaten().iter().map(|p| p.who.clone()).collect();
            assert!(panel.points.iter().filter(|p| !p.ours).count() >= 4, "{}: too few peers", panel.title);
            assert!(unbeaten.is_empty(), "{}: {unbeaten:?}", panel.title);
        }
    }
}
