//! Names of the calls of one answer. Each result goes to one call, so each call has a name of its own.
//! Must not change a good name: a provider may know its calls by them.

use std::collections::BTreeSet;

/// Of one answer.
#[derive(Debug)]
pub(super) struct CallIds {
    /// What names begin with that are made here; no other answer of the conversation has it.
    made: String,
    taken: BTreeSet<String>,
    count: usize,
}

impl CallIds {
    pub(super) fn new(made: String) -> Self {
        Self {
            made,
            taken: BTreeSet::new(),
            count: 0,
        }
    }

    /// The name of the next call, which came with this one: another where it is empty or taken.
    pub(super) fn name(&mut self, came: &str) -> String {
        let number = self.count;
        self.count += 1;
        let mut id = came.to_owned();
        let mut suffix = String::new();
        while id.is_empty() || !self.taken.insert(id.clone()) {
            id = format!("{}_{number}{suffix}", self.made);
            suffix.push('x');
        }
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_a_name_of_its_own() {
        let mut ids = CallIds::new("m".into());
        let came = ["a", "", "a", "m_4", "m_4", "", "b"];
        let names = came.map(|came| ids.name(came));
        assert_eq!(names, ["a", "m_1", "m_2", "m_4", "m_4x", "m_5", "b"]);
    }
}
