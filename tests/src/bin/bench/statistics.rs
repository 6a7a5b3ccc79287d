//! Medians and their spread.

/// Sorted measurements.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    /// Of measurements in any order.
    pub(crate) fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// The smallest value that `share` (0 to 1) of all do not exceed; not a number if there are none.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of a small length"
        )]
        let index = (self.0.len() as f64 * share).ceil() as usize;
        self.0
            .get(index.saturating_sub(1))
            .copied()
            .unwrap_or(f64::NAN)
    }

    /// Whether nothing was measured.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One by each of them.
    pub(crate) fn inverse(&self) -> Self {
        Self::new(self.0.iter().map(|value| 1.0 / value).collect())
    }

    /// The middle.
    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Where the middle half lies.
    pub(crate) fn quartiles(&self) -> (f64, f64) {
        (self.quantile(0.25), self.quantile(0.75))
    }
}
