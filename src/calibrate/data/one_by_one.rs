//! Data for models that run a single row although their batch axis is free.

use crate::calibrate::data::dataset::Dataset;

impl Dataset {
    /// The same rows, one at a time, with a note that says so. Exporters that saw a single row often write its 1 into a
    /// Reshape inside, while they name the batch of the inputs as free: such a model fails on two rows. `None` if
    /// every batch is a single row already, or the model fixes its size.
    pub fn one_by_one(&self) -> Option<Dataset> {
        if self.fixed_batch.is_some() || self.tables.iter().all(|table| table.rows < 2) {
            return None;
        }
        let mut single = self.clone();
        single.fixed_batch = Some(1);
        single.notes.push(
            "the batch axis is free, but the model runs a single row only: rows were run one at a time".to_owned(),
        );
        Some(single)
    }
}
