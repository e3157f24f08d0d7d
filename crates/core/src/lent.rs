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

/// The same of all MCP servers. `a` with a value `b_c` and `a_b` with `c` would be one variable, and one
/// server's secret the other's: no variable is lent twice, whichever servers an agent has.
pub fn to_servers(servers: &mut BTreeMap<ServerName, ServerTable>) -> BTreeMap<ServerName, Lent> {
    let mut all = Lent::new();
    let mut of_servers = BTreeMap::new();
    for (name, server) in servers {
        let mut lent = Lent::new();
        for (value, source) in server.sources_mut() {
            let variable = lend(&mut all, &format!("mcp_{name}_{value}"), source);
            let source = all.get(&variable).cloned();
            lent.extend(source.map(|source| (variable, source)));
        }
        of_servers.insert(name.clone(), lent);
    }
    of_servers
}

fn lend(lent: &mut Lent, what: &str, source: &mut KeySource) -> String {
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
    lent.insert(variable.clone(), taken);
    variable
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

        let table = |text: &str| toml::from_str::<ServerTable>(text).unwrap();
        let mut servers = BTreeMap::from([
            (
                "my.tools".parse().unwrap(),
                table(
                    "url = \"https://t\"\n\
                     headers = { X-A = { from = \"A\" }, X_A = { from = \"B\" }, Plain = \"p\" }",
                ),
            ),
            (
                "my".parse().unwrap(),
                table("command = [\"x\"]\nenv = { TOOLS_X_A = { from = \"C\" } }"),
            ),
        ]);
        let of_servers = to_servers(&mut servers);
        let from = |name: &str| KeySource::From(name.into());
        let of = |server: &str, own: &[(&str, &str)]| {
            let own = own
                .iter()
                .map(|(name, source)| ((*name).to_owned(), from(source)));
            (server.parse::<ServerName>().unwrap(), own.collect::<Lent>())
        };
        let expected = BTreeMap::from([
            of("my", &[("DISPATCH_MCP_MY_TOOLS_X_A", "C")]),
            of(
                "my.tools",
                &[
                    ("DISPATCH_MCP_MY_TOOLS_X_A_2", "A"),
                    ("DISPATCH_MCP_MY_TOOLS_X_A_3", "B"),
                ],
            ),
        ]);
        assert_eq!(of_servers, expected);
        for (name, own) in &of_servers {
            let named: Vec<KeySource> = servers[name].sources().cloned().collect();
            let variables: Vec<KeySource> = own.keys().map(|name| from(name)).collect();
            assert_eq!(named, variables);
        }
    }
}
