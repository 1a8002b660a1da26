//! Patches: the only way to change a model.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use thiserror::Error;

use super::check::{GraphError, check_names};
use super::view::{NodeId, View};
use crate::onnx::Model;
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::proto::{
    NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, ValueInfoProto, type_proto,
};

/// Why a patch could not be applied. Each is a defect of the rule that made the patch, never of the user's file;
/// the model is left as it was.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PatchError {
    /// Two patches want different things for one place.
    #[error("two changes of the same place: {place} ({first}; {second})")]
    Conflict {
        /// The node input, node or initializer.
        place: String,
        /// The reason of the patch that came first.
        first: String,
        /// The reason of the one that came second.
        second: String,
    },
    /// An initializer that does not exist was to be overwritten.
    #[error("`{reason}` would overwrite the initializer `{name}`, which does not exist")]
    NoInitializer {
        /// The reason of the patch.
        reason: String,
        /// The name.
        name: String,
    },
    /// The result would not be a graph.
    #[error("after `{reason}`, {problem}")]
    Broken {
        /// The reason of the last patch.
        reason: String,
        /// What would be wrong with the result.
        problem: GraphError,
    },
}

enum Edit {
    Rewire {
        node: NodeId,
        input: usize,
        to: String,
    },
    RenameOutput {
        node: NodeId,
        output: usize,
        to: String,
    },
    Replace {
        node: NodeId,
        with: NodeProto,
    },
    Remove {
        node: NodeId,
    },
    Insert {
        anchor: NodeId,
        after: bool,
        node: NodeProto,
    },
    AddInitializer(TensorProto),
    SetInitializer(TensorProto),
    Import {
        domain: &'static str,
        version: i64,
    },
    RemoveInitializer(String),
}

/// A set of edits against one [`View`], with the reason for them.
///
/// Node ids are those of the view the patch was made for: edits do not shift them, and several patches of the
/// same view can be applied together.
pub struct Patch {
    reason: String,
    edits: Vec<Edit>,
}

impl Patch {
    /// An empty patch. `reason` says what the change is for, as a clause: "fold the scale of `x` into `w`".
    pub fn new(reason: impl Into<String>) -> Self {
        Patch {
            reason: reason.into(),
            edits: Vec::new(),
        }
    }

    /// Why this patch exists.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Makes input number `input` of `node` read the value `to`.
    pub fn rewire(&mut self, node: NodeId, input: usize, to: impl Into<String>) {
        self.edits.push(Edit::Rewire {
            node,
            input,
            to: to.into(),
        });
    }

    /// Makes output number `output` of `node` define the value `to` in place of what it defined.
    pub fn rename_output(&mut self, node: NodeId, output: usize, to: impl Into<String>) {
        self.edits.push(Edit::RenameOutput {
            node,
            output,
            to: to.into(),
        });
    }

    /// Puts `with` in the place of `node`. Rewirings of the same node by this or other patches apply on top.
    pub fn replace(&mut self, node: NodeId, with: NodeProto) {
        self.edits.push(Edit::Replace { node, with });
    }

    /// Takes `node` out. What it wrote must come from elsewhere, or be read by nothing.
    pub fn remove(&mut self, node: NodeId) {
        self.edits.push(Edit::Remove { node });
    }

    /// Inserts a node right before `anchor`; several keep the order of insertion.
    pub fn insert_before(&mut self, anchor: NodeId, node: NodeProto) {
        self.edits.push(Edit::Insert {
            anchor,
            after: false,
            node,
        });
    }

    /// Inserts a node right after `anchor`; several keep the order of insertion.
    pub fn insert_after(&mut self, anchor: NodeId, node: NodeProto) {
        self.edits.push(Edit::Insert {
            anchor,
            after: true,
            node,
        });
    }

    /// Appends an initializer under a name that is free.
    pub fn add_initializer(&mut self, tensor: TensorProto) {
        self.edits.push(Edit::AddInitializer(tensor));
    }

    /// Imports an operator set, unless the model imports one of that domain.
    pub fn import(&mut self, domain: &'static str, version: i64) {
        self.edits.push(Edit::Import { domain, version });
    }

    /// Overwrites the initializer of the same name. Only for one whose every reader wants the new value.
    pub fn set_initializer(&mut self, tensor: TensorProto) {
        self.edits.push(Edit::SetInitializer(tensor));
    }

    /// Removes the initializer of that name, which nothing may read.
    pub fn remove_initializer(&mut self, name: impl Into<String>) {
        self.edits.push(Edit::RemoveInitializer(name.into()));
    }
}

/// The edits of all patches, sorted by where they apply.
#[derive(Default)]
struct Plan {
    rewire: BTreeMap<(usize, usize), (String, usize)>,
    rename: BTreeMap<(usize, usize), (String, usize)>,
    /// `None` takes the node out.
    replace: BTreeMap<usize, (Option<NodeProto>, usize)>,
    before: BTreeMap<usize, Vec<NodeProto>>,
    after: BTreeMap<usize, Vec<NodeProto>>,
    add: Vec<TensorProto>,
    set: BTreeMap<String, (TensorProto, usize)>,
    import: BTreeMap<&'static str, i64>,
    drop: BTreeSet<String>,
}

/// Applies patches, all made against a view of `model` as it is now.
///
/// Nodes and initializers that were read before and are read by nothing afterwards are removed (a weight that
/// has been replaced); what was unused already stays. All other nodes keep name, order, attributes, doc string
/// and metadata.
///
/// # Errors
/// [`PatchError`] if patches contradict each other or the result would not be a graph; `model` is unchanged then.
pub fn apply(model: &mut Model, patches: Vec<Patch>) -> Result<(), PatchError> {
    if patches.is_empty() {
        return Ok(());
    }
    let reasons: Vec<String> = patches.iter().map(|p| p.reason.clone()).collect();
    let plan = merge(patches, &reasons)?;
    for (name, (_, p)) in &plan.set {
        if !model.graph().initializer.iter().any(|t| t.name() == name) {
            return Err(PatchError::NoInitializer {
                reason: reasons[*p].clone(),
                name: name.clone(),
            });
        }
    }
    let unused_before = unused(&View::new(model));

    let mut changed = model.clone();
    let graph = changed.graph_mut();
    let nodes = std::mem::take(&mut graph.node);
    for (i, mut node) in nodes.into_iter().enumerate() {
        graph
            .node
            .extend(plan.before.get(&i).cloned().unwrap_or_default());
        let keep = match plan.replace.get(&i) {
            Some((Some(with), _)) => {
                node = with.clone();
                true
            }
            Some((None, _)) => false,
            None => true,
        };
        for ((_, slot), (to, _)) in plan.rewire.range((i, 0)..(i + 1, 0)) {
            set_slot(&mut node.input, *slot, to);
        }
        for ((_, slot), (to, _)) in plan.rename.range((i, 0)..(i + 1, 0)) {
            set_slot(&mut node.output, *slot, to);
        }
        if keep {
            graph.node.push(node);
        }
        graph
            .node
            .extend(plan.after.get(&i).cloned().unwrap_or_default());
    }
    for tensor in &mut graph.initializer {
        if let Some((with, _)) = tensor.name.as_ref().and_then(|n| plan.set.get(n)) {
            *tensor = with.clone();
        }
    }
    let dropped = |name: Option<&String>| name.is_some_and(|n| plan.drop.contains(n));
    graph.initializer.retain(|t| !dropped(t.name.as_ref()));
    if model.proto.ir_version.unwrap_or(0) < 4 {
        graph.input.retain(|i| !dropped(i.name.as_ref()));
    }
    graph.initializer.extend(plan.add);
    let infos = graph.input.iter_mut().chain(&mut graph.value_info);
    for info in infos {
        if let Some((with, _)) = info.name.as_ref().and_then(|n| plan.set.get(n)) {
            state_type_of(info, with);
        }
    }

    for (domain, version) in plan.import {
        let imports = &mut changed.proto.opset_import;
        if !imports.iter().any(|o| o.domain() == domain) {
            imports.push(OperatorSetIdProto {
                domain: Some(domain.to_owned()),
                version: Some(version),
            });
        }
    }
    prune(&mut changed, &unused_before);
    forget(model, &mut changed);
    check_names(&changed).map_err(|problem| PatchError::Broken {
        reason: reasons.last().cloned().unwrap_or_default(),
        problem,
    })?;
    *model = changed;
    Ok(())
}

fn merge(patches: Vec<Patch>, reasons: &[String]) -> Result<Plan, PatchError> {
    let mut plan = Plan::default();
    for (p, patch) in patches.into_iter().enumerate() {
        let conflict = |place: String, first: usize| PatchError::Conflict {
            place,
            first: reasons[first].clone(),
            second: reasons[p].clone(),
        };
        for edit in patch.edits {
            match edit {
                Edit::Rewire { node, input, to } => {
                    let old = plan.rewire.insert((node.0, input), (to.clone(), p));
                    if let Some((_, first)) = old.filter(|(t, _)| *t != to) {
                        return Err(conflict(format!("input {input} of node {}", node.0), first));
                    }
                }
                Edit::RenameOutput { node, output, to } => {
                    let old = plan.rename.insert((node.0, output), (to.clone(), p));
                    if let Some((_, first)) = old.filter(|(t, _)| *t != to) {
                        return Err(conflict(
                            format!("output {output} of node {}", node.0),
                            first,
                        ));
                    }
                }
                Edit::Replace { node, with } => {
                    if let Some((_, first)) = plan.replace.insert(node.0, (Some(with), p)) {
                        return Err(conflict(format!("node {}", node.0), first));
                    }
                }
                Edit::Remove { node } => {
                    if let Some((_, first)) = plan.replace.insert(node.0, (None, p)) {
                        return Err(conflict(format!("node {}", node.0), first));
                    }
                }
                Edit::Insert {
                    anchor,
                    after,
                    node,
                } => {
                    let list = if after {
                        &mut plan.after
                    } else {
                        &mut plan.before
                    };
                    list.entry(anchor.0).or_default().push(node);
                }
                Edit::AddInitializer(tensor) => plan.add.push(tensor),
                Edit::Import { domain, version } => {
                    plan.import.insert(domain, version);
                }
                Edit::RemoveInitializer(name) => {
                    plan.drop.insert(name);
                }
                Edit::SetInitializer(tensor) => {
                    let name = tensor.name.clone().unwrap_or_default();
                    if let Some((_, first)) = plan.set.insert(name.clone(), (tensor, p)) {
                        return Err(conflict(format!("initializer `{name}`"), first));
                    }
                }
            }
        }
    }
    // An edit of a node that is taken out would be lost without a word.
    for (node, (with, first)) in &plan.replace {
        let slots = (*node, 0)..(*node + 1, 0);
        let rewired = plan.rewire.range(slots.clone());
        let edited = rewired.chain(plan.rename.range(slots)).next();
        if let (None, Some((_, (_, second)))) = (with, edited) {
            return Err(PatchError::Conflict {
                place: format!("node {node}"),
                first: reasons[*first].clone(),
                second: reasons[*second].clone(),
            });
        }
    }
    Ok(plan)
}

fn set_slot(slots: &mut Vec<String>, slot: usize, to: &str) {
    if slots.len() <= slot {
        slots.resize(slot + 1, String::new());
    }
    slots[slot] = to.to_owned();
}

/// The names of values that nothing reads.
fn unused(view: &View) -> HashSet<String> {
    let initializers = view
        .graph()
        .initializer
        .iter()
        .filter_map(|t| t.name.as_deref());
    let outputs = view
        .nodes()
        .flat_map(|(_, n)| n.output.iter().map(String::as_str));
    initializers
        .chain(outputs)
        .filter(|name| view.value(name).is_none_or(|v| view.uses(v).is_empty()))
        .map(str::to_owned)
        .collect()
}

/// Removes nodes and initializers that a change left without readers, until there are none.
fn prune(model: &mut Model, unused_before: &HashSet<String>) {
    loop {
        let view = View::new(model);
        let newly_dead = |name: &str| {
            !unused_before.contains(name)
                && view.value(name).is_none_or(|v| view.uses(v).is_empty())
        };
        let dead_nodes: HashSet<usize> = view
            .nodes()
            .filter(|(_, n)| {
                let mut read = n.output.iter().filter(|o| !o.is_empty());
                let unread = |o: &String| view.value(o).is_none_or(|v| view.uses(v).is_empty());
                n.output.iter().any(|o| newly_dead(o)) && read.all(unread)
            })
            .map(|(id, _)| id.0)
            .collect();
        let dead_initializers: HashSet<String> = view
            .graph()
            .initializer
            .iter()
            .filter_map(|t| t.name.clone())
            .filter(|name| newly_dead(name))
            .collect();
        drop(view);
        if dead_nodes.is_empty() && dead_initializers.is_empty() {
            return;
        }
        let graph = model.graph_mut();
        let mut index = 0;
        graph.node.retain(|_| {
            index += 1;
            !dead_nodes.contains(&(index - 1))
        });
        let dead =
            |name: &Option<String>| name.as_ref().is_some_and(|n| dead_initializers.contains(n));
        graph.initializer.retain(|t| !dead(&t.name));
        // Before IR 4 an initializer is listed as an input as well.
        graph.input.retain(|i| !dead(&i.name));
    }
}

/// A value info of an initializer (before IR 4 its input as well) follows the initializer.
fn state_type_of(info: &mut ValueInfoProto, tensor: &TensorProto) {
    let Some(type_proto::Value::TensorType(ty)) =
        info.r#type.as_mut().and_then(|ty| ty.value.as_mut())
    else {
        return;
    };
    ty.elem_type = tensor.data_type;
    let length = |&length| Dimension {
        value: Some(dimension::Value::DimValue(length)),
        ..Dimension::default()
    };
    ty.shape = Some(TensorShapeProto {
        dim: tensor.dims.iter().map(length).collect(),
    });
}

/// Removes the value infos of values that were defined before and are not any longer.
fn forget(before: &Model, after: &mut Model) {
    let defined = |model: &Model| -> HashSet<String> {
        let graph = model.graph();
        let outputs = graph.node.iter().flat_map(|n| n.output.iter().cloned());
        let constants = graph.initializer.iter().filter_map(|t| t.name.clone());
        outputs.chain(constants).collect()
    };
    let gone = &defined(before) - &defined(after);
    let keep = |info: &ValueInfoProto| info.name.as_ref().is_none_or(|n| !gone.contains(n));
    after.graph_mut().value_info.retain(keep);
}

/// Sets the version of the standard operator set and the IR version that goes with it.
pub(super) fn set_opset(model: &mut Model, version: i64, minimum_ir: i64) {
    let standard =
        |o: &OperatorSetIdProto| matches!(o.domain.as_deref(), None | Some("") | Some("ai.onnx"));
    let imports = &mut model.proto.opset_import;
    if !imports.iter().any(standard) {
        imports.push(OperatorSetIdProto {
            domain: Some(String::new()),
            version: None,
        });
    }
    // The domain has two spellings, and a file may import both.
    imports
        .iter_mut()
        .filter(|o| standard(o))
        .for_each(|o| o.version = Some(version));
    raise_ir(model, minimum_ir);
}

/// Raises the IR version where it is below `minimum_ir`: an exporter may have written an older one than its operator set needs.
pub fn raise_ir(model: &mut Model, minimum_ir: i64) {
    let ir = model.proto.ir_version.unwrap_or(0);
    if ir < minimum_ir {
        if ir < 4 {
            // From IR 4 on a listed initializer is a default that callers may override; it never was one here.
            let graph = model.graph_mut();
            let constants: HashSet<String> = graph
                .initializer
                .iter()
                .filter_map(|t| t.name.clone())
                .collect();
            graph
                .input
                .retain(|i| i.name.as_ref().is_none_or(|n| !constants.contains(n)));
        }
        model.proto.ir_version = Some(minimum_ir);
    }
}
