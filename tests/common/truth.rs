//! What victims print about themselves (see testdata/README.md), and the comparison with `leaks`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::number;

/// The sums of a kind's truth, and where `leaks` gives the same.
const SUMS: [(&str, &str); 5] = [
    ("made", "mapped_calls"),
    ("made_bytes", "mapped_bytes"),
    ("released_bytes", "released_bytes"),
    ("held", "held_mappings"),
    ("held_bytes", "held_bytes"),
];

/// The truth lines of a program and its children, added up.
#[derive(Debug, Default)]
pub struct Truth {
    /// Sums by kind, which is the name of the function that makes the mappings.
    pub kinds: BTreeMap<String, BTreeMap<String, u64>>,
    /// The last line as it is.
    pub last: Value,
}

impl Truth {
    /// Reads the truth lines in a program's output.
    pub fn read(output: &str) -> Truth {
        let mut truth = Truth::default();
        for line in output.lines().filter(|l| l.starts_with("{\"victim\":")) {
            truth.last = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            for (kind, sums) in truth.last["kinds"].as_object().expect("kinds") {
                let kind = truth.kinds.entry(kind.clone()).or_default();
                for (key, value) in sums.as_object().expect("sums") {
                    *kind.entry(key.clone()).or_default() += number(value);
                }
            }
        }
        assert!(
            !truth.last.is_null(),
            "the victim printed no truth:\n{output}"
        );
        truth
    }

    /// One of a kind's sums.
    pub fn of(&self, kind: &str, sum: &str) -> u64 {
        *self
            .kinds
            .get(kind)
            .and_then(|sums| sums.get(sum))
            .unwrap_or_else(|| panic!("no {sum} of {kind} in {self:?}"))
    }

    /// Asserts that the stacks of `leaks --json` sum up to the truth, kind by kind. With `counts` the
    /// numbers of mappings too, else only bytes (a grown mapping is one to its maker, and two births).
    pub fn assert_told_by(&self, leaks: &Value, counts: bool) {
        for (kind, sums) in &self.kinds {
            for (mine, theirs) in SUMS {
                let Some(&expected) = sums.get(mine) else {
                    continue;
                };
                if !counts && !mine.ends_with("_bytes") {
                    continue;
                }
                let told: u64 = stacks_of(leaks, kind).map(|s| number(&s[theirs])).sum();
                assert_eq!(
                    told,
                    expected,
                    "{theirs} of the stacks with {kind}: maptrail says {told}, the victim {expected}; {:#}",
                    Value::Array(stacks_of(leaks, kind).cloned().collect())
                );
            }
        }
    }
}

/// The stacks of `leaks --json` that hold a frame of `function`.
pub fn stacks_of<'a>(leaks: &'a Value, function: &'a str) -> impl Iterator<Item = &'a Value> {
    stacks(leaks)
        .iter()
        .filter(move |stack| functions(stack).any(|f| f == function))
}

/// The stacks of `leaks --json`, worst first.
pub fn stacks(leaks: &Value) -> &[Value] {
    leaks["stacks"].as_array().expect("stacks")
}

/// The function names of a stack, innermost first.
pub fn functions(stack: &Value) -> impl Iterator<Item = &str> {
    stack["frames"]
        .as_array()
        .expect("frames")
        .iter()
        .filter_map(|frame| frame["function"].as_str())
}
