//! The names of what others have put into nftables, for `palisade preflight` alone. Names only: no rule, no element.

use serde::Deserialize;

use super::kernel::{KernelError, Nft};

/// Something with a name in nftables.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// The family of its table.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its own name; none for a table.
    pub name: Option<String>,
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    table: Option<Names>,
    chain: Option<Names>,
    flowtable: Option<Names>,
}

#[derive(Deserialize)]
struct Names {
    family: String,
    table: Option<String>,
    name: String,
}

impl Nft {
    /// All tables and their chains, by name.
    ///
    /// # Errors
    /// nft failed, or answered something else.
    pub fn tables_and_chains(&self) -> Result<Vec<Named>, KernelError> {
        let mut all = self.names("tables")?;
        all.extend(self.names("chains")?);
        all.sort();
        all.dedup();
        Ok(all)
    }

    /// All flowtables, by name.
    ///
    /// # Errors
    /// nft failed, or answered something else.
    pub fn flowtables(&self) -> Result<Vec<Named>, KernelError> {
        self.names("flowtables")
    }

    fn names(&self, what: &str) -> Result<Vec<Named>, KernelError> {
        match self.list(&[what])? {
            Some(json) => parse(&json),
            None => Ok(Vec::new()),
        }
    }
}

fn parse(json: &str) -> Result<Vec<Named>, KernelError> {
    let listing: Listing = serde_json::from_str(json).map_err(|error| KernelError::Answer(error.to_string()))?;
    let named = |object: Object| {
        if let Some(table) = object.table {
            return Some(Named {
                family: table.family,
                table: table.name,
                name: None,
            });
        }
        let part = object.chain.or(object.flowtable)?;
        Some(Named {
            family: part.family,
            table: part.table?,
            name: Some(part.name),
        })
    };
    Ok(listing.nftables.into_iter().filter_map(named).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_all_else_is_not() {
        let json = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"table": {"family": "ip", "name": "filter", "handle": 1}},
            {"chain": {"family": "ip", "table": "filter", "name": "cali-FORWARD", "handle": 2}}]}"#;
        let named = parse(json).expect("a listing");
        let names: Vec<_> = named.iter().map(|n| (n.table.as_str(), n.name.as_deref())).collect();
        assert_eq!(names, [("filter", None), ("filter", Some("cali-FORWARD"))]);
        assert!(parse("[]").is_err());
    }
}
