//! A plan: TOML with a title, guidelines and phases of things to do, rendered with check boxes.
//! Must not fill a variable in before the TOML is read: a value is text in one place, never a part
//! of the structure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::render::{self, Values};

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Plan {
    title: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    guidelines: Vec<String>,
    #[serde(default)]
    pub(super) variables: BTreeMap<String, Variable>,
    phases: Vec<Phase>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Variable {
    pub(super) description: String,
    /// Without one it has to be given.
    pub(super) default: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Phase {
    name: String,
    tasks: Vec<String>,
}

impl Plan {
    /// # Errors
    /// In words for a person.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let plan: Self =
            toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        if plan.phases.iter().all(|phase| phase.tasks.is_empty()) {
            return Err("it has no phase with a task".into());
        }
        Ok(plan)
    }

    fn texts(&self) -> impl Iterator<Item = &String> {
        let phases = self.phases.iter();
        let phases = phases.flat_map(|phase| std::iter::once(&phase.name).chain(&phase.tasks));
        [&self.title, &self.description]
            .into_iter()
            .chain(&self.guidelines)
            .chain(phases)
    }

    /// # Errors
    /// In words for a person.
    pub(super) fn wanted(&self) -> Result<BTreeSet<String>, String> {
        let mut all = BTreeSet::new();
        for text in self.texts() {
            all.extend(render::wanted(text).map_err(|error| format!("{text:?}: {error}"))?);
        }
        Ok(all)
    }

    /// With its variables filled in.
    ///
    /// # Errors
    /// In words for a person.
    pub(super) fn render(&self, values: &Values, bytes_max: usize) -> Result<String, String> {
        let mut values = values.clone();
        for (name, variable) in &self.variables {
            if let (false, Some(default)) = (values.contains_key(name), &variable.default) {
                values.insert(name.clone(), default.clone());
            }
        }
        self.laid_out(|text| {
            render::render(text, &values, bytes_max).map_err(|error| format!("{text:?}: {error}"))
        })
    }

    /// As it stands: nothing of it is a template.
    pub(super) fn verbatim(&self) -> String {
        self.laid_out(|text| Ok(text.to_owned()))
            .unwrap_or_default()
    }

    fn laid_out(
        &self,
        mut fill: impl FnMut(&str) -> Result<String, String>,
    ) -> Result<String, String> {
        let mut line = |text: &str| fill(text).map(|text| render::one_line(&text));
        let mut out = line(&self.title)?;
        if !self.description.is_empty() {
            out.push_str(&format!("\n\n{}", line(&self.description)?));
        }
        if !self.guidelines.is_empty() {
            out.push_str("\n\nGuidelines:\n");
        }
        for guideline in &self.guidelines {
            out.push_str(&format!("\n- {}", line(guideline)?));
        }
        for (index, phase) in self.phases.iter().enumerate() {
            out.push_str(&format!(
                "\n\nPhase {}: {}\n",
                index + 1,
                line(&phase.name)?
            ));
            for task in &phase.tasks {
                out.push_str(&format!("\n- [ ] {}", line(task)?));
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: &str = "title = 'Fix {{ what }}'\nguidelines = ['Small steps.']\n\
        [variables.what]\ndescription = 'What is broken.'\n[variables.where]\n\
        description = 'Where.'\ndefault = 'everywhere'\n[[phases]]\nname = 'Find'\n\
        tasks = ['Look {{ where }} for {{ what }}', 'Write it down']\n";

    #[test]
    fn a_value_is_text_in_one_place() {
        let plan = Plan::parse(PLAN).unwrap();
        assert_eq!(plan.wanted().unwrap().len(), 2);
        let hostile = "x'\ntasks = []\n- [ ] more\n[[phases]]";
        let values = Values::from([("what".into(), hostile.into())]);
        assert_eq!(
            plan.render(&values, 999).unwrap(),
            "Fix x' tasks = [] - [ ] more [[phases]]\n\nGuidelines:\n\n- Small steps.\n\n\
             Phase 1: Find\n\n- [ ] Look everywhere for x' tasks = [] - [ ] more [[phases]]\n\
             - [ ] Write it down"
        );
        let error = plan.render(&Values::new(), 999).unwrap_err();
        assert!(error.contains("undefined value"), "{error}");
        assert!(plan.verbatim().starts_with("Fix {{ what }}\n"));
    }

    #[test]
    fn what_is_no_plan_says_why() {
        for (text, part) in [
            ("title = 1", "line 1"),
            ("title = 'x'\nphases = []", "no phase"),
            ("title = 'x'\nphase = []", "unknown field"),
        ] {
            let error = Plan::parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
