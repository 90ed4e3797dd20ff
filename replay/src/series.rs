//! A quantity over time, in a bounded number of points.
//!
//! The window is cut into buckets of equal length; a series keeps the value at the end of each bucket
//! in which it changed.

use maptrail_tracelog::types::Nanos;

/// How the window is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buckets {
    width_ns: u64,
    count: u32,
}

impl Buckets {
    /// Cuts `[0, last]` into at most `count` buckets.
    #[must_use]
    pub fn new(last: Nanos, count: u32) -> Buckets {
        let count = count.max(1);
        Buckets {
            width_ns: (last.0 / u64::from(count)).saturating_add(1),
            count,
        }
    }

    /// The bucket of an instant; what lies past the window's end is in the last one.
    #[must_use]
    pub fn of(self, at: Nanos) -> u32 {
        u32::try_from(at.0 / self.width_ns)
            .unwrap_or(u32::MAX)
            .min(self.count - 1)
    }

    /// How many there are.
    #[must_use]
    pub fn count(self) -> u32 {
        self.count
    }

    /// The length of one, nanoseconds.
    #[must_use]
    pub fn width_ns(self) -> u64 {
        self.width_ns
    }
}

/// A value over time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Series<T = u64> {
    /// Bucket, and value at its end; ascending.
    points: Vec<(u32, T)>,
}

impl<T: Copy + Default> Series<T> {
    /// The value is this from `bucket` on.
    pub fn set(&mut self, bucket: u32, value: T) {
        match self.points.last_mut() {
            // Times of different threads may disagree by a little: the last bucket takes it.
            Some((last, at)) if *last >= bucket => *at = value,
            _ => self.points.push((bucket, value)),
        }
    }

    /// The value at the end of `bucket`; 0, or `None`, before the first.
    #[must_use]
    pub fn at(&self, bucket: u32) -> T {
        let after = self.points.partition_point(|(b, _)| *b <= bucket);
        after
            .checked_sub(1)
            .and_then(|i| self.points.get(i))
            .map_or(T::default(), |(_, value)| *value)
    }

    /// The values at the ends of these buckets.
    pub fn values(&self, buckets: std::ops::Range<u32>) -> impl Iterator<Item = T> {
        let mut next = self.points.partition_point(|(b, _)| *b <= buckets.start);
        let mut value = self.at(buckets.start);
        buckets.map(move |bucket| {
            while let Some((_, v)) = self.points.get(next).filter(|(b, _)| *b <= bucket) {
                value = *v;
                next += 1;
            }
            value
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_bucket_counts_and_lasts() {
        let buckets = Buckets::new(Nanos(999), 10);
        let mut series = Series::default();
        for (at, value) in [(250, 5), (290, 7), (510, 3)] {
            series.set(buckets.of(Nanos(at)), value);
        }
        let values: Vec<u64> = series.values(0..10).collect();
        assert_eq!(values, [0, 0, 7, 7, 7, 3, 3, 3, 3, 3]);
        assert_eq!(buckets.of(Nanos(5000)), 9, "past the end");
        assert_eq!(series.values(2..4).collect::<Vec<_>>(), [7, 7]);
    }
}
