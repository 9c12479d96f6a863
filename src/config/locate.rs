//! The file's text as a tree in which every value and key knows its place.
//!
//! `serde_yaml::Value` forgets places and stops at the first duplicate key, so the tree is built from yaml-rust2's
//! events, and the `Value` that is decoded is made of the tree.

use std::collections::HashMap;

use serde_yaml::{Mapping, Value};
use yaml_rust2::parser::{Event, MarkedEventReceiver, Parser, Tag};
use yaml_rust2::scanner::{Marker, TScalarStyle};

use super::place::{Fault, Place, Step, Steps};

/// Deepest nesting of blocks and lists: the reference needs 7, and decoding recurses.
const DEPTH_MAX: usize = 64;
/// Most values that aliases may add together: aliases of aliases grow without end.
const ALIASED_MAX: usize = 1_000_000;

/// A value in the file.
#[derive(Clone)]
pub(super) struct Node {
    pub place: Place,
    pub kind: Kind,
}

#[derive(Clone)]
pub(super) enum Kind {
    /// `plain`: neither quoted nor a text block, so that it may be a number, a boolean or nothing.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Block(Vec<Entry>),
}

#[derive(Clone)]
pub(super) struct Entry {
    pub key: String,
    pub key_place: Place,
    pub value: Node,
}

impl Node {
    fn nothing(place: Place) -> Self {
        Self { place, kind: Kind::Scalar { text: String::new(), plain: true } }
    }

    /// What `serde_yaml` would have made of it.
    pub fn value(&self) -> Value {
        match &self.kind {
            Kind::Scalar { text, plain: false } => Value::String(text.clone()),
            Kind::Scalar { text, plain: true } => plain_value(text),
            Kind::List(nodes) => Value::Sequence(nodes.iter().map(Node::value).collect()),
            Kind::Block(entries) => {
                let pairs = entries.iter().map(|e| (Value::String(e.key.clone()), e.value.value()));
                Value::Mapping(pairs.collect::<Mapping>())
            }
        }
    }

    fn size(&self) -> usize {
        match &self.kind {
            Kind::Scalar { .. } => 1,
            Kind::List(nodes) => 1 + nodes.iter().map(Node::size).sum::<usize>(),
            Kind::Block(entries) => 1 + entries.iter().map(|e| e.value.size()).sum::<usize>(),
        }
    }

    /// Puts the node and all below it at one place: that of the alias which stands for it.
    fn move_to(&mut self, place: Place) {
        self.place = place;
        match &mut self.kind {
            Kind::Scalar { .. } => {}
            Kind::List(nodes) => nodes.iter_mut().for_each(|n| n.move_to(place)),
            Kind::Block(entries) => {
                for e in entries {
                    e.key_place = place;
                    e.value.move_to(place);
                }
            }
        }
    }
}

/// YAML 1.2 core schema: nothing, true, false, numbers; all else is text.
fn plain_value(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number(text).map_or_else(|| Value::String(text.into()), Value::Number),
    }
}

fn number(text: &str) -> Option<serde_yaml::Number> {
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok().map(Into::into);
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return u64::from_str_radix(octal, 8).ok().map(Into::into);
    }
    // `inf` and `nan` are words, whatever Rust's parser thinks.
    if !text.bytes().any(|b| b.is_ascii_digit()) || !text.bytes().all(|b| b"0123456789+-.eE".contains(&b)) {
        return None;
    }
    let unsigned = text.parse::<u64>().map(Into::into);
    let signed = || text.parse::<i64>().map(Into::into);
    unsigned.or_else(|_| signed()).ok().or_else(|| text.parse::<f64>().ok().map(Into::into))
}

/// The whole file.
pub(super) struct Tree {
    pub root: Node,
}

impl Tree {
    /// Reads `text`.
    ///
    /// # Errors
    /// What makes a tree impossible: wrong YAML. All else that is wrong comes beside the tree.
    pub fn parse(text: &str) -> Result<(Self, Vec<Fault>), Fault> {
        let mut builder = Builder::default();
        let mut parser = Parser::new_from_str(text);
        parser.load(&mut builder, true).map_err(|e| Fault {
            place: Place::of(e.marker()),
            path: String::new(),
            message: match text.lines().nth(e.marker().line().saturating_sub(1)) {
                // In a flow mapping a bare `${NAME}` begins another mapping.
                Some(line) if line.contains("${") => {
                    format!("not YAML: {}; inside {{ }} and [ ] write \"${{NAME}}\" in quotes", e.info())
                }
                _ => format!("not YAML: {}", e.info()),
            },
        })?;
        if let Some(fault) = builder.fatal {
            return Err(fault);
        }
        let mut root = builder.root.unwrap_or_else(|| Node::nothing(Place { line: 1, column: 1 }));
        if matches!(&root.kind, Kind::Scalar { text, plain: true } if text.is_empty()) {
            // An empty file lacks its keys, and that is what the error should say.
            root.kind = Kind::Block(Vec::new());
        }
        Ok((Self { root }, builder.faults))
    }

    /// Where the value at `path` stands, or the nearest block around it.
    pub fn place(&self, path: &str) -> Place {
        self.walk(&Steps::parse(path)).1
    }

    /// Where the key of `path` stands, or the nearest block around it.
    pub fn key_place(&self, path: &str) -> Place {
        self.walk(&Steps::parse(path)).0
    }

    /// Whether a value is written at `path`.
    pub fn has(&self, path: &str) -> bool {
        self.follow(&Steps::parse(path)).is_ok()
    }

    /// As [`Self::key_place`] and [`Self::place`].
    pub fn walk(&self, steps: &Steps) -> (Place, Place) {
        self.follow(steps).unwrap_or_else(|around| (around, around))
    }

    /// The places of key and value, or that of the nearest block around them.
    fn follow(&self, steps: &Steps) -> Result<(Place, Place), Place> {
        let (mut key_place, mut node) = (self.root.place, &self.root);
        for step in &steps.0 {
            let next = match (step, &node.kind) {
                (Step::Index(i), Kind::List(nodes)) => nodes.get(*i).map(|n| (n.place, n)),
                (Step::Key(key), Kind::Block(entries)) => {
                    entries.iter().find(|e| e.key == *key).map(|e| (e.key_place, &e.value))
                }
                _ => None,
            };
            match next {
                Some(next) => (key_place, node) = next,
                None => return Err(node.place),
            }
        }
        Ok((key_place, node.place))
    }

    pub fn node_mut(&mut self, steps: &Steps) -> Option<&mut Node> {
        let mut node = &mut self.root;
        for step in &steps.0 {
            node = match (step, &mut node.kind) {
                (Step::Index(i), Kind::List(nodes)) => nodes.get_mut(*i)?,
                (Step::Key(key), Kind::Block(entries)) => &mut entries.iter_mut().find(|e| e.key == *key)?.value,
                _ => return None,
            };
        }
        Some(node)
    }
}

/// A block or list whose end has not come yet.
struct Open {
    anchor: usize,
    node: Node,
    /// In a block: the key whose value comes next.
    key: Option<(String, Place)>,
    /// The value that comes next belongs to a key that can't be kept.
    skip: bool,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    aliased: usize,
    root: Option<Node>,
    documents: usize,
    faults: Vec<Fault>,
    fatal: Option<Fault>,
}

impl MarkedEventReceiver for Builder {
    fn on_event(&mut self, event: Event, mark: Marker) {
        if self.fatal.is_some() {
            return;
        }
        let place = Place::of(&mark);
        match event {
            Event::DocumentStart => {
                self.documents += 1;
                if self.documents == 2 {
                    self.stop(place, "a second document begins here; a configuration is one document");
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let as_text = self.check_tag(tag.as_ref(), place);
                let plain = style == TScalarStyle::Plain && !as_text;
                self.add(anchor, Node { place, kind: Kind::Scalar { text, plain } });
            }
            Event::SequenceStart(anchor, tag) => self.begin(anchor, place, tag.as_ref(), Kind::List(Vec::new())),
            Event::MappingStart(anchor, tag) => self.begin(anchor, place, tag.as_ref(), Kind::Block(Vec::new())),
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(mut done) = self.open.pop() {
                    // yaml-rust2 says that a block begins at its first colon.
                    if let Kind::Block(entries) = &done.node.kind
                        && let Some(first) = entries.first()
                    {
                        done.node.place = done.node.place.min(first.key_place);
                    }
                    self.add(done.anchor, done.node);
                }
            }
            Event::Alias(id) => self.alias(id, place),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
    }
}

impl Builder {
    fn path(&self) -> Steps {
        let mut steps = Vec::new();
        for open in &self.open {
            match (&open.key, &open.node.kind) {
                (Some((key, _)), _) => steps.push(Step::Key(key.clone())),
                (None, Kind::List(nodes)) => steps.push(Step::Index(nodes.len())),
                _ => {}
            }
        }
        Steps(steps)
    }

    fn fault(&mut self, place: Place, message: impl Into<String>) {
        let path = self.path().to_string();
        self.faults.push(Fault { place, path, message: message.into() });
    }

    fn stop(&mut self, place: Place, message: &str) {
        let path = self.path().to_string();
        self.fatal.get_or_insert(Fault { place, path, message: message.into() });
    }

    /// Whether the tag asks for text.
    fn check_tag(&mut self, tag: Option<&Tag>, place: Place) -> bool {
        let Some(tag) = tag else { return false };
        if tag.handle == "tag:yaml.org,2002:" && tag.suffix == "str" {
            return true;
        }
        // Not shown: a secret that begins with '!' and lacks its quotes looks like a tag.
        self.fault(place, "a tag means nothing here; leave it out, or put quotes around a text that begins with '!'");
        false
    }

    fn begin(&mut self, anchor: usize, place: Place, tag: Option<&Tag>, kind: Kind) {
        self.check_tag(tag, place);
        if self.open.len() == DEPTH_MAX {
            self.stop(place, "nested too deep");
            return;
        }
        self.open.push(Open { anchor, node: Node { place, kind }, key: None, skip: false });
    }

    fn alias(&mut self, id: usize, place: Place) {
        let Some(node) = self.anchors.get(&id) else {
            self.stop(place, "an alias inside of what it stands for");
            return;
        };
        self.aliased += node.size();
        if self.aliased > ALIASED_MAX || self.open.len() + depth(node) > DEPTH_MAX {
            self.stop(place, "aliases grow this file too much");
            return;
        }
        let mut node = node.clone();
        node.move_to(place);
        self.add(0, node);
    }

    fn add(&mut self, anchor: usize, node: Node) {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return;
        };
        if std::mem::take(&mut open.skip) {
            return;
        }
        match (&mut open.node.kind, open.key.take()) {
            (Kind::List(nodes), _) => nodes.push(node),
            (Kind::Block(entries), Some((key, key_place))) => {
                // What stands at the end of the line, where nothing does, is better found by its key.
                let missing = matches!(&node.kind, Kind::Scalar { text, plain: true } if text.is_empty());
                let place = if missing { key_place } else { node.place };
                entries.push(Entry { key, key_place, value: Node { place, ..node } });
            }
            (Kind::Block(_), None) => self.key(node),
            (Kind::Scalar { .. }, _) => {}
        }
    }

    fn key(&mut self, node: Node) {
        let place = node.place;
        let Kind::Scalar { text: key, .. } = node.kind else {
            self.skip(place, "a key must be a word");
            return;
        };
        if key == "<<" {
            self.skip(place, "merge keys are not read; write the keys out, or give the whole block an alias");
            return;
        }
        let Some(open) = self.open.last_mut() else { return };
        let Kind::Block(entries) = &open.node.kind else { return };
        let first = entries.iter().find(|e| e.key == key).map(|e| e.key_place);
        open.key = Some((key.clone(), place));
        if let Some(first) = first {
            self.skip(place, format!("the key {key:?} is already given at {first}"));
        }
    }

    fn skip(&mut self, place: Place, message: impl Into<String>) {
        self.fault(place, message);
        if let Some(open) = self.open.last_mut() {
            open.key = None;
            open.skip = true;
        }
    }
}

fn depth(node: &Node) -> usize {
    match &node.kind {
        Kind::Scalar { .. } => 0,
        Kind::List(nodes) => 1 + nodes.iter().map(depth).max().unwrap_or(0),
        Kind::Block(entries) => 1 + entries.iter().map(|e| depth(&e.value)).max().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(text: &str, paths: &[&str]) -> Vec<String> {
        let (tree, _) = Tree::parse(text).map_err(|f| f.message).unwrap();
        paths.iter().map(|p| format!("{} {}", tree.key_place(p), tree.place(p))).collect()
    }

    #[test]
    fn every_value_and_key_has_its_place() {
        let text = "# c\na:\n  - name: x\n    é: \"q\"\n    b: { c: [1, 2] }\n  -   z\n\nd: |\n  text\ne:\nf: 1\n";
        let paths = ["a", "a[0]", "a[0].name", "a[0].é", "a[0].b", "a[0].b.c", "a[0].b.c[1]", "a[1]", "d", "e", "f"];
        let is = places(text, &paths);
        let should = [
            "2:1 3:3",
            "3:5 3:5",
            "3:5 3:11",
            "4:5 4:8",
            "5:5 5:8",
            "5:10 5:13",
            "5:17 5:17",
            "6:7 6:7",
            "8:1 9:3",
            "10:1 10:1",
            "11:1 11:4",
        ];
        assert_eq!(is, should);
    }

    #[test]
    fn what_is_not_there_has_the_place_of_the_block_around_it() {
        assert_eq!(places("a:\n  b: 1\n", &["a.c", "a.b.d", "x"]), ["2:3 2:3", "2:6 2:6", "1:1 1:1"]);
    }

    #[test]
    fn duplicate_keys_are_all_found_with_both_places() {
        let (tree, faults) = Tree::parse("a: 1\nb:\n  - { c: 1, c: {x: 1} }\na: [2]\n").map_err(|f| f.message).unwrap();
        let shown: Vec<_> = faults.iter().map(|f| format!("{} {} {}", f.place, f.path, f.message)).collect();
        assert_eq!(
            shown,
            ["3:13 b[0].c the key \"c\" is already given at 3:7", "4:1 a the key \"a\" is already given at 1:1"]
        );
        assert_eq!(tree.root.value()["a"], Value::from(1));
    }

    #[test]
    fn an_alias_has_its_own_place() {
        assert_eq!(places("a: &x\n  b: [1]\nc: *x\n", &["a.b[0]", "c", "c.b[0]"]), ["2:7 2:7", "3:1 3:4", "3:4 3:4"]);
    }

    #[test]
    fn aliases_that_grow_without_end_are_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..9 {
            let each = vec![format!("*a{}", i - 1); 10].join(", ");
            text.push_str(&format!("a{i}: &a{i} [{each}]\n"));
        }
        assert!(Tree::parse(&text).err().unwrap().message.contains("aliases"));
        assert!(Tree::parse("a: &a [*a]").err().unwrap().message.contains("alias"));
    }

    #[test]
    fn deep_nesting_is_refused() {
        assert!(Tree::parse(&"[".repeat(100_000)).is_err());
        assert!(Tree::parse(&("[".repeat(70) + &"]".repeat(70))).is_err());
    }

    #[test]
    fn wrong_yaml_has_a_place() {
        let fault = Tree::parse("a: 1\nb: [1\nc: 2\n").err().unwrap();
        assert_eq!(fault.place.line, 3, "{fault:?}");
        let fault = Tree::parse("a: 1\n---\nb: 1\n").err().unwrap();
        assert!(fault.message.contains("second document"), "{fault:?}");
    }

    #[test]
    fn plain_words_become_what_yaml_1_2_says() {
        let (tree, _) = Tree::parse("[1, -1, 1.2, 0x10, true, off, ~, 1e3, inf, 1.2.3, \"1\", 10.0.0.1]")
            .map_err(|f| f.message)
            .unwrap();
        let values: Vec<_> = tree.root.value().as_sequence().unwrap().iter().map(|v| format!("{v:?}")).collect();
        let should = [
            "Number(1)",
            "Number(-1)",
            "Number(1.2)",
            "Number(16)",
            "Bool(true)",
            "String(\"off\")",
            "Null",
            "Number(1000.0)",
            "String(\"inf\")",
            "String(\"1.2.3\")",
            "String(\"1\")",
            "String(\"10.0.0.1\")",
        ];
        assert_eq!(values, should);
    }
}
