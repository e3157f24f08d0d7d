//! How hard to think, in the words of each wire format: what is merged into a request.
//! A key's table says it for its models; here is what holds where it does not. Must not lower what
//! was asked for where the format has a word for it: a provider's refusal is clearer than a guess.

use dispatch_core::{
    models::{Endpoint, Think, Wire},
    task::Effort,
};
use serde_json::{Map, Value, json};

/// The endpoint's own row, else the format's.
pub(super) fn fragment(endpoint: &Endpoint, think: Option<Think>) -> Map<String, Value> {
    let of = |think| match endpoint.row.effort.get(&think) {
        Some(own) => own.clone(),
        None => usual(endpoint.wire, think),
    };
    let mut merged = think.map(of).unwrap_or_default();
    merged.extend(endpoint.row.body.clone());
    merged
}

fn usual(wire: Wire, think: Think) -> Map<String, Value> {
    let value = match (wire, think) {
        (Wire::Anthropic, Think::Off) => json!({"thinking": {"type": "disabled"}}),
        (Wire::Anthropic, Think::At(effort)) => json!({
            "thinking": {"type": "adaptive"},
            "output_config": {"effort": at_least_low(effort)},
        }),
        (Wire::Responses, Think::Off) => json!({"reasoning": {"effort": "none"}}),
        (Wire::Responses, Think::At(effort)) => {
            json!({"reasoning": {"effort": at_most_xhigh(effort), "summary": "auto"}})
        }
        // Servers that do not think refuse the word `none`.
        (Wire::Chat, Think::Off) => json!({}),
        (Wire::Chat, Think::At(effort)) => json!({"reasoning_effort": one_of_three(effort)}),
    };
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

fn at_least_low(effort: Effort) -> &'static str {
    match effort {
        Effort::Minimal => Effort::Low.word(),
        _ => effort.word(),
    }
}

fn at_most_xhigh(effort: Effort) -> &'static str {
    match effort {
        Effort::Max => Effort::Xhigh.word(),
        _ => effort.word(),
    }
}

fn one_of_three(effort: Effort) -> &'static str {
    match effort {
        Effort::Minimal | Effort::Low => "low",
        Effort::Medium => "medium",
        Effort::High | Effort::Xhigh | Effort::Max => "high",
    }
}

#[cfg(test)]
mod tests {
    use dispatch_core::models::KeyTable;

    use super::*;

    fn endpoint(table: &Value) -> Endpoint {
        let table: KeyTable = serde_json::from_value(table.clone()).unwrap();
        table
            .endpoint(&"k".parse().unwrap(), &"m".parse().unwrap())
            .unwrap()
    }

    /// All of the table, so that a change of it is seen.
    #[test]
    fn every_level_has_its_words_in_every_format() {
        let mut lines = Vec::new();
        for wire in Wire::ALL {
            for think in Think::all() {
                let words = Value::Object(usual(wire, think));
                lines.push(format!("{} {think} {words}", wire.word()));
            }
        }
        let expected = r#"anthropic none {"thinking":{"type":"disabled"}}
anthropic minimal {"thinking":{"type":"adaptive"},"output_config":{"effort":"low"}}
anthropic low {"thinking":{"type":"adaptive"},"output_config":{"effort":"low"}}
anthropic medium {"thinking":{"type":"adaptive"},"output_config":{"effort":"medium"}}
anthropic high {"thinking":{"type":"adaptive"},"output_config":{"effort":"high"}}
anthropic xhigh {"thinking":{"type":"adaptive"},"output_config":{"effort":"xhigh"}}
anthropic max {"thinking":{"type":"adaptive"},"output_config":{"effort":"max"}}
responses none {"reasoning":{"effort":"none"}}
responses minimal {"reasoning":{"effort":"minimal","summary":"auto"}}
responses low {"reasoning":{"effort":"low","summary":"auto"}}
responses medium {"reasoning":{"effort":"medium","summary":"auto"}}
responses high {"reasoning":{"effort":"high","summary":"auto"}}
responses xhigh {"reasoning":{"effort":"xhigh","summary":"auto"}}
responses max {"reasoning":{"effort":"xhigh","summary":"auto"}}
chat none {}
chat minimal {"reasoning_effort":"low"}
chat low {"reasoning_effort":"low"}
chat medium {"reasoning_effort":"medium"}
chat high {"reasoning_effort":"high"}
chat xhigh {"reasoning_effort":"high"}
chat max {"reasoning_effort":"high"}"#;
        assert_eq!(lines.join("\n"), expected);
    }

    #[test]
    fn a_keys_table_says_it_for_its_models() {
        let endpoint = endpoint(&json!({
            "provider": "anthropic", "key": {"from": "K"},
            "models": [{"match": "*", "body": {"temperature": 0.5}, "effort": {
                "high": {"thinking": {"type": "enabled", "budget_tokens": 10_000}}, "none": {}}}],
        }));
        let of = |think| Value::Object(fragment(&endpoint, Some(think)));
        assert_eq!(
            of(Think::At(Effort::High)),
            json!({"thinking": {"type": "enabled", "budget_tokens": 10_000}, "temperature": 0.5})
        );
        assert_eq!(of(Think::Off), json!({"temperature": 0.5}));
        let usual = of(Think::At(Effort::Low));
        assert_eq!(usual["output_config"]["effort"], "low");
        // What nobody asked for is not said: not every model takes it.
        let unsaid = Value::Object(fragment(&endpoint, None));
        assert_eq!(unsaid, json!({"temperature": 0.5}));
    }
}
