//! How hard to think, in the words of each wire format: what is merged into a request.
//! A key's table says it for its models; here is what holds where it does not. Must not lower what
//! was asked for where the format has a word for it: a provider's refusal is clearer than a guess.

use dispatch_core::{
    models::{Endpoint, Wire},
    task::Effort,
};
use serde_json::{Map, Value, json};

/// The endpoint's own row, else the format's.
pub(super) fn fragment(endpoint: &Endpoint, think: Option<Effort>) -> Map<String, Value> {
    let of = |think| match endpoint.row.effort.get(&think) {
        Some(own) => own.clone(),
        None => usual(endpoint.wire, think),
    };
    let mut merged = think.map(of).unwrap_or_default();
    merged.extend(endpoint.row.body.clone());
    merged
}

fn usual(wire: Wire, think: Effort) -> Map<String, Value> {
    let value = match (wire, think) {
        (Wire::Anthropic, Effort::Off) => json!({"thinking": {"type": "disabled"}}),
        (Wire::Anthropic, effort) => json!({
            "thinking": {"type": "adaptive"},
            "output_config": {"effort": at_least_low(effort)},
        }),
        (Wire::Responses, Effort::Off) => json!({"reasoning": {"effort": "none"}}),
        (Wire::Responses, effort) => {
            json!({"reasoning": {"effort": at_most_xhigh(effort), "summary": "auto"}})
        }
        // Servers that do not think refuse the word `none`.
        (Wire::Chat, Effort::Off) => json!({}),
        (Wire::Chat, effort) => json!({"reasoning_effort": one_of_three(effort)}),
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
        Effort::Off | Effort::Minimal | Effort::Low => "low",
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
            for think in Effort::ALL {
                let words = Value::Object(usual(wire, think));
                lines.push(format!("{} {} {words}", wire.word(), think.word()));
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
            of(Effort::High),
            json!({"thinking": {"type": "enabled", "budget_tokens": 10_000}, "temperature": 0.5})
        );
        assert_eq!(of(Effort::Off), json!({"temperature": 0.5}));
        let usual = of(Effort::Low);
        assert_eq!(usual["output_config"]["effort"], "low");
        // What nobody asked for is not said: not every model takes it.
        let unsaid = Value::Object(fragment(&endpoint, None));
        assert_eq!(unsaid, json!({"temperature": 0.5}));
    }
}
