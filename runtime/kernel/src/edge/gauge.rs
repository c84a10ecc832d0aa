//! A lane's depth against its marks, where the lane is no edge's buffer.

use rspp_proto::spec::Marks;

use super::{EdgeNotice, Mark};

/// Says when a lane has come to its high mark, and when it has fallen to the low one since
/// (turn-plan.md §6).
#[derive(Clone, Copy, Debug)]
pub struct Gauge {
    marks: Marks,
    is_high: bool,
}

impl Gauge {
    /// Of an empty lane.
    pub fn new(marks: Marks) -> Self {
        Self {
            marks,
            is_high: false,
        }
    }

    /// What there is to say now that so many items wait, in order; mostly nothing.
    pub fn read(&mut self, level: u64) -> impl Iterator<Item = EdgeNotice> + use<> {
        let Marks { high, low } = self.marks;
        let crossed = if self.is_high {
            level <= low
        } else {
            level >= high
        };
        self.is_high ^= crossed;
        let said = match (crossed, self.is_high) {
            (false, _) => [None, None],
            (true, false) => [Some(EdgeNotice::FlowXon), None],
            (true, true) => {
                let mark = Mark::Lane;
                [
                    Some(EdgeNotice::Watermark { mark, level }),
                    Some(EdgeNotice::FlowXoff),
                ]
            }
        };
        said.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F-144: each crossing is said once, however often the lane is looked at between the marks.
    #[test]
    fn each_crossing_is_said_once() {
        let mut gauge = Gauge::new(Marks { high: 4, low: 1 });
        let mut said = Vec::new();
        for level in [0, 3, 4, 5, 4, 2, 1, 3, 1, 0, 6] {
            said.extend(gauge.read(level).map(|notice| (level, notice)));
        }
        let high = |level| {
            let mark = Mark::Lane;
            let mark = EdgeNotice::Watermark { mark, level };
            [(level, mark), (level, EdgeNotice::FlowXoff)]
        };
        let [mark, stop] = high(4);
        let [again, stops] = high(6);
        assert_eq!(said, [mark, stop, (1, EdgeNotice::FlowXon), again, stops]);
    }
}
