//! The members of a JSON object in their order, each kept as it was written: what is put together
//! from a stream and must go back as it came, members included that nobody here knows.
//! Must not parse a value it does not have to look into.

use std::fmt;

use dispatch_core::native::Raw;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
    ser::Error as _,
};
use serde_json::value::RawValue;

#[derive(Clone, Debug, Default)]
pub(crate) struct Fields(Vec<(String, Box<RawValue>)>);

impl Fields {
    pub(crate) fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.get())
    }

    /// A member that is a text.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.get(name)?).ok()
    }

    /// In its place where it was there, at the end where it was not. The value is JSON.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<(), serde_json::Error> {
        let value = RawValue::from_string(value.to_owned())?;
        match self.0.iter_mut().find(|(key, _)| key == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
        Ok(())
    }

    pub(crate) fn set_text(&mut self, name: &str, text: &str) -> Result<(), serde_json::Error> {
        self.set(name, &serde_json::to_string(text)?)
    }

    pub(crate) fn raw(&self) -> Result<Raw, serde_json::Error> {
        Raw::parse(serde_json::to_string(self)?)
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|(key, value)| (key, value)))
            .map_err(S::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(member) = map.next_entry()? {
                    fields.push(member);
                }
                Ok(Fields(fields))
            }
        }
        from.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Some JSON, compact, with values that a parser would write otherwise.
    fn value(random: &mut Random, depth: usize) -> String {
        match random.below(if depth == 0 { 6 } else { 8 }) {
            0 => "null".into(),
            1 => "true".into(),
            2 => "1.50e3".into(),
            3 => "123456789012345678901234567890".into(),
            4 => r#""\u00e9\/é\n""#.into(),
            5 => "-0.0".into(),
            6 => {
                let items: Vec<String> = (0..random.below(4))
                    .map(|_| value(random, depth - 1))
                    .collect();
                format!("[{}]", items.join(","))
            }
            _ => object(random, depth - 1),
        }
    }

    fn object(random: &mut Random, depth: usize) -> String {
        let member = |random: &mut Random| {
            let name = ["type", "text", "a b", "é", "", "type"][random.below(6)];
            format!("\"{name}\":{}", value(random, depth))
        };
        let members: Vec<String> = (0..random.below(5)).map(|_| member(random)).collect();
        format!("{{{}}}", members.join(","))
    }

    #[test]
    fn what_is_parsed_is_written_as_it_was() {
        let mut random = Random::new(3);
        for _ in 0..2000 {
            let text = object(&mut random, 4);
            let fields = Fields::parse(&text).unwrap();
            assert_eq!(serde_json::to_string(&fields).unwrap(), text);
            assert_eq!(fields.raw().unwrap().text(), text);
        }
    }

    #[test]
    fn a_member_is_changed_in_its_place() {
        let mut fields = Fields::parse(r#"{"a":1,"b":"x","c":[ 1 ]}"#).unwrap();
        fields.set_text("b", "é\"").unwrap();
        fields.set("d", "{}").unwrap();
        let text = serde_json::to_string(&fields).unwrap();
        assert_eq!(text, r#"{"a":1,"b":"é\"","c":[ 1 ],"d":{}}"#);
        assert!(fields.set("e", "{").is_err());
        assert_eq!(fields.text("b").as_deref(), Some("é\""));
        assert_eq!(fields.text("c"), None);
    }
}
