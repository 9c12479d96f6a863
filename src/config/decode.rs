//! From the tree to [`File`]: every error, not only the first.
//!
//! serde stops at the first error. So that one is noted, something harmless put in its place, and the whole decoded
//! again, until it decodes.

use serde_path_to_error::Segment;
use serde_yaml::Value;

use super::file::File;
use super::locate::{Kind, Tree};
use super::nearest::nearest;
use super::place::{Fault, Place, Step, Steps};
use super::required::{required, stand_in};
use super::wording::{Said, take_apart, wrong_value};

/// After so many errors it is the wrong file.
const ERRORS_MAX: usize = 64;
/// Each pass turns numbers into text in all places of one kind, and there are fewer kinds than this.
const PASSES_MAX: usize = ERRORS_MAX + 64;

/// What was decoded.
pub(super) struct Decoded {
    /// None if nothing of the file makes sense.
    pub file: Option<File>,
    /// What is wrong.
    pub faults: Vec<Fault>,
    /// Where something harmless stands instead of what was written: nothing more is to be said about it.
    pub guessed: Vec<Steps>,
}

/// Decodes the tree; `unknown` values are left out of it, without a word.
///
/// A key that is nearly a known one is renamed in the tree, so that its value is checked too.
pub(super) fn decode(tree: &mut Tree, unknown: Vec<Steps>) -> Decoded {
    let mut pass = Pass { value: tree.root.value(), tree, faults: Vec::new(), guessed: Vec::new() };
    for steps in unknown {
        pass.replace(&steps);
    }
    for _ in 0..PASSES_MAX {
        let error = match serde_path_to_error::deserialize::<_, File>(&pass.value) {
            Ok(file) => return Decoded { file: Some(file), faults: pass.faults, guessed: pass.guessed },
            Err(error) => error,
        };
        let mut steps = steps_of(error.path());
        let message = error.into_inner().to_string();
        if pass.faults.len() >= ERRORS_MAX || !pass.mend(&mut steps, &message) {
            break;
        }
    }
    Decoded { file: None, faults: pass.faults, guessed: pass.guessed }
}

fn steps_of(path: &serde_path_to_error::Path) -> Steps {
    let steps = path.iter().filter_map(|segment| match segment {
        Segment::Seq { index } => Some(Step::Index(*index)),
        Segment::Map { key } => Some(Step::Key(key.clone())),
        // The variant is a part of the value, not a step to it.
        Segment::Enum { .. } | Segment::Unknown => None,
    });
    Steps(steps.collect())
}

struct Pass<'a> {
    tree: &'a mut Tree,
    value: Value,
    faults: Vec<Fault>,
    guessed: Vec<Steps>,
}

impl Pass<'_> {
    /// Notes the error and takes it out of the way. False if that can't be done.
    fn mend(&mut self, steps: &mut Steps, message: &str) -> bool {
        let said = take_apart(message);
        match &said {
            Said::UnknownKey { key, known } => {
                if steps.0.last() != Some(&Step::Key((*key).to_owned())) {
                    *steps = steps.with(key);
                }
                self.fault(self.tree.walk(steps).0, steps, wrong_value(&said, &Value::Null));
                self.unknown_key(steps, key, known)
            }
            Said::Missing { key } => self.missing(steps, key),
            Said::WrongType { .. } | Said::Other(_) => {
                let Some(value) = find(&mut self.value, &steps.0) else {
                    self.fault(self.tree.walk(steps).1, steps, message.to_owned());
                    return false;
                };
                if said.takes_text() && matches!(value, Value::Number(_) | Value::Bool(_)) {
                    let mut places = Vec::new();
                    all_like(&self.value, &steps.0, &mut Steps::default(), &mut places);
                    return places.iter().filter(|place| self.as_text(place)).count() > 0;
                }
                let message = wrong_value(&said, value);
                self.fault(self.tree.walk(steps).1, steps, message);
                !steps.0.is_empty() && self.replace(steps)
            }
        }
    }

    fn fault(&mut self, place: Place, steps: &Steps, message: String) {
        self.faults.push(Fault { place, path: steps.to_string(), message });
    }

    fn unknown_key(&mut self, steps: &Steps, key: &str, known: &[&str]) -> bool {
        let Some((_, block)) = steps.0.split_last() else { return false };
        let Some(Value::Mapping(map)) = find(&mut self.value, block) else { return false };
        let Some(value) = map.remove(key) else { return false };
        let meant = nearest(key, known.iter().copied()).filter(|meant| !map.contains_key(*meant));
        if let Some(meant) = meant {
            map.insert(meant.into(), value);
            if let Some(Kind::Block(entries)) = self.tree.node_mut(&Steps(block.to_vec())).map(|n| &mut n.kind)
                && let Some(entry) = entries.iter_mut().find(|e| e.key == key)
            {
                entry.key = meant.into();
            }
        }
        true
    }

    fn missing(&mut self, block: &Steps, key: &str) -> bool {
        let steps = block.with(key);
        let required = required(&block.pattern(), key);
        if !self.is_guessed(&steps) {
            let message = match required {
                Some(r) => format!("the key {key:?} is missing; write {}", r.example),
                None => format!("the key {key:?} is missing"),
            };
            self.fault(self.tree.walk(block).1, block, message);
        }
        self.guessed.push(steps);
        match (find(&mut self.value, &block.0), required) {
            (Some(Value::Mapping(map)), Some(r)) => {
                map.insert(key.into(), r.stand_in());
                true
            }
            _ => !block.0.is_empty() && self.replace(block),
        }
    }

    fn is_guessed(&self, steps: &Steps) -> bool {
        self.guessed.iter().any(|g| steps.0.starts_with(&g.0))
    }

    /// Puts something harmless in the place of the value, or leaves it out.
    fn replace(&mut self, steps: &Steps) -> bool {
        self.guessed.push(steps.clone());
        if let Some(new) = stand_in(&steps.pattern()) {
            return find(&mut self.value, &steps.0).is_some_and(|value| {
                // What stands in was refused: there is no way on.
                *value != new && {
                    *value = new;
                    true
                }
            });
        }
        let Some((Step::Key(key), block)) = steps.0.split_last() else { return false };
        match find(&mut self.value, block) {
            Some(Value::Mapping(map)) => map.remove(key.as_str()).is_some(),
            _ => false,
        }
    }

    /// A bare number or word becomes the text as it was written.
    fn as_text(&mut self, steps: &Steps) -> bool {
        let Some(value @ (Value::Number(_) | Value::Bool(_))) = find(&mut self.value, &steps.0) else { return false };
        let Some(Kind::Scalar { text, .. }) = self.tree.node_mut(steps).map(|n| &n.kind) else { return false };
        *value = Value::String(text.clone());
        true
    }
}

fn find<'v>(mut value: &'v mut Value, steps: &[Step]) -> Option<&'v mut Value> {
    for step in steps {
        value = match (step, value) {
            (Step::Key(key), Value::Mapping(map)) => map.get_mut(key.as_str())?,
            (Step::Index(i), Value::Sequence(list)) => list.get_mut(*i)?,
            _ => return None,
        };
    }
    Some(value)
}

/// Every way to a value that differs from `like` only in indexes.
fn all_like(value: &Value, like: &[Step], here: &mut Steps, out: &mut Vec<Steps>) {
    match (like.split_first(), value) {
        (None, _) => out.push(here.clone()),
        (Some((Step::Key(key), rest)), Value::Mapping(map)) => {
            if let Some(value) = map.get(key.as_str()) {
                here.0.push(Step::Key(key.clone()));
                all_like(value, rest, here, out);
                here.0.pop();
            }
        }
        (Some((Step::Index(_), rest)), Value::Sequence(list)) => {
            for (i, value) in list.iter().enumerate() {
                here.0.push(Step::Index(i));
                all_like(value, rest, here, out);
                here.0.pop();
            }
        }
        _ => {}
    }
}
