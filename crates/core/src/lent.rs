//! Secrets that the native agent's tools need (`[web]`, `[mcp.*]`): each becomes a variable of the
//! agent's environment, because the places where they are read lie outside of its fence.
//! Must not read one.

use std::collections::BTreeMap;

use crate::{id::ServerName, models::KeySource, servers::ServerTable, web::WebTable};

/// What a variable stands for.
pub type Lent = BTreeMap<String, KeySource>;

/// What the services of the web take; from here on their tables name the variables.
pub fn to_web(web: &mut WebTable) -> Lent {
    let mut lent = Lent::new();
    for (service, source) in web.sources_mut() {
        lend(&mut lent, &format!("web_{service}"), source);
    }
    lent
}

/// The same of one MCP server.
pub fn to_server(name: &ServerName, server: &mut ServerTable) -> Lent {
    let mut lent = Lent::new();
    for (value, source) in server.sources_mut() {
        lend(&mut lent, &format!("mcp_{name}_{value}"), source);
    }
    lent
}

fn lend(lent: &mut Lent, what: &str, source: &mut KeySource) {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_uppercase()
        } else {
            '_'
        }
    };
    let name: String = format!("dispatch_{what}").chars().map(plain).collect();
    // `a-b` and `a.b` would be one.
    let mut variable = name.clone();
    let mut n = 2;
    while lent.contains_key(&variable) {
        variable = format!("{name}_{n}");
        n += 1;
    }
    let taken = std::mem::replace(source, KeySource::From(variable.clone()));
    lent.insert(variable, taken);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_secret_is_a_variable_that_its_table_names() {
        let mut web: WebTable = toml::from_str(
            "[search]\nshape = \"searxng\"\nurl = \"http://s\"\nkey = { file = \"/s\" }\n\
             [scrape]\nurl = \"http://f\"\nkey = { from = \"FIRE\" }\n",
        )
        .unwrap();
        let lent = to_web(&mut web);
        let expected = [
            ("DISPATCH_WEB_SCRAPE", KeySource::From("FIRE".into())),
            ("DISPATCH_WEB_SEARCH", KeySource::File("/s".into())),
        ];
        let expected: Lent = expected.map(|(name, source)| (name.into(), source)).into();
        assert_eq!(lent, expected);
        let named: Vec<KeySource> = web.sources().cloned().collect();
        assert!(named.contains(&KeySource::From("DISPATCH_WEB_SEARCH".into())));

        let mut server: ServerTable = toml::from_str(
            "url = \"https://t\"\nheaders = { X-A = { from = \"A\" }, X_A = { from = \"B\" }, Plain = \"p\" }",
        )
        .unwrap();
        let lent = to_server(&"my.tools".parse().unwrap(), &mut server);
        let names: Vec<&str> = lent.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["DISPATCH_MCP_MY_TOOLS_X_A", "DISPATCH_MCP_MY_TOOLS_X_A_2"]
        );
        assert_eq!(server.sources().count(), 2);
    }
}
