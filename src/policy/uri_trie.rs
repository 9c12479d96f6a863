//! URI patterns of peers, by segment: a look-up costs what the URI's path is long, not what there are patterns.

use ahash::AHashMap;

use crate::identity::SpiffeId;

use super::peers::{Segment, UriPattern};

/// Every pattern, the trust domain as the first step.
#[derive(Debug, Default)]
pub(super) struct UriTrie {
    root: Node,
}

#[derive(Debug, Default)]
struct Node {
    literals: AHashMap<Box<str>, Node>,
    any: Option<Box<Node>>,
    /// The pattern that ends here.
    end: Option<u32>,
    /// The pattern that goes on from here with `**`.
    rest: Option<u32>,
}

/// Of two patterns on the way down: which one had a wildcard where the other had less of one.
#[derive(Debug, Clone, Copy, Default)]
struct Wider {
    left: bool,
    right: bool,
}

impl UriTrie {
    /// Adds a pattern. Returns the peer that had the same one before.
    pub(super) fn insert(&mut self, pattern: &UriPattern, peer: u32) -> Option<u32> {
        let mut node = self.root.literals.entry(pattern.trust_domain().into()).or_default();
        for segment in pattern.segments() {
            node = match segment {
                Segment::Literal(text) => node.literals.entry(text.clone()).or_default(),
                Segment::Any => node.any.get_or_insert_default(),
                Segment::Rest => return node.rest.replace(peer),
            };
        }
        node.end.replace(peer)
    }

    /// The narrowest pattern that matches. Where patterns part, the literal is tried before `*`, and `*` before `**`:
    /// patterns without [`UriTrie::overlaps`] lie inside each other, so the first found is the narrowest.
    ///
    /// A URI of n segments can lead down 2ⁿ branches at most, and never more than the patterns have.
    pub(super) fn find(&self, id: &SpiffeId) -> Option<u32> {
        let segments: Vec<&str> = id.segments().collect();
        self.root.literals.get(id.trust_domain())?.find(&segments)
    }

    /// Calls `found` for pairs of patterns that overlap while neither lies inside the other; stops after `max`.
    pub(super) fn overlaps(&self, max: usize, found: &mut dyn FnMut(u32, u32)) {
        let mut search = Search { left: max, found };
        search.pair(&self.root, &self.root, Wider::default());
    }
}

impl Node {
    fn find(&self, segments: &[&str]) -> Option<u32> {
        let Some((first, others)) = segments.split_first() else { return self.end };
        let literal = self.literals.get(*first).and_then(|node| node.find(others));
        let any = || self.any.as_ref().and_then(|node| node.find(others));
        literal.or_else(any).or(self.rest)
    }
}

/// Walks two ways down at once, through all pairs of nodes that one URI can reach both of.
struct Search<'a> {
    left: usize,
    found: &'a mut dyn FnMut(u32, u32),
}

impl Search<'_> {
    fn report(&mut self, a: u32, b: u32) {
        if self.left > 0 {
            self.left -= 1;
            (self.found)(a, b);
        }
    }

    fn pair(&mut self, a: &Node, b: &Node, wider: Wider) {
        if self.left == 0 {
            return;
        }
        let same = std::ptr::eq(a, b);
        if wider.left && wider.right {
            for (x, y) in [(a.end, b.end), (a.rest, b.rest)] {
                if let (Some(x), Some(y)) = (x, y) {
                    self.report(x, y);
                }
            }
        }
        // `**` on one side is wider than all below on the other, which must not have been wider before.
        if let Some(x) = a.rest.filter(|_| wider.right) {
            self.all_below(b, x);
        }
        if let Some(y) = b.rest.filter(|_| wider.left) {
            self.all_below(a, y);
        }
        let (fewer, more) = if a.literals.len() <= b.literals.len() { (a, b) } else { (b, a) };
        for text in fewer.literals.keys().filter(|text| more.literals.contains_key(*text)) {
            self.pair(&a.literals[text], &b.literals[text], wider);
        }
        if let (Some(x), Some(y)) = (&a.any, &b.any) {
            self.pair(x, y, wider);
        }
        if let Some(x) = &a.any {
            b.literals.values().for_each(|y| self.pair(x, y, Wider { left: true, ..wider }));
        }
        // With the same node on both sides this is the pair above the other way round.
        if let Some(y) = b.any.as_ref().filter(|_| !same) {
            a.literals.values().for_each(|x| self.pair(x, y, Wider { right: true, ..wider }));
        }
    }

    /// Everything at least one segment below `node` overlaps with `other`.
    fn all_below(&mut self, node: &Node, other: u32) {
        for child in node.literals.values().chain(node.any.as_deref()) {
            if self.left == 0 {
                return;
            }
            for peer in [child.end, child.rest].into_iter().flatten() {
                self.report(peer, other);
            }
            self.all_below(child, other);
        }
    }
}
