//! The flat form as a type of its own, so that it cannot be taken for a model to be saved.

use super::flatten::flatten;
use super::unflatten::unflatten;
use super::{Branch, branch_of_nodes, first_condition, take};
use crate::graph::{Patch, PatchError, View};
use crate::onnx::Model;

/// A model in flat form. What it holds is read through a [`View`] and changed by patches; the only way to a model that can
/// be saved is [`FlatModel::unflatten`].
#[derive(Clone, Debug, PartialEq)]
pub struct FlatModel(Model);

impl FlatModel {
    /// The flat form of a model; the tensors are shared.
    pub fn of(mut model: Model) -> FlatModel {
        flatten(&mut model);
        FlatModel(model)
    }

    /// The index over its one list of nodes.
    pub fn view(&self) -> View<'_> {
        View::new(&self.0)
    }

    /// The model with its branches back in their Ifs.
    pub fn unflatten(&self) -> Model {
        unflatten(&self.0)
    }

    /// The model whose list of nodes has the branches in it: for what reads graphs, and for the engine that calibrates.
    pub(crate) fn as_model(&self) -> &Model {
        &self.0
    }

    /// Changes the list, and flattens what has come in by that.
    pub(crate) fn edit<T, E>(
        &mut self,
        change: impl FnOnce(&mut Model) -> Result<T, E>,
    ) -> Result<T, E> {
        let done = change(&mut self.0)?;
        flatten(&mut self.0);
        Ok(done)
    }

    /// For each node of the list the innermost branch it is in, in words; `None` outside.
    pub fn branch_of_nodes(&self) -> Vec<Option<String>> {
        branch_of_nodes(&self.0)
    }

    /// The condition of the first If that is in no other; `None` if there is no If left to decide.
    pub fn first_condition(&self) -> Option<&str> {
        first_condition(&self.0)
    }

    /// Puts one branch of the first If in the place of the If, and leaves the other out. Returns the names of the values
    /// that nothing computes any more.
    pub fn take(&mut self, branch: Branch) -> Vec<String> {
        take(&mut self.0, branch)
    }

    /// The list as a model, for copies that are run and thrown away: of the calibration, of the comparison of Linears.
    pub(crate) fn into_copy(self) -> Model {
        self.0
    }

    /// Applies patches to the list.
    ///
    /// # Errors
    /// Those of [`crate::graph::apply`].
    pub fn apply(&mut self, patches: Vec<Patch>) -> Result<(), PatchError> {
        crate::graph::apply(&mut self.0, patches)
    }
}
