//! One order out of several: what a cluster does with the mirrors of one source that several objects name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Puts names into an order that agrees with each of the lists, where there is one: (B, C) and (A, B) make (A, B, C).
/// Names that the lists leave open stand in the order of the alphabet, and so does the first of a circle.
///
/// Source: openshift/runtime-utils, pkg/registries: that order decides which mirror a node asks first.
pub fn merge<'a>(lists: impl IntoIterator<Item = &'a [String]>) -> Vec<String> {
    let mut after: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut before: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for list in lists {
        for pair in list.windows(2) {
            let (one, other) = (pair[0].as_str(), pair[1].as_str());
            after.entry(one).or_default().insert(other);
            after.entry(other).or_default();
            before.entry(other).or_default().insert(one);
            before.entry(one).or_default();
        }
    }
    let mut ready: VecDeque<&str> =
        before.iter().filter(|(_, before)| before.is_empty()).map(|(name, _)| *name).collect();
    let mut order: Vec<&str> = Vec::with_capacity(after.len());
    loop {
        let next = match ready.pop_front() {
            Some(next) => next,
            // A circle, or the end.
            None => match after.keys().find(|name| !order.contains(name)) {
                Some(name) => name,
                None => break,
            },
        };
        order.push(next);
        for follower in &after[next] {
            let Some(waits_for) = before.get_mut(follower) else { continue };
            waits_for.remove(next);
            if waits_for.is_empty() && !order.contains(follower) {
                ready.push_back(follower);
            }
        }
    }
    order.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::merge;

    #[test]
    fn lists_are_merged_into_one_order() {
        for (lists, merged) in [
            (&["b c", "a b"][..], "a b c"),
            (&["a b c"], "a b c"),
            (&["a s", "b s", "c s"], "a b c s"),
            (&["c s", "a s"], "a c s"),
            (&["b a s", "c a s"], "b c a s"),
            (&["a b", "b a"], "a b"),
            (&["a b s", "b a s", "c s"], "c a b s"),
            (&["z a", "z b", "a c"], "z a b c"),
            (&["x a", "y x"], "y x a"),
        ] {
            let lists: Vec<Vec<String>> =
                lists.iter().map(|list| list.split(' ').map(str::to_owned).collect()).collect();
            assert_eq!(merge(lists.iter().map(Vec::as_slice)).join(" "), merged, "{lists:?}");
        }
    }
}
